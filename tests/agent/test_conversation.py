"""The loop against a real session server whose engine is a script; tools really run."""

from __future__ import annotations

import asyncio
import io
import itertools
import json
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import httpx
import pytest
from tokenizers import Tokenizer

from miles_lite.agent.conversation import Conversation, Limits
from miles_lite.agent.formats import FORMATS, PREAMBLE, SUBMIT
from miles_lite.agent.repl import Agent, AgentOptions
from miles_lite.agent.session_client import AgentSession
from miles_lite.agent.tools import parse_tools
from miles_lite.commands.agent import main
from miles_lite.errors import UserError
from miles_lite.sandboxes.shell import Shell
from miles_lite.traces import atraj
from tests.http_server import http_server
from tests.session.engine import STOP, Bench, answer, bench

ECHO = {
    "name": "echo",
    "description": "Print text",
    "parameters": {"type": "object", "properties": {"text": {"type": "string"}}, "required": ["text"]},
    "_exec": 'printf %s "$text"',
}


def shout(text: str) -> dict[str, str]:
    if text == "no":
        raise ValueError("too loud")
    return {"shouted": text.upper()}


SHOUT = {"name": "shout", "parameters": ECHO["parameters"], "_handler": shout}


def call(tool: str, **arguments: Any) -> str:
    return json.dumps({"tool": tool, "arguments": arguments})


def done(text: str) -> str:
    return json.dumps({"answer": text})


def serve(model: Path, replies: Sequence[str], act: Callable[[str], Any], **options: Any) -> tuple[Any, Bench]:
    """Run `act(url)` in a thread beside a session server whose engine says `replies` in turn."""
    tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
    waiting = iter(replies)

    async def run() -> tuple[Any, Bench]:
        def script(body: dict[str, Any]) -> dict[str, Any]:
            return answer([*tokenizer.encode(next(waiting), add_special_tokens=False).ids, STOP])

        async with bench(model, script, **options) as running:
            return await asyncio.to_thread(act, running.client.url), running

    return asyncio.run(run())


def talk(model: Path, replies: Sequence[str], *texts: str, form: str = "portable", **limits: Any) -> Any:
    """(answers, events, trajectory, engine's requests) of one conversation."""

    def act(url: str) -> Any:
        events: list[dict[str, Any]] = []
        with AgentSession(url, sampling={"temperature": 1.0}) as session, Shell() as shell:
            tools = parse_tools([ECHO, SHOUT])
            given: dict[str, Any] = {"limits": Limits(**limits), "format": FORMATS[form]}
            conversation = Conversation(session, tools, shell, events.append, **given)
            answers = [conversation.say(text) for text in texts]
            return answers, events, conversation.trajectory(task="t")

    result, running = serve(model, replies, act)
    return *result, running.engine.requests


def kinds(events: list[dict[str, Any]]) -> list[str]:
    return [event["type"] for event in events]


def test_a_tool_runs_and_its_result_leads_to_the_answer(tiny_model: Path) -> None:
    replies = ["I will. " + call("echo", text="a'b\n{c}"), done('it printed {"x": 1}'), done("again")]
    answers, events, trajectory, requests = talk(tiny_model, replies, "Use it", "And now?")
    assert answers == ['it printed {"x": 1}', "again"]
    first = ["user", "assistant", "tool_call", "tool_result", "assistant", "answer"]
    assert kinds(events) == [*first, "user", "assistant", "answer"]
    assert events[1] == {"type": "assistant", "step": 0, "raw": replies[0]}
    tool_call = {key: value for key, value in events[2].items() if key != "duration_sec"}
    called = {"type": "tool_call", "tool": "echo", "arguments": {"text": "a'b\n{c}"}, "stdout": "a'b\n{c}"}
    assert tool_call == called | {"exit_code": 0}
    assert events[2]["duration_sec"] >= 0
    assert events[5] == {"type": "answer", "text": 'it printed {"x": 1}'}
    assert [len(request["input_ids"]) for request in requests] == sorted(len(r["input_ids"]) for r in requests)
    for earlier, later in itertools.pairwise(requests):
        assert later["input_ids"][: len(earlier["input_ids"])] == earlier["input_ids"]
    roles = [step.role for step in trajectory.steps]
    assert roles == ["system", "user", "assistant", "tool", "assistant", "user", "assistant"]
    steps = trajectory.data["steps"]
    assert steps[2]["tool_call"] == {"name": "echo", "arguments_json": json.dumps({"text": "a'b\n{c}"})}
    assert steps[3]["tool_result"]["stdout"] == "a'b\n{c}"
    assert steps[3]["sent_as"] == "user"
    assert [message["role"] for message in trajectory.messages()][3] == "user"
    ((ids, mask, _),) = trajectory.sequences()
    assert ids[: len(requests[-1]["input_ids"])].tolist() == requests[-1]["input_ids"]
    assert mask.sum() == sum(len(step.ids) for step in trajectory.steps if step.sampled)


