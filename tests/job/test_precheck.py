from __future__ import annotations

import bz2
import gzip
import json
import os
from pathlib import Path

import pytest

from miles_lite.config.options import Config, parse
from miles_lite.errors import UserError
from miles_lite.job import precheck
from miles_lite.job.attempts import attempts
from miles_lite.job.due import Due
from miles_lite.job.precheck import check_inputs, check_resumed
from miles_lite.job.servers import CALL_TIMEOUT, eval_timeout
from miles_lite.rollout import resume
from miles_lite.rollout.prompts import open_source
from miles_lite.train.iterations import LATEST
from tests.http_server import Request, http_server
from tests.models import make_tiny_moe


def config(model: Path, folder: Path, *flags: str) -> Config:
    prompts = folder / "prompts.jsonl"
    prompts.write_text('{"input": "hello"}\n')
    needed = ["--hf-checkpoint", str(model), "--prompt-data", str(prompts), "--run-dir", str(folder / "run")]
    return parse([*needed, "--rollout-batch-size", "1", "--num-rollout", "1", *flags])[0]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--use-kl-loss", "--ref-load", "absent"], "--ref-load .*absent: no such folder"),
        (["--session-message-matcher", "magic"], "--session-message-matcher magic: choose one of"),
        (["--session-message-matcher", "absent.py:match"], "--session-message-matcher: no such file"),
        (["--session-sample-picker-path", "absent.py:pick"], "--session-sample-picker-path: no such file"),
        (["--session-sample-postprocessor-path", "absent.py:last"], "--session-sample-postprocessor-path: no such"),
        (["--dynamic-sampling-filter-path", "absent.py:keep"], "--dynamic-sampling-filter-path: no such file"),
        (["--custom-rm-path", "absent.py:reward"], "--custom-rm-path: no such file"),
        (["--rm-type", "llm_judge", "--rm-judge-prompt", __file__ + "x"], "--rm-judge-prompt .*cannot be read"),
        (["--rm-type", "llm_judge", "--rm-judge-prompt", os.devnull], r"--rm-judge-prompt .*has no {response} in it"),
        (["--group-rm", "--rm-type", "llm_judge", "--rm-judge-prompt", os.devnull], r"has no {first} in it"),
        (["--eval-prompt-data", "held", "absent.jsonl"], "no such file.*absent.jsonl"),
        (["--rollout-max-prompt-len", "2"], "line 1: the prompt has"),
        (["--rollout-max-context-len", "3"], "line 1: the prompt has"),
        (["--tito-model", "magic"], "magic"),
        (["--sglang-no-such-option", "1"], "no-such-option"),
        (["--sglang-nnodes", "2"], "--sglang-nnodes is decided by --rollout-num-gpus-per-engine and"),
        (["--sglang-host", "0.0.0.0"], "--sglang-host is decided by --bind-host"),
        (["--sglang-weight-version", "7"], "--sglang-weight-version is decided by the weight updates"),
    ],
)
def test_what_is_wrong_is_said_before_anything_starts(
    flags: list[str], message: str, tiny_model: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=message):
        check_inputs(config(tiny_model, tmp_path, *flags))


ROW = '{"input": %s}\n'


