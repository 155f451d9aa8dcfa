"""Where rows lie, for millions of them: eight bytes a row, where a list of tuples takes a hundred."""

from array import array
from collections.abc import Iterable, Iterator, Sequence
from typing import overload

RowRef = tuple[str, int]
"""Where a row lies: a file in the run's store, and the row's index in it."""


class RowRefs(Sequence[RowRef]):
    """A list of RowRef that only grows; equal to any sequence of the same ones."""

    def __init__(self, refs: Iterable[RowRef] = ()):
        self._paths: list[str] = []
        self._place_of: dict[str, int] = {}
        self._files = array("i")
        self._rows = array("i")
        for ref in refs:
            self.append(ref)

    def append(self, ref: RowRef) -> None:
        """Add one at the end."""
        path, row = ref
        place = self._place_of.setdefault(path, len(self._paths))
        if place == len(self._paths):
            self._paths.append(path)
        self._files.append(place)
        self._rows.append(row)

    def __len__(self) -> int:
        return len(self._rows)

    @overload
    def __getitem__(self, index: int) -> RowRef: ...

    @overload
    def __getitem__(self, index: slice) -> "RowRefs": ...

    def __getitem__(self, index: int | slice) -> "RowRef | RowRefs":
        if isinstance(index, slice):
            return RowRefs(self[i] for i in range(*index.indices(len(self))))
        return self._paths[self._files[index]], self._rows[index]

    def __iter__(self) -> Iterator[RowRef]:
        return ((self._paths[file], row) for file, row in zip(self._files, self._rows, strict=True))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Sequence):
            return NotImplemented
        return len(self) == len(other) and all(one == another for one, another in zip(self, other, strict=True))

    def __repr__(self) -> str:
        return f"RowRefs({list(self)})"