def test_native_calls_are_answered_with_tool_messages(tiny_model: Path) -> None:
    native = '<tool_call>\n{"name": "shout", "arguments": {"text": "hi"}}\n</tool_call>'
    answers, events, trajectory, _ = talk(tiny_model, [native, "fine"], "Shout", form="native")
    assert answers == ["fine"]
    assert kinds(events) == ["user", "assistant", "tool_call", "tool_result", "assistant", "answer"]
    assert events[3]["stdout"] == '{"shouted": "HI"}'
    assert trajectory.data["steps"][3]["sent_as"] == "tool"
    assert trajectory.data["steps"][2]["tool_call"]["name"] == "shout"
    messages = trajectory.messages()
    assert messages[2]["tool_calls"][0]["id"] == messages[3]["tool_call_id"]
    assert messages[3]["role"] == "tool"


@pytest.mark.parametrize(
    ("reply", "exit_code", "words"),
    [
        (call("echo"), 2, "'text' is a required property"),
        (call("echo", text="a\0"), 2, "NUL"),
        (call("nosuch"), 127, "there is no tool 'nosuch'; there are echo, shout"),
        (call("shout", text="no"), 1, "ValueError: too loud"),
    ],
)
def test_what_is_wrong_with_a_call_goes_back_to_the_model(
    tiny_model: Path, reply: str, exit_code: int, words: str
) -> None:
    _, events, trajectory, _ = talk(tiny_model, [reply, done("sorry")], "Go")
    assert events[3]["exit_code"] == exit_code
    assert words in events[3]["stderr"]
    sent = json.loads(trajectory.steps[3].content)
    assert sent == {"tool": events[3]["tool"], "stdout": "", "stderr": events[3]["stderr"], "exit_code": exit_code}


def test_the_rounds_of_a_user_turn_are_limited(tiny_model: Path) -> None:
    again = call("echo", text="x")
    answers, events, trajectory, _ = talk(tiny_model, [again] * 3 + [done("ok")], "Go", "Go on", max_steps=2)
    assert answers == [None, "ok"]
    assert kinds(events).count("tool_call") == 2
    assert kinds(events)[:9][-1] == "no_answer"
    assert sum(step.sampled for step in trajectory.steps) == 4


def test_a_full_context_ends_the_turn_and_nothing_is_lost(tiny_model: Path) -> None:
    replies = [call("echo", text="x" * 6000)]
    answers, events, trajectory, requests = talk(tiny_model, replies, "Go")
    assert answers == [None]
    assert kinds(events)[-1] == "context_full"
    assert "maximum context length" in events[-1]["text"]
    assert len(requests) == 1
    (unsent,) = trajectory.data["metadata"]["unsent"]
    assert "x" * 6000 in unsent["content"]


def test_the_system_prompt_does_not_move_with_the_order_of_keys() -> None:
    reordered = dict(reversed(ECHO.items()))
    for name in ("portable", "native"):
        prompt = FORMATS[name].system(parse_tools([ECHO]), PREAMBLE)
        assert FORMATS[name].system(parse_tools([reordered]), PREAMBLE) == prompt
        assert "\n- echo(text: string) Print text\n" in prompt


