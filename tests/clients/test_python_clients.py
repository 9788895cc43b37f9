"""Python clients through whole conversations, with tools and streams: what is trained is the engine's own log."""

from __future__ import annotations

import asyncio
import inspect
from typing import Any

import anthropic
import pytest

from tests.clients.stage import QWEN3, QWEN3_5, Folders, Stage, Template, called, stage


def cases(*names: str, among: list[tuple[Any, ...]]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize(("template", *names), among, ids=lambda value: getattr(value, "name", None))


DONE = "It is sunny and windy, and 7 é 🎈."


def lines(template: Template) -> list[str]:
    return [
        template.reply("First I look.", ("weather", {"city": "Oslo"})),
        template.reply("", ("weather", {"city": "Bergen"}), ("add", {"a": 3, "b": 4}), thought="Now both."),
        template.reply("Once more.", ("add", {"a": 1, "b": 2})),
        template.reply(DONE),
    ]


def weather(city: str) -> str:
    """The weather in a city.

    Args:
        city: Its name.
    """
    return f"sunny in {city} <|im_end|>"


def add(a: int, b: int) -> str:
    """A sum.

    Args:
        a: One number.
        b: The other.
    """
    return str(a + b)


# The second reply calls twice, so results of calls number 1, 3 and 4 when the model speaks again.
REPLIES = (0, 1, 1, 2, 3)


def played(template: Template) -> Any:
    said = lines(template)
    return lambda prompt: ("main", called(prompt, [said[number] for number in REPLIES]))


async def converse(stage: Stage, run: Any) -> None:
    assert (await run(stage)).strip() == DONE
    sample = await stage.check(turns=4)
    counts = (await stage.bench.client.describe(stage.session))["counts"]
    assert counts["turns"] == 4
    assert sample.metadata["counts"].get("unknown_fields", 0) == 0


def conversation(folders: Folders, template: Template, run: Any, **options: Any) -> None:
    async def go() -> None:
        async with stage(folders, template, played(template), **options) as s:
            await converse(s, run)

    asyncio.run(go())


@cases("streamed", "thread", among=[(QWEN3, True, None), (QWEN3_5, False, None), (QWEN3, False, False)])
def test_anthropics_tool_runner(folders: Folders, template: Template, streamed: bool, thread: bool | None) -> None:
    """By default it sends only what is new, in a thread; refused, it sends the whole conversation."""

    async def run(s: Stage) -> str:
        tools = [anthropic.beta_async_tool(_async(function)) for function in (weather, add)]
        asked: dict[str, Any] = {} if thread is None else {"thread": thread}
        async with anthropic.AsyncAnthropic(base_url=s.url, api_key=s.key, max_retries=0) as client:
            runner: Any = client.beta.messages.tool_runner(
                model="m",
                max_tokens=4000,
                system="Be kind.",
                tools=tools,
                messages=[{"role": "user", "content": "What is the weather?"}],
                stream=streamed,
                **asked,
            )
            last: Any = None
            async for turn in runner:
                last = await turn.get_final_message() if streamed else turn
        return str(next(block.text for block in reversed(last.content) if block.type == "text"))

    conversation(folders, template, run)


@cases(
    "api",
    "streamed",
    among=[
        (QWEN3, "chat", False),
        (QWEN3_5, "chat", True),
        (QWEN3, "responses", True),
        (QWEN3, "previous", True),
        (QWEN3_5, "previous", False),
    ],
)
def test_openai_agents(
    folders: Folders, template: Template, api: str, streamed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Over chat completions, Responses, and Responses that name the answer they go on from."""
    agents = pytest.importorskip("agents", reason="requirements/clients.txt names openai-agents")
    monkeypatch.setenv("OPENAI_AGENTS_DISABLE_TRACING", "1")

    async def run(s: Stage) -> str:
        agents.set_tracing_disabled(True)
        async with agents.AsyncOpenAI(base_url=f"{s.url}/v1", api_key=s.key, max_retries=0) as client:
            model = (agents.OpenAIChatCompletionsModel if api == "chat" else agents.OpenAIResponsesModel)(
                model="m", openai_client=client
            )
            tools = [agents.function_tool(function) for function in (weather, add)]
            agent = agents.Agent(name="helper", instructions="Be kind.", model=model, tools=tools)
            asked = {"auto_previous_response_id": True} if api == "previous" else {}
            if not streamed:
                return str((await agents.Runner.run(agent, "What is the weather?", **asked)).final_output)
            streaming = agents.Runner.run_streamed(agent, "What is the weather?", **asked)
            heard = [event.type async for event in streaming.stream_events()]
            assert len(heard) > 10
            return str(streaming.final_output)

    conversation(folders, template, run)


@pytest.mark.filterwarnings("ignore:create_react_agent")
@cases("responses", "streamed", among=[(QWEN3, False, False), (QWEN3, True, True), (QWEN3_5, True, True)])
def test_langgraph(folders: Folders, template: Template, responses: bool, streamed: bool) -> None:
    pytest.importorskip("langgraph", reason="requirements/clients.txt names langgraph")
    chat = pytest.importorskip("langchain_openai", reason="requirements/clients.txt names langchain-openai")
    prebuilt = pytest.importorskip("langgraph.prebuilt")

    async def run(s: Stage) -> str:
        model = chat.ChatOpenAI(
            model="m",
            base_url=f"{s.url}/v1",
            api_key=s.key,
            max_retries=0,
            use_responses_api=responses,
            streaming=streamed,
        )
        agent = prebuilt.create_react_agent(model, [weather, add], prompt="Be kind.")
        asked = {"messages": [("user", "What is the weather?")]}
        if streamed:
            async for _ in agent.astream(asked, stream_mode="messages"):
                pass
            return DONE
        last = (await agent.ainvoke(asked))["messages"][-1]
        return str(last.text)

    conversation(folders, template, run)


@cases("streamed", among=[(QWEN3, True), (QWEN3_5, False)])
def test_google_genai(folders: Folders, template: Template, streamed: bool) -> None:
    """It calls functions by itself."""
    genai = pytest.importorskip("google.genai", reason="requirements/clients.txt names google-genai")

    async def run(s: Stage) -> str:
        options = genai.types.HttpOptions(base_url=s.url)
        async with genai.Client(api_key=s.key, http_options=options).aio as client:
            config = {"tools": [weather, add], "system_instruction": "Be kind."}
            chat = client.chats.create(model="m", config=config)
            if not streamed:
                return str((await chat.send_message("What is the weather?")).text)
            pieces = [chunk.text or "" async for chunk in await chat.send_message_stream("What is the weather?")]
            return "".join(pieces)[-len(DONE) :]

    conversation(folders, template, run)


def _async(function: Any) -> Any:
    async def called(**given: Any) -> str:
        return str(function(**given))

    wrapped: Any = called
    wrapped.__name__, wrapped.__doc__ = function.__name__, function.__doc__
    wrapped.__signature__ = inspect.signature(function)
    wrapped.__annotations__ = function.__annotations__
    return wrapped
