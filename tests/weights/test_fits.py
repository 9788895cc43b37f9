from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from miles_lite.weights.fits import WeightsError, check_fits, read_shapes


def save(folder: Path, **shapes: tuple[int, ...]) -> Path:
    folder.mkdir(exist_ok=True)
    save_file({name: np.zeros(shape, np.float32) for name, shape in shapes.items()}, folder / "model.safetensors")
    return folder


def test_weights_of_the_same_shapes_fit(tmp_path: Path):
    served = read_shapes(save(tmp_path / "old", a=(2, 3), b=(4,)))
    assert served == {"a": (2, 3), "b": (4,)}
    check_fits(save(tmp_path / "new", a=(2, 3)), served)


@pytest.mark.parametrize(("shapes", "words"), [({"a": (3, 2)}, r"expected \[2, 3\]"), ({"c": (1,)}, "no such tensor")])
def test_what_does_not_fit_is_named(tmp_path: Path, shapes, words):
    served = read_shapes(save(tmp_path / "old", a=(2, 3)))
    with pytest.raises(WeightsError, match=words):
        check_fits(save(tmp_path / "new", **shapes), served)


def test_a_missing_an_empty_and_a_truncated_folder_are_refused(tmp_path: Path):
    with pytest.raises(WeightsError, match="no such folder"):
        read_shapes(tmp_path / "missing")
    with pytest.raises(WeightsError, match="holds no"):
        read_shapes(tmp_path)
    file = save(tmp_path / "cut", a=(64, 64)) / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(WeightsError, match="damaged or incomplete"):
        read_shapes(tmp_path / "cut")
