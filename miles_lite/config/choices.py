"""What an option of which several rooms know the values may be: one enumeration each, and its values are the words.

Invariant: a room that does something for each member keys a registry by it, and a test holds the two alike.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Literal, TypeAlias

Device: TypeAlias = Literal["cpu", "cuda"]
"""What a slot is."""


class Word(StrEnum):
    """A value that is its word, also where it is shown."""

    def __repr__(self) -> str:
        return repr(self.value)


class WorkerType(Word):
    """What an engine does of a request."""

    REGULAR = "regular"
    PREFILL = "prefill"
    DECODE = "decode"


class RouterKind(Word):
    """Who carries the data of requests: the router itself, or the Rust gateway under its control."""

    PYTHON = "python"
    GATEWAY = "gateway"


class PolicyName(Word):
    """Who takes a request that sticks to no engine."""

    LEAST_IN_FLIGHT = "least_in_flight"
    ROUND_ROBIN = "round_robin"
    POWER_OF_TWO = "power_of_two"


class PauseMode(Word):
    """What a weight update does to requests in flight."""

    RETRACT = "retract"
    IN_PLACE = "in_place"
    ABORT = "abort"


class TransferMode(Word):
    """How weights travel to the engines: in a model folder, in memory that both processes see, or by broadcast."""

    DISK = "disk"
    TENSOR = "tensor"
    DISTRIBUTED = "distributed"


class Level(Word):
    """What an importance ratio is of: a token, a sequence (the product of its tokens'), or its geometric mean."""

    TOKEN = "token"
    SEQUENCE = "sequence"
    GEOMETRIC = "geometric"


class Bounding(Word):
    """What becomes of a weight out of its bounds: it is set to the bound, to the upper one only, or to 0."""

    CLIP = "clip"
    TRUNCATE = "truncate"
    MASK = "mask"


class Reduction(Word):
    """Whose mean the loss is: tokens, samples, rollouts or prompts count alike, or rollouts of a constant length."""

    TOKEN = "token"
    SAMPLE = "sample"
    ROLLOUT = "rollout"
    PROMPT = "prompt"
    CONSTANT = "constant"


class KLType(Word):
    """How the divergence from the reference model is estimated."""

    K1 = "k1"
    K2 = "k2"
    K3 = "k3"
    LOW_VAR = "low_var_kl"


class RewardRule(Word):
    """A built-in reward."""

    EXACT_MATCH = "exact_match"
    CONTAINS = "contains"
    BOXED = "boxed"
    MATH = "math"
    DAPO = "dapo"
    DEEPSCALER = "deepscaler"
    GPQA = "gpqa"
    F1 = "f1"
    IFEVAL = "ifeval"
    CODE = "code"
    REMOTE_RM = "remote_rm"
    LLM_JUDGE = "llm_judge"
    RANDOM = "random"


class RoutingReplay(Word):
    """Whether training takes the experts that engines chose for each token, and whether it must have them."""

    OFF = "off"
    ON = "on"
    STRICT = "strict"
