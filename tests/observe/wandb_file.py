"""What wandb wrote on this disk: records of its protocol, in the log format of LevelDB
(https://github.com/google/leveldb/blob/main/doc/log_format.md) behind a header of seven bytes."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from wandb.proto import wandb_internal_pb2

HEADER, BLOCK, PART = 7, 1 << 15, 7
WHOLE, LAST = 1, 4


def records(path: Path, kind: str) -> list[Any]:
    """Those of a kind, in their order."""
    found = []
    for data in _data(path.read_bytes()):
        record = wandb_internal_pb2.Record()
        record.ParseFromString(data)
        if record.WhichOneof("record_type") == kind:
            found.append(getattr(record, kind))
    return found


def _data(whole: bytes) -> Iterator[bytes]:
    at, parts = HEADER, b""
    while at + PART <= len(whole):
        left = BLOCK - at % BLOCK
        if left < PART:
            at += left
            continue
        _, length, place = struct.unpack_from("<IHB", whole, at)
        parts += whole[at + PART : at + PART + length]
        at += PART + length
        if place in (WHOLE, LAST):
            yield parts
            parts = b""
