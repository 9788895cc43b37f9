"""Supervised examples: rows of ids and loss masks, as `miles-lite traces to-data` writes them, dealt out in batches.

Invariant: which rows a step takes depends on the file, the seed and the step alone, so that a resumed run goes on with
the rows it stopped before; every row is taken once per epoch. Ids are trained as they are stored.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import orjson

from miles_lite.config.options import Config
from miles_lite.errors import UserError, user_error
from miles_lite.model_folder import foreign_id
from miles_lite.sample import NOT_SAMPLED, LocalSamples, Rollout, Sample


class Examples:
    """The rows of --prompt-data, `--rollout-batch-size` per step."""

    def __init__(self, config: Config, *, context: int, vocabulary: int) -> None:
        """Of a model that reads `context` tokens at once, of `vocabulary` ids. Raises UserError naming the line of a
        row that cannot be trained."""
        self._config = config
        self._samples = _read(Path(config.data.prompt_data).expanduser(), context, vocabulary)

    @property
    def steps(self) -> int:
        """Steps of the run: --num-rollout, else whole epochs."""
        options = self._config.rollouts
        epochs = options.num_epoch or 1
        return options.num_rollout or -(-len(self._samples) * epochs // options.rollout_batch_size)

    def rollouts(self, step: int) -> list[Rollout]:
        """The rows of a step as rollouts of one sample, which nobody judges."""
        size = self._config.rollouts.rollout_batch_size
        samples = ((place, self._at(place)) for place in range(step * size, (step + 1) * size))
        return [
            Rollout(index=place, group_index=place, samples=[sample.record()], stored=LocalSamples((sample,)))
            for place, sample in samples
        ]

    def _at(self, place: int) -> Sample:
        epoch, offset = divmod(place, len(self._samples))
        if not self._config.data.rollout_shuffle:
            return self._samples[offset]
        order = np.random.default_rng([self._config.data.rollout_seed, epoch]).permutation(len(self._samples))
        return self._samples[int(order[offset])]


def _read(path: Path, context: int, vocabulary: int) -> list[Sample]:
    with user_error(f"--prompt-data: cannot read {path}", OSError):
        lines = path.read_bytes().splitlines()
    samples = []
    for number, line in enumerate(lines, 1):
        where = f"--prompt-data: {path}, line {number}"
        needed = f"{where}: needs input_ids and loss_mask, as `miles-lite traces to-data --format sft` writes them"
        with user_error(needed, KeyError, TypeError, ValueError):
            row = orjson.loads(line)
            ids, mask = np.asarray(row["input_ids"], np.int32), np.asarray(row["loss_mask"], np.uint8)
        if ids.ndim != 1 or ids.shape != mask.shape or mask.max(initial=0) > 1:
            raise UserError(f"{where}: input_ids and loss_mask (0 or 1) must be lists of one length")
        if len(ids) > context:
            raise UserError(f"{where}: {len(ids)} tokens, but the model's context is {context}")
        if (strange := foreign_id(ids, vocabulary)) is not None:
            raise UserError(f"{where}: {strange}")
        if mask.any():
            samples.append(example(ids, mask))
    if not samples:
        raise UserError(f"--prompt-data: {path} holds no row with a trained token")
    return samples


def example(ids: np.ndarray, mask: np.ndarray) -> Sample:
    """Ids to imitate where `mask` is 1: temperature 1 and no engine's logprobs, as no engine sampled them.

    ids: int32 [T]; mask: uint8 [T].
    """
    return Sample(
        tokens=ids,
        loss_mask=mask,
        logprobs=np.zeros(len(ids), np.float32),
        temperatures=np.ones(len(ids), np.float32),
        weight_versions=np.where(mask == 1, 0, NOT_SAMPLED).astype(np.int32),
    )
