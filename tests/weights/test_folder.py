from __future__ import annotations

from pathlib import Path

from miles_lite.weights.folder import copy_tokenizer, remove_before


def test_what_is_beside_the_weights_is_copied_and_another_template_takes_the_place_of_the_models(
    tmp_path: Path,
) -> None:
    model, out, other = tmp_path / "model", tmp_path / "out", tmp_path / "other.jinja"
    model.mkdir()
    for name in ("tokenizer.json", "chat_template.jinja", "model.safetensors"):
        (model / name).write_text(name)
    other.write_text("other")
    for template, text in ((None, "chat_template.jinja"), (str(other), "other")):
        folder = out / text
        folder.mkdir(parents=True)
        copy_tokenizer(model, folder, template=template)
        assert sorted(path.name for path in folder.iterdir()) == ["chat_template.jinja", "tokenizer.json"]
        assert (folder / "chat_template.jinja").read_text() == text


def test_the_last_versions_are_kept_whatever_an_earlier_run_left(tmp_path: Path) -> None:
    for version in (35, 36):
        (tmp_path / f"v{version}").mkdir()
    for version in range(4):
        (tmp_path / f"v{version}").mkdir()
        remove_before(tmp_path / f"v{version}", keep=2)
        own = {path.name for path in tmp_path.iterdir()} - {"v35", "v36"}
        assert own == {f"v{kept}" for kept in (version - 1, version) if kept >= 0}
    assert {"v35", "v36"} <= {path.name for path in tmp_path.iterdir()}
