"""Sequences whose items are made when they are asked for, one place at a time."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import TypeVar, overload

T = TypeVar("T", covariant=True)


class ByPlace(Sequence[T]):
    """A subclass says how many there are and what is `at` a place; a slice is a list of those."""

    @abstractmethod
    def at(self, place: int) -> T:
        """The item of one place. Raises IndexError beyond the end."""

    @overload
    def __getitem__(self, place: int) -> T: ...
    @overload
    def __getitem__(self, place: slice) -> Sequence[T]: ...
    def __getitem__(self, place: int | slice) -> T | Sequence[T]:
        if isinstance(place, slice):
            return [self.at(each) for each in range(len(self))[place]]
        return self.at(place)
