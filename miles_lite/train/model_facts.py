"""What is known of a model folder before anything is started: from its files, and from the model made without memory.

Invariant: reads only, each file once; nothing here depends on the machine that trains.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from miles_lite.config.parallel import Compute
from miles_lite.errors import user_error
from miles_lite.model_folder import token_ids
from miles_lite.train.loading import empty_model, read_config, vocabulary

if TYPE_CHECKING:
    from collections.abc import Mapping

    from transformers import PreTrainedModel


@dataclass(frozen=True)
class ModelFacts:
    """Of one folder, which the flag `given_as` named."""

    folder: Path
    given_as: str

    def __str__(self) -> str:
        return f"{self.given_as} {self.folder}"

    @cached_property
    def vocabulary(self) -> int:
        """Ids that it scores: rows of its head."""
        with user_error(str(self), ValueError):  # an architecture that transformers does not know
            return vocabulary(read_config(self.folder))

    @cached_property
    def token_ids(self) -> Mapping[str, int]:
        """What its tokenizer calls them; {} where only its own code reads it."""
        return token_ids(self.folder)

    @property
    def sharded(self) -> bool:
        """Whether its weights can be read in parts."""
        return any(self.folder.glob("*.safetensors"))

    def empty(self, compute: Compute) -> PreTrainedModel:
        """A new one on the meta device. Raises UserError for what cannot be trained, as its ranks would."""
        if compute.flashes:  # whose package looks for a GPU here
            compute = replace(compute, attn_implementation="auto")
        with user_error(str(self), ValueError, ImportError):  # transformers' words for what it does not know
            return empty_model(self.folder, compute)