@pytest.fixture
def stdin(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    return lambda text: monkeypatch.setattr(sys, "stdin", io.StringIO(text))


def command(model: Path, tmp_path: Path, replies: Sequence[str], **options: Any) -> tuple[int, Path]:
    tools = tmp_path / "tools.json"
    tools.write_text(json.dumps({"tools": [ECHO]}))
    given = AgentOptions(tools=str(tools), trajectory_dir=str(tmp_path / "kept"), **options)
    code, _ = serve(model, replies, lambda url: Agent(url, given, shows_tools=False).run())
    return code, tmp_path / "kept"


def test_single_prints_the_answer_and_keeps_transcript_and_trajectory(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    transcript = tmp_path / "t.jsonl"
    replies = [call("echo", text="hi"), done("echoed é")]
    code, kept = command(
        tiny_model, tmp_path, replies, single="Use it", transcript=str(transcript), trajectory_task="smoke"
    )
    assert code == 0
    assert capsys.readouterr().out == "echoed é\n"
    events = [json.loads(line) for line in transcript.read_text().splitlines()]
    assert kinds(events) == ["user", "assistant", "tool_call", "tool_result", "assistant", "answer"]
    (path,) = kept.iterdir()
    assert path.name.startswith("smoke-")
    read = atraj.read(path)
    assert read.task == "smoke"
    assert atraj.dump(read) == path.read_bytes()


def test_json_out_prints_events_without_tool_results(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command(tiny_model, tmp_path, [call("echo", text="hi"), "gibberish {"], single="Go", json_out=True)
    events = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert kinds(events) == ["user", "assistant", "tool_call", "assistant", "answer"]
    assert events[-1] == {"type": "answer", "text": "gibberish {"}


def test_the_repl_confirms_starts_afresh_and_quits(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], stdin: Callable[[str], None]
) -> None:
    stdin("first\nn\n\n" + "y" * 9000 + "\ny\nsecond\n:quit\nnever\n")
    replies = [call("echo", text="hi"), done("refused"), done("fresh")]
    code, kept = command(tiny_model, tmp_path, replies, confirm_tools=True)
    assert code == 0
    captured = capsys.readouterr()
    assert captured.out == "agent> refused\nagent> fresh\n"
    assert 'run echo {"text": "hi"}? [y/N]' in captured.err
    assert "maximum context length" in captured.err
    contents = [[step.content for step in atraj.read(path).steps] for path in kept.iterdir()]
    assert sorted(len(one) for one in contents) == [3, 5]
    assert any("the user refused this call" in text for one in contents for text in one)


def test_the_repl_ends_with_its_input(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], stdin: Callable[[str], None]
) -> None:
    stdin("hello")
    assert command(tiny_model, tmp_path, ["just text"])[0] == 0
    assert capsys.readouterr().out == "agent> just text\n"


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["nomodel"], "nomodel is no folder: MODEL is"),
        (["EMPTY"], "has no config.json, so it is not a Hugging Face model folder"),
        (["http://127.0.0.1:9", "--prompt-cache-dir", "cache"], "--prompt-cache-dir is for a model folder"),
        (["http://127.0.0.1:9", "--sglang-dtype", "float32"], "--sglang flags are for a model folder"),
        (["http://127.0.0.1:9", "--tool-format", "bash"], "needs a tool called bash"),
        (["http://127.0.0.1:9", "--max-tokens", "0"], "--max-tokens 0: must be at least 1"),
        (["http://127.0.0.1:9", "--temperature", "-1"], "--temperature -1.0: must be at least 0"),
        (["http://127.0.0.1:9", "--single", " "], "--single: there is no text"),
        (["http://127.0.0.1:9", "--single", "Go"], "no answer from the session server at http://127.0.0.1:9"),
    ],
)
def test_a_mistake_is_named_before_servers_start(tmp_path: Path, argv: list[str], words: str) -> None:
    (tmp_path / "tools.json").write_text(json.dumps([ECHO]))
    with pytest.raises(UserError, match=re.escape(words)):
        main([*(word.replace("EMPTY", str(tmp_path)) for word in argv), "--tools", str(tmp_path / "tools.json")])


@pytest.mark.parametrize("reply", ["hello", {"id": "x"}, ["x"]])
def test_a_server_of_something_else_is_named(reply: Any) -> None:
    with (
        http_server(lambda request: reply) as url,
        pytest.raises(UserError, match=f"{url} is no session server"),
        AgentSession(url),
    ):
        pass


def test_a_folder_that_cannot_be_made_is_said_before_the_model_speaks(tiny_model: Path, tmp_path: Path) -> None:
    (tmp_path / "kept").write_text("a file")
    with pytest.raises(UserError, match="--trajectory-dir: cannot make"):
        command(tiny_model, tmp_path, [], single="Go")


def test_a_task_with_a_slash_names_a_file_of_the_folder(tiny_model: Path, tmp_path: Path) -> None:
    _, kept = command(tiny_model, tmp_path, ["text"], single="Go", trajectory_task="../a/b")
    (path,) = kept.iterdir()
    assert path.name.startswith("..-a-b-")
    assert atraj.read(path).task == "../a/b"


def test_a_conversation_without_a_reply_leaves_no_file(
    tiny_model: Path, tmp_path: Path, stdin: Callable[[str], None]
) -> None:
    stdin(":quit\n")
    code, kept = command(tiny_model, tmp_path, [])
    assert code == 0
    assert list(kept.iterdir()) == []


