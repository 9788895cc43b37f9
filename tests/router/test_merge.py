from __future__ import annotations

import base64
from typing import Any

import numpy as np
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from miles_lite.config.choices import WorkerType
from miles_lite.process.server_sent_events import Events, payload
from miles_lite.router.backend import Worker
from miles_lite.router.merge import merged, merged_event, prompts_of, spliced
from miles_lite.router.pairs import with_room

PREFILL = Worker("http://10.0.0.7:1", WorkerType.PREFILL, 8998)


def rows(array: np.ndarray) -> str:
    return base64.b64encode(array.astype(np.int32).tobytes()).decode()


def halves(prompt: int, output: int, start: int, seed: int = 0) -> tuple[dict, dict, dict]:
    """meta_info of a prefill worker, of a decode worker, and what one engine would have said."""
    random = np.random.default_rng(seed)
    true = random.integers(0, 8, (prompt + output - 1 - start, 2, 2))
    stale = true.copy()
    stale[: prompt - start] = 99
    logprobs = [[None, 1, None]] + [[-float(value), 2, None] for value in random.random(prompt - 1)]
    common = {"prompt_tokens": prompt, "weight_version": "4"}
    prefill = common | {
        "input_token_logprobs": logprobs,
        "output_token_logprobs": [[-1.0, 5, None]],
        "cached_tokens": seed,
        "cached_tokens_details": None,
        "weight_versions": [{"version": "4", "start": 0, "end": 1}],
        "routed_experts": rows(true[: prompt - start]),
    }
    decode = common | {
        "input_token_logprobs": [],
        "output_token_logprobs": [[-1.0, 5, None]] * output,
        "cached_tokens": 1,
        "cached_tokens_details": None,
        "weight_versions": [{"version": "4", "start": 0, "end": output}],
        "routed_experts": rows(stale),
    }
    whole = decode | {"input_token_logprobs": logprobs, "cached_tokens": seed, "routed_experts": rows(true)}
    return prefill, decode, whole


lengths = st.tuples(st.integers(1, 9), st.integers(1, 5), st.integers(0, 9)).filter(lambda case: case[2] <= case[0])


@given(st.lists(lengths, min_size=1, max_size=3), st.sampled_from(["one", "batch", "choices", "stream"]))
def test_merged_halves_are_what_one_engine_says(cases, form):
    used = enumerate(cases[:1] if form == "one" else cases)
    metas = [halves(prompt, output, start, seed=index) for index, (prompt, output, start) in used]
    replies: list[Any] = []
    for which in range(3):
        each = [{"text": "t", "meta_info": meta[which]} for meta in metas]
        if form == "choices":
            replies.append({"choices": [{"index": index, **one} for index, one in enumerate(each)]})
        elif form == "stream":
            replies.append([{**one, "index": index} for index, one in enumerate(each)])
        else:
            replies.append(each[0] if form == "one" else each)
    prefill, decode, whole = replies
    if form == "stream":
        prompts = prompts_of(prefill)
        events = [merged_event(b"data: " + orjson.dumps(event), prompts) for event in decode]
        assert [orjson.loads(event[6:]) for event in events] == whole
    else:
        assert orjson.loads(merged(orjson.dumps(decode), prompts_of([prefill]))) == whole


@given(st.binary(min_size=1), st.binary())
def test_base64_is_spliced_at_any_byte(first, rest):
    whole = bytes(len(first)) + rest
    texts = [base64.b64encode(value).decode() for value in (first, whole, first + rest)]
    assert spliced(texts[0], texts[1]) == texts[2]


def test_the_token_that_prefill_sampled_has_its_version():
    prefill, decode, _ = halves(4, 3, 0)
    decode["weight_versions"] = [{"version": "5", "start": 0, "end": 3}]
    answer = orjson.loads(merged(orjson.dumps({"meta_info": decode}), prompts_of([{"meta_info": prefill}])))
    assert answer["meta_info"]["weight_versions"] == [
        {"version": "4", "start": 0, "end": 1},
        {"version": "5", "start": 1, "end": 3},
    ]


def test_what_cannot_be_completed_keeps_its_bytes():
    body = b'{ "text": "a",  "meta_info": {"weight_version": "1", "input_token_logprobs": []} }'
    assert merged(body, prompts_of([{"text": "", "meta_info": {"weight_version": "1"}}])) is body
    assert merged_event(b"data: [DONE]", {}) == b"data: [DONE]\n\n"
    assert merged_event(b": ping", {}) == b": ping\n\n"


def test_the_experts_of_a_chat_stream_are_merged_too():
    prefill, decode, whole = halves(4, 3, 0)
    experts = [{"choices": [], "sglext": {"routed_experts": meta["routed_experts"]}} for meta in (prefill, decode)]
    event = merged_event(b"data: " + orjson.dumps(experts[1]), prompts_of(experts[:1]))
    assert orjson.loads(event[6:])["sglext"]["routed_experts"] == whole["routed_experts"]


@given(st.lists(st.binary(min_size=1).filter(lambda one: b"\n" not in one), max_size=6), st.data())
def test_events_are_found_however_the_stream_is_cut(events, data):
    stream = b"".join(event + b"\n\n" for event in events) + b"rest"
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=6)))
    reader, found = Events(), []
    for begin, end in zip([0, *cuts], [*cuts, len(stream)], strict=True):
        found += reader.feed(stream[begin:end])
    assert (found, reader.rest) == (events, b"rest")
    assert payload(b'data: {"a": 1}') == b'{"a": 1}'


@pytest.mark.parametrize(
    "body",
    [
        b"{}",
        b'  {"input_ids": [1, 2], "x": 0.10}\n',
        b'{"a": {"n": 3}, "n": 1}',
        b'{"n": "2", "sampling_params": [null, {"n": [2]}]}',
    ],
)
def test_a_body_gets_a_room_and_keeps_every_byte(body):
    sent = with_room(body, PREFILL)
    assert sent.startswith(body.strip()[:-1])
    fields = orjson.loads(sent)
    assert (fields["bootstrap_host"], fields["bootstrap_port"]) == ("10.0.0.7", 8998)
    assert fields["bootstrap_room"] != orjson.loads(with_room(body, PREFILL))["bootstrap_room"]
    assert {name for name in fields if not name.startswith("bootstrap_")} == set(orjson.loads(body))


@pytest.mark.parametrize("body", [b"[1]", b"", b'{"n": 2}', b'{"sampling_params": [{"n": 1}, {"n": 2}]}'])
def test_what_cannot_be_split_in_two_halves_is_refused(body):
    with pytest.raises(ValueError, match=r"must be a JSON object|n > 1"):
        with_room(body, PREFILL)
