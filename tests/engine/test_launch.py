from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from miles_lite.config.choices import WorkerType
from miles_lite.config.engines import Engines
from miles_lite.config.places import Hosts
from miles_lite.engine.launch import Placement, command, environment
from miles_lite.engine.sglang_flags import check_options, known_options, scan
from miles_lite.engine.spec import EngineSpec
from miles_lite.errors import UserError

SPEC = EngineSpec(
    index=2,
    model_path="/models/tiny",
    device="cpu",
    hosts=Hosts(advertise_host="node7"),
    log_path="/tmp/engine-2.log",
    seed=40,
    weight_version=7,
    context_length=2048,
    threads=1,
)


def argv(spec: EngineSpec = SPEC, place: Placement | None = None, **given_args) -> list[str]:
    spec = dataclasses.replace(spec, engines=Engines(sglang_args=given_args))
    return command(spec, place or Placement(port=30000), known=frozenset())[3:]


def value(arguments: list[str], flag: str) -> str:
    return arguments[arguments.index(flag) + 1]


def test_a_cpu_server_gets_the_recipe():
    arguments = argv()
    expected = {
        "--model-path": "/models/tiny",
        "--host": "127.0.0.1",
        "--port": "30000",
        "--device": "cpu",
        "--attention-backend": "torch_native",
        "--grammar-backend": "xgrammar",
        "--random-seed": "42",
        "--weight-version": "7",
        "--context-length": "2048",
        "--max-total-tokens": str(2048 * 64),
    }
    assert {flag: value(arguments, flag) for flag in expected} == expected
    assert {"--skip-server-warmup", "--sleep-on-idle", "--incremental-streaming-output"} <= set(arguments)


def test_a_gpu_server_gets_no_cpu_option_and_is_told_where_to_begin():
    spec = dataclasses.replace(SPEC, device="cuda", slots=4)
    arguments = argv(spec, Placement(port=1, base_gpu_id=4))
    assert not {"--device", "--attention-backend", "--max-total-tokens", "--sleep-on-idle"} & set(arguments)
    assert (value(arguments, "--tp-size"), value(arguments, "--base-gpu-id")) == ("4", "4")


def test_prefill_and_decode_roles_are_passed_on():
    prefill = argv(dataclasses.replace(SPEC, worker_type=WorkerType.PREFILL), Placement(port=1, bootstrap_port=8998))
    assert value(prefill, "--disaggregation-mode") == "prefill"
    assert value(prefill, "--disaggregation-bootstrap-port") == "8998"
    decode = argv(dataclasses.replace(SPEC, worker_type=WorkerType.DECODE))
    assert "--disaggregation-bootstrap-port" not in decode


@pytest.mark.parametrize("rank", [0, 1])
def test_each_node_of_a_big_engine_gets_its_rank_and_the_meeting_point(rank):
    spec = dataclasses.replace(SPEC, device="cuda", slots=16, nodes=2, node_rank=rank)
    arguments = argv(spec, Placement(port=1, base_gpu_id=0, dist_init_addr="node7:20000"))
    expected = {"--tp-size": "16", "--nnodes": "2", "--node-rank": str(rank), "--dist-init-addr": "node7:20000"}
    assert {flag: value(arguments, flag) for flag in expected} == expected
    assert "--nnodes" not in argv()


def test_an_admin_key_reaches_the_server_and_is_not_shown():
    spec = dataclasses.replace(SPEC, admin_key="secret")
    assert value(argv(spec), "--admin-api-key") == "secret"
    assert "secret" not in repr(spec)


def test_the_users_options_win():
    arguments = argv(dtype="bfloat16", sleep_on_idle=False, cuda_graph_bs=["1", "2"], enable_metrics=True)
    assert value(arguments, "--dtype") == "bfloat16"
    assert arguments.count("--dtype") == 1
    assert "--sleep-on-idle" not in arguments
    assert arguments[arguments.index("--cuda-graph-bs") + 1 :][:2] == ["1", "2"]
    assert "--enable-metrics" in arguments


@given(st.dictionaries(st.sampled_from(["dtype", "page_size", "tp_size", "log_level"]), st.text("ab1", min_size=1)))
def test_every_flag_appears_once_with_the_users_value(given_args):
    arguments = argv(**given_args)
    flags = [item for item in arguments if item.startswith("--")]
    assert len(flags) == len(set(flags))
    assert all(value(arguments, "--" + name.replace("_", "-")) == text for name, text in given_args.items())


def test_an_unknown_option_names_the_nearest_known_one():
    spec = dataclasses.replace(SPEC, engines=Engines(sglang_args={"mem_fraction_statik": "0.5"}))
    with pytest.raises(UserError, match="did you mean --sglang-mem-fraction-static"):
        command(spec, Placement(port=1), known=frozenset({"mem_fraction_static"}))


def test_an_older_sglang_is_not_given_what_it_does_not_know():
    known = frozenset({"weight_version"})
    arguments = command(SPEC, Placement(port=1), known=known)
    assert "--weight-version" in arguments
    assert "--incremental-streaming-output" not in arguments


def test_options_of_the_installed_sglang_are_read_without_importing_it():
    known = known_options()
    flags = {item[2:].replace("-", "_") for item in argv() if item.startswith("--")}
    assert flags <= known
    assert {"tp_size", "tensor_parallel_size", "disaggregation_mode", "speculative_algorithm"} <= known
    check_options(["tp", "tensor_parallel_size"], known)


def test_options_of_an_sglang_with_one_big_dataclass_are_read(tmp_path: Path):
    source = 'class ServerArgs:\n    model_path: str\n    tp_size: int = 1\n    x.add_argument("--tp", "--dp")\n'
    (tmp_path / "server_args.py").write_text(source)
    assert scan(tmp_path) == {"model_path", "tp_size", "tp", "dp"}
    assert scan(tmp_path / "missing") == frozenset()


def test_the_environment_completes_what_is_inherited():
    env = environment(SPEC, {"PATH": "/bin", "SGLANG_TIMEOUT_KEEP_ALIVE": "9", "PYTHONPATH": "/mine"}, profile=False)
    assert env["PATH"] == "/bin"
    assert env["PYTHONPATH"] == "/mine"
    assert (env["SGLANG_USE_CPU_ENGINE"], env["CUDA_VISIBLE_DEVICES"], env["OMP_NUM_THREADS"]) == ("1", "", "1")
    assert env["SGLANG_TIMEOUT_KEEP_ALIVE"] == "9"
    assert "SGLANG_CPU_OMP_THREADS_BIND" not in env
    given = {"SGLANG_CPU_OMP_THREADS_BIND": "0-3|4-7"}
    assert environment(SPEC, given, profile=True).items() >= given.items()
    on_gpu = environment(dataclasses.replace(SPEC, device="cuda"), {"CUDA_VISIBLE_DEVICES": "3"}, profile=False)
    assert on_gpu["CUDA_VISIBLE_DEVICES"] == "3"
    assert "SGLANG_USE_CPU_ENGINE" not in on_gpu
