from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from miles_lite.engine.cpu_profile import sgl_kernel
from miles_lite.engine.cpu_shim import FOLDER, needs_profile, with_profile


def test_the_profile_leads_the_users_path_and_keeps_it():
    assert with_profile(None) == str(FOLDER)
    assert with_profile("/a:/b") == f"{FOLDER}:/a:/b"
    assert with_profile(with_profile("/a")) == f"{FOLDER}:/a"


def test_it_is_for_cpu_servers_without_a_real_sgl_kernel(tmp_path: Path):
    assert needs_profile("cpu", [str(tmp_path)])
    assert needs_profile("cpu", [str(FOLDER), str(tmp_path)])
    assert not needs_profile("cuda", [str(tmp_path)])
    (tmp_path / "sgl_kernel").mkdir()
    (tmp_path / "sgl_kernel" / "__init__.py").touch()
    assert not needs_profile("cpu", [str(FOLDER), str(tmp_path)])


def test_patches_apply_and_the_users_own_sitecustomize_still_runs(tmp_path: Path):
    (tmp_path / "sitecustomize.py").write_text("print('mine runs')")
    mooncake = tmp_path / "sglang" / "srt" / "disaggregation" / "mooncake"
    mooncake.mkdir(parents=True)
    (tmp_path / "sglang" / "__init__.py").touch()
    (mooncake / "conn.py").write_text("class MooncakeKVSender:\n    supports_host_tensor_indices = True\n")
    entrypoints = tmp_path / "sglang" / "srt" / "entrypoints"
    entrypoints.mkdir()
    (entrypoints / "engine.py").write_text(
        "import multiprocessing\n"
        "def _set_envs_and_config(server_args):\n"
        "    print(server_args)\n"
        "    multiprocessing.set_start_method('spawn', force=True)\n"
    )
    code = (
        "from sglang.srt.disaggregation.mooncake.conn import MooncakeKVSender as sender; "
        "print(sender.supports_host_tensor_indices); import sgl_kernel; print(sgl_kernel.__version__); "
        "from sglang.srt.entrypoints import engine; import gc; collected = gc.isenabled(); "
        "engine._set_envs_and_config('arguments'); "
        "import multiprocessing; print(multiprocessing.get_start_method(), collected, gc.isenabled())"
    )
    env = {**os.environ, "PYTHONPATH": with_profile(str(tmp_path))}
    shown = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=60)
    expected = ["mine runs", "False", sgl_kernel.__version__, "arguments", "fork False True"]
    assert shown.stdout.splitlines() == expected, shown.stderr


@pytest.mark.parametrize(("architecture", "found"), [("Served", "['Served']"), ("Another", "[]")])
def test_of_sglangs_models_only_the_served_one_is_imported(tmp_path: Path, architecture: str, found: str):
    models = tmp_path / "sglang" / "srt" / "models"
    models.mkdir(parents=True)
    (tmp_path / "sglang" / "__init__.py").touch()
    (models / "one.py").write_text("print('imported')\nclass Other: pass\nclass Served(Other): pass\n")
    (models / "two.py").write_text("raise AssertionError\nclass ServedToo(Served): pass\n")
    (tmp_path / "config.json").write_text(json.dumps({"architectures": [architecture]}))
    code = "from served_model.architecture import EntryClass; print([one.__name__ for one in EntryClass])"
    env = {**os.environ, "PYTHONPATH": with_profile(str(tmp_path))}
    argv = [sys.executable, "-c", code, "--port", "1", "--model-path", str(tmp_path)]
    shown = subprocess.run(argv, env=env, capture_output=True, text=True, timeout=60)
    assert shown.stdout.split("\n")[-2:] == [found, ""], shown.stderr
    assert ("imported" in shown.stdout) == (found != "[]")


def test_the_stand_in_writes_cache_slots_and_refuses_everything_else():
    pool = torch.zeros((3, 5), dtype=torch.int32)
    sgl_kernel.assign_req_to_token_pool_cpu(
        torch.tensor([2, 0]), pool, torch.tensor([1, 0]), torch.tensor([3, 1]), torch.tensor([7, 8, 9]), 5
    )
    assert pool.tolist() == [[9, 0, 0, 0, 0], [0, 0, 0, 0, 0], [0, 7, 8, 0, 0]]
    with pytest.raises(NotImplementedError, match=r"sgl_kernel\.rmsnorm has no CPU version"):
        sgl_kernel.rmsnorm()