@pytest.mark.parametrize(
    ("written", "message"),
    [
        (b"{\xff\x08\x00", r"line 1: not UTF-8 \(byte 1\)"),
        (gzip.compress(b'{"input": "a"}', mtime=0), r"line 1: not UTF-8 \(gzip: unpack it first, as by gunzip\)"),
        (bz2.compress(b'{"input": "a"}'), r"line 1: not UTF-8 \(bzip2: unpack it first"),
        (b'{"input": "a"}\n\x00\x01\n', "line 2: not JSON"),
        ('{"input": "hello"}\n'.encode("utf-16"), r"line 1: not UTF-8 \(UTF-16: save it as UTF-8\)"),
        ('{"input": "hello"}\n'.encode("utf-16-le"), "line 1: not JSON"),
        (ROW % r'"a\ud800b"', r"line 1: holds a lone surrogate \('\\ud800'\)"),
        ('{"input": "a", "metadata": {"k": ["\\udfff"]}}', "line 1: holds a lone surrogate"),
        (ROW % ("[" * 100_000 + "]" * 100_000), "line 1: nested deeper than 100"),
        ('{"input": "a", "metadata": {"k": ' + "[" * 200 + "]" * 200 + "}}", "line 1: nested deeper than 100"),
        (ROW % '[{"role": "robot", "content": "hi"}]', r"line 1: .*messages\[0\].role"),
        (ROW % '[{"role": "user", "content": 3}]', r"line 1: .*messages\[0\].content"),
        (ROW % '[{"content": "hi"}]', r"line 1: .*messages\[0\].role"),
        (ROW % '[{"role": "user", "content": [{"type": "image_url"}]}]', r"line 1: .*messages\[0\].content\[0\]"),
        (ROW % "[]", "line 1: 'input' is empty"),
    ],
)
def test_a_row_that_is_no_prompt_is_named(written: bytes | str, message: str, tiny_model: Path, tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_bytes(written.encode() if isinstance(written, str) else written)
    with pytest.raises(UserError, match=f"{rows}, {message}") as told:
        check_inputs(config(tiny_model, tmp_path, "--prompt-data", str(rows)))
    assert str(told.value).isprintable()


def test_a_byte_order_mark_and_what_breaks_lines_in_text_are_no_flaws(tiny_model: Path, tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"input": "one\u2028two\x85"}\n', encoding="utf-8-sig")
    check_inputs(config(tiny_model, tmp_path, "--prompt-data", str(rows)))


def test_a_row_whose_rule_the_estimator_cannot_take_is_named(tiny_model: Path, tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    flags = ["--prompt-data", str(rows), "--n-samples-per-prompt", "2", "--advantage-estimator"]
    rows.write_text('{"input": "a", "metadata": {"rm_type": "f1"}}\n{"input": "a", "metadata": {"rm_type": "dapo"}}\n')
    with pytest.raises(UserError, match=r"line 2: the rm_type of its metadata gives rewards below 0.*maxrl takes none"):
        check_inputs(config(tiny_model, tmp_path, *flags, "maxrl"))
    check_inputs(config(tiny_model, tmp_path, *flags, "rloo"))


@pytest.mark.parametrize(
    ("flags", "row", "message"),
    [
        (
            "",
            {"metadata": {"rm_type": 5}},
            "metadata rm_type: expected a name, or a list of NAME and NAME=WEIGHT, found 5",
        ),
        ("", {"metadata": {"rm_type": [5]}}, r"metadata rm_type: expected a name.*found \[5\]"),
        ("", {"metadata": {"rm_type": "f2"}}, "metadata rm_type: invalid choice: 'f2': did you mean f1"),
        ("--rm-type code", {"metadata": {}}, "--rm-type code: code needs tests"),
        (
            "--rm-type code",
            {"metadata": {"tests": {"inputs": ["1"], "outputs": []}}},
            "--rm-type code: code needs tests",
        ),
        ("--rm-type ifeval", {"metadata": {}}, "--rm-type ifeval: the row's metadata needs instruction_id_list"),
        (
            "--rm-type ifeval",
            {"metadata": {"instruction_id_list": ["length_constraints:number_words"], "kwargs": [{}]}},
            "--rm-type ifeval: the kwargs of an instruction lack 'num_words'",
        ),
        ("--rm-type contains --label-key label", {"label": ""}, "--rm-type contains: the row's label is empty"),
    ],
)
def test_a_row_by_which_its_reward_cannot_judge_is_named(
    flags: str, row: dict[str, object], message: str, tiny_model: Path, tmp_path: Path
) -> None:
    rows = tmp_path / "rows.jsonl"
    good = {"input": "a", "label": "1", "metadata": {"rm_type": "exact_match"}}
    rows.write_text(f"{json.dumps(good)}\n{json.dumps({'input': 'a', **row})}\n")
    given = config(tiny_model, tmp_path, "--prompt-data", str(rows), *flags.split())
    with pytest.raises(UserError, match=f"{rows}, line 2: {message}"):
        check_inputs(given)
    check_inputs(config(tiny_model, tmp_path, "--prompt-data", f"{rows}@[:1]", *flags.split()))


def test_a_model_that_the_trainer_cannot_take_is_rolled_out_alone(tiny_model: Path, tmp_path: Path) -> None:
    given = config(tiny_model, tmp_path, "--use-rollout-routing-replay")
    with pytest.raises(UserError, match="has no router that chooses experts"):
        check_inputs(given)
    check_inputs(given, trains=False)


def test_what_needs_gpus_is_refused_before_ray_starts_where_there_are_none(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Unless it starts elsewhere: there it is refused when the slots are known."""
    monkeypatch.setattr(precheck, "has_gpu_driver", lambda: False)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    given = config(tiny_model, tmp_path, "--attn-implementation", "flash_attention_2")
    with pytest.raises(UserError, match="--attn-implementation flash_attention_2 needs GPUs"):
        check_inputs(given)
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    check_inputs(given)


def test_a_teacher_is_asked_before_anything_starts(tiny_model: Path, tmp_path: Path) -> None:
    def answer(request: Request) -> object:
        ids = request.body["input_ids"]
        told = [[-0.5 * at, each, None] for at, each in enumerate(ids)]
        return {"meta_info": {"input_token_logprobs": told}}

    with http_server(answer) as url:
        check_inputs(config(tiny_model, tmp_path, "--opd-teacher", url))
        top_k = ("--opd-loss-coef", "1", "--opd-log-prob-top-k", "4", "--opd-top-k-strategy", "only-teacher")
        with pytest.raises(UserError, match=f"--opd-teacher {url}: no logprobs: 'input_top_logprobs'"):
            check_inputs(config(tiny_model, tmp_path, "--opd-teacher", url, *top_k))
    with pytest.raises(UserError, match=f"--opd-teacher {url}: no logprobs: .*[Rr]efused"):
        check_inputs(config(tiny_model, tmp_path, "--opd-teacher", url))


@pytest.mark.parametrize("flag", ["--run-dir", "--load", "--save", "--save-hf", "--trajectory-dir"])
def test_a_file_where_a_folder_is_to_be_made_is_named(flag: str, tiny_model: Path, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    flags = [*(["--save", str(tmp_path)] if flag == "--save-hf" else []), flag, str(file / "inside")]
    with pytest.raises(UserError, match=f"{flag} .*: {file} is no folder"):
        check_inputs(config(tiny_model, tmp_path, *flags))


def test_a_tied_mixture_of_experts_is_refused_because_engines_would_serve_another_model(tmp_path: Path) -> None:
    model = make_tiny_moe(tmp_path / "moe")
    check_inputs(config(model, tmp_path))
    told = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(told | {"tie_word_embeddings": True}))
    with pytest.raises(UserError, match=r"SGLang reads a qwen3_moe with a head of its own.*a copy of model.embed"):
        check_inputs(config(model, tmp_path))


def test_a_run_folder_that_cannot_be_made_is_named(tiny_model: Path, tmp_path: Path) -> None:
    (tmp_path / "run").touch()
    with pytest.raises(UserError, match=r"--run-dir .* is no folder"), attempts(config(tiny_model, tmp_path)):
        raise AssertionError("unreachable")


def test_evaluation_is_due_before_the_first_step_unless_skipped(tiny_model: Path, tmp_path: Path) -> None:
    flags = ["--eval-interval", "2", "--eval-prompt-data", "held", "x"]
    for skip, due in ((False, True), (True, False)):
        run = Due(config(tiny_model, tmp_path, *flags, *(["--skip-eval-before-train"] if skip else [])), 5)
        assert run.evaluation() is due
        assert [run.evaluation(after=at) for at in range(5)] == [False, True, False, True, True]
    assert not Due(config(tiny_model, tmp_path), 5).evaluation()


def test_an_evaluation_is_waited_for_as_long_as_its_agents_may_take(tiny_model: Path, tmp_path: Path) -> None:
    given = config(tiny_model, tmp_path, "--rollout-timeout", "100", "--agent-concurrency", "4")
    assert eval_timeout(given, 9) - CALL_TIMEOUT == 300


async def test_prompts_that_a_run_was_not_made_with_are_refused_before_it_starts(tmp_path: Path) -> None:
    def given(words: str, *flags: str) -> Config:
        made = config(tmp_path, tmp_path, "--load", str(tmp_path), *flags)
        Path(made.data.prompt_data).write_text("".join(json.dumps({"input": word}) + "\n" for word in words))
        return made

    check_resumed(given("abc"))
    saved = {"data": open_source(given("abc").data).state(), "members": {}, "scheduler": {}, "next_rollout_index": 0}
    await resume.save(str(tmp_path), 3, resume.Snapshot(saved, []))
    (tmp_path / LATEST).write_text("3\n")
    (tmp_path / "iter_0000003").mkdir()
    check_resumed(given("abc"))
    with pytest.raises(UserError, match="in another order"):
        check_resumed(given("acb"))
    check_resumed(given("acb", "--finetune"))