def test_ctrl_c_in_a_tool_ends_the_session_and_keeps_what_was_said(tiny_model: Path, tmp_path: Path) -> None:
    (tmp_path / "stop.py").write_text("def stop():\n    raise KeyboardInterrupt\n")
    tools = tmp_path / "tools.json"
    tools.write_text(json.dumps([{"name": "stop", "_handler": f"{tmp_path / 'stop.py'}:stop"}]))
    given = AgentOptions(tools=str(tools), single="Go", trajectory_dir=str(tmp_path / "kept"))

    def act(url: str) -> int:
        with pytest.raises(KeyboardInterrupt):
            Agent(url, given, shows_tools=False).run()
        return int(httpx.get(f"{url}/health").json()["sessions"])

    sessions, _ = serve(tiny_model, [call("stop")], act)
    assert sessions == 0
    (path,) = (tmp_path / "kept").iterdir()
    assert [step.role for step in atraj.read(path).steps] == ["system", "user", "assistant"]


BASH = {
    "name": "bash",
    "parameters": {"type": "object", "properties": {"command": {"type": "string"}}, "required": ["command"]},
    "_exec": 'eval "$command" 2>&1',
}


def block(command: str) -> str:
    return f"THOUGHT: go\n```bash\n{command}\n```"


def test_fenced_bash_blocks_are_calls_and_a_submission_is_the_answer(tiny_model: Path) -> None:
    replies = [block("echo 'a'; nosuchcommand"), block(f"echo {SUBMIT}\necho 'what was done'")]

    def act(url: str) -> Any:
        events: list[dict[str, Any]] = []
        with AgentSession(url) as session, Shell() as shell:
            given: dict[str, Any] = {"preamble": "Fix the bug.", "format": FORMATS["bash"]}
            conversation = Conversation(session, parse_tools([BASH]), shell, events.append, **given)
            return conversation.say("f is wrong"), events, conversation.trajectory()

    (answer_, events, trajectory), _ = serve(tiny_model, replies, act)
    assert answer_ == "what was done\n"
    assert kinds(events) == ["user", *["assistant", "tool_call", "tool_result"] * 2, "answer"]
    assert trajectory.steps[0].content == "Fix the bug."
    assert trajectory.steps[3].content.startswith("exit 127\na\n")
    assert trajectory.data["steps"][2]["tool_call"]["name"] == "bash"
    assert len(trajectory.data["metadata"]["unsent"]) == 1


def test_the_bash_format_needs_its_tool() -> None:
    with pytest.raises(UserError, match="needs a tool called bash"):
        FORMATS["bash"].system(parse_tools([ECHO]), PREAMBLE)


def test_a_session_of_somebody_else_is_joined_and_left_open(tiny_model: Path) -> None:
    def act(url: str) -> Any:
        with AgentSession(url) as session:
            base_url = f"{url}/sessions/{session.session_id}/v1"
            for _ in range(2):
                with AgentSession.joining(base_url, request={"max_tokens": 5}) as joined:
                    joined.chat([{"role": "user", "content": "Go"}])
            return len(session.turns()["turns"])

    turns, running = serve(tiny_model, ["a", "b"], act)
    assert turns == 2
    assert [request["sampling_params"]["max_new_tokens"] for request in running.engine.requests] == [5, 5]
    with pytest.raises(UserError, match="ends in /sessions/ID/v1"):
        AgentSession.joining("http://127.0.0.1:1/v1")


@pytest.mark.parametrize(("name", "stops"), [("portable", True), ("native", False), ("bash", False)])
def test_the_portable_format_samples_nothing_after_the_object(tiny_model: Path, name: str, stops: bool) -> None:
    tool = {"name": "bash", "parameters": {"type": "object", "properties": {"command": {}}, "required": ["command"]}}
    text = done("yes") + " and a tail"

    def act(url: str) -> list[dict[str, Any]]:
        tools = parse_tools([{**tool, "_exec": "true"}], where="t")
        with AgentSession(url) as session, Shell() as shell:
            conversation = Conversation(session, tools, shell, lambda event: None, format=FORMATS[name])
            conversation.say("go")
            return list(session.turns()["turns"])

    (turn,), _ = serve(tiny_model, [text], act)
    assert turn["reply"]["content"] == (done("yes") if stops else text)


def test_a_kv_cache_per_conversation_is_not_ours(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    tools = tmp_path / "tools.json"
    tools.write_text(json.dumps([ECHO]))
    Agent("http://127.0.0.1:9", AgentOptions(tools=str(tools), kv_preallocate=False), shows_tools=False)
    assert "--no-kv-preallocate changes nothing here" in capsys.readouterr().err
