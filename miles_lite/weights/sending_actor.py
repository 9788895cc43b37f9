"""An actor that has weights to send.

Invariant: this module imports no torch, as the driver, which only calls the actor, has none.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from miles_lite.weights.bucket import Bucket, Meeting, memory

if TYPE_CHECKING:
    import torch

    from miles_lite.weights.process_group import Group
    from miles_lite.weights.sender import Sender


class SendingActor:
    """An actor that does what a transport tells it, as `delivery.Trainer` says, with what it was given to `send`."""

    def __init__(self, *, host: str, device: torch.device) -> None:
        """Groups are joined at `host`."""
        self._host, self._device = host, device
        self._sender: Sender | None = None
        self._group: Group | None = None

    def send(self, sender: Sender) -> list[Bucket]:
        """From now on these buckets are asked for."""
        self._sender = sender
        return sender.buckets

    def memory(self) -> str:
        """See `bucket.memory`."""
        return memory()

    def prepare_bucket(self, index: int) -> None:
        """Have bucket `index` ready."""
        self._sending().prepare(index)

    def share_bucket(self, index: int, copies: int) -> list[bytes]:
        """See Sender.share."""
        return self._sending().share(index, copies=copies)

    def broadcast_bucket(self, index: int) -> None:
        """Send bucket `index` to all of the group."""
        assert self._group is not None, "join_group comes first"
        self._group.broadcast(self._sending().prepare(index))

    def open_group(self, world_size: int) -> Meeting:
        """A group for `broadcast_bucket`, to be joined by engines with the ranks from 1."""
        from miles_lite.weights.process_group import Group

        self.close_group()
        self._group = Group(host=self._host, world_size=world_size, device=self._device)
        return self._group.meeting

    def join_group(self) -> None:
        """Wait until all are in the group."""
        assert self._group is not None, "open_group comes first"
        self._group.join()

    def close_group(self) -> None:
        """Leave it."""
        group, self._group = self._group, None
        if group is not None:
            group.close()

    def _sending(self) -> Sender:
        assert self._sender is not None, "nothing is offered"
        return self._sender
