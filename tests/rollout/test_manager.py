from __future__ import annotations

from miles_lite.config import parse
from miles_lite.rollout.manager import eval_sampling, sampling

NEEDED = "--hf-checkpoint m --prompt-data p --rollout-batch-size 1 --num-rollout 1".split()


def test_sampling_flags_reach_the_engines() -> None:
    given = "--rollout-temperature 0.7 --rollout-top-p 0.9 --rollout-top-k 5 --rollout-max-response-len 7".split()
    config, _ = parse([*NEEDED, *given, "--rollout-stop", "END", "STOP"])
    asked = {"temperature": 0.7, "top_p": 0.9, "top_k": 5, "max_new_tokens": 7, "stop": ["END", "STOP"]}
    assert sampling(config.rollouts) == asked
    assert eval_sampling(config.evaluation) == {}


def test_held_out_prompts_are_sampled_as_their_flags_say() -> None:
    given = "--eval-temperature 0 --eval-top-p 0.5 --eval-max-response-len 9".split()
    config, _ = parse([*NEEDED, *given])
    assert eval_sampling(config.evaluation) == {"temperature": 0.0, "top_p": 0.5, "max_new_tokens": 9}
