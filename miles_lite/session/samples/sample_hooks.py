"""The user's functions between a session's leaves and its samples: `fn(samples, session_metadata) -> list[Sample]`.

Invariant: whatever such a function does wrong is an ApiError 422 that names its flag and path; the tree never sees it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from miles_lite.hooks import load_hook
from miles_lite.process.json_types import Json, JsonMapping, JsonObject
from miles_lite.sample import Sample
from miles_lite.session.errors import ApiError


@dataclass(frozen=True, slots=True)
class SampleHook:
    """A function and the flag that named it."""

    flag: str
    path: str
    function: Callable[[list[Sample], JsonObject], Json]

    def __call__(self, samples: Sequence[Sample], metadata: JsonMapping) -> list[Sample]:
        """The samples it returned. Raises ApiError 422."""
        try:
            returned = self.function(list(samples), dict(metadata))
        except Exception as error:
            raise self.failed(f"raised {type(error).__name__}: {error}") from error
        if not isinstance(returned, list) or not all(isinstance(sample, Sample) for sample in returned):
            raise self.failed(f"returned {type(returned).__name__}, not a list of samples")
        return returned

    def pick(self, samples: Sequence[Sample], metadata: JsonMapping) -> list[Sample]:
        """Those of `samples` that it chose. Raises ApiError 422 for others, and for one that is chosen twice."""
        chosen = self(samples, metadata)
        given, taken = {id(sample) for sample in samples}, {id(sample) for sample in chosen}
        if len(taken) < len(chosen) or not taken <= given:
            raise self.failed("returned samples it was not given, or one of them twice")
        return chosen

    def validate(self, samples: Sequence[Sample]) -> list[Sample]:
        """The samples it made, checked. Raises ApiError 422."""
        try:
            return [sample.validate(f"sample {index}") for index, sample in enumerate(samples)]
        except ValueError as error:
            raise self.failed(f"made a sample that cannot be trained: {error}") from error

    def failed(self, what: str) -> ApiError:
        return ApiError(422, f"{self.flag} {self.path} {what}", code="sample_hook_failed")


def load_sample_hook(path: str | None, *, flag: str) -> SampleHook | None:
    """Raises UserError for a path that leads to no function."""
    return None if path is None else SampleHook(flag, path, load_hook(path, flag=flag))
