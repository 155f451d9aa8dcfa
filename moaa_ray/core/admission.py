"""Which block of rows enters the line next, and how many may be in it at once.

Blocks are handed out against tickets; a block takes a credit when it enters and gives it back when it
is committed, so that the work a kill can lose is at most the credits. Rows with user turns to come
are queued again when their block is committed. Everything is keyed, so that a repeated call (Ray may
deliver one twice) changes nothing.
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from moaa_ray.core.row_refs import RowRef, RowRefs


@dataclass(frozen=True, kw_only=True)
class WorkBlock:
    """Rows that go through the line together. turn is the user turn they are at, from 0."""

    key: str
    turn: int
    refs: Sequence[RowRef]


class Admission:
    """Hands out blocks while there are credits."""

    def __init__(self, blocks: list[WorkBlock], *, num_credits: int, block_rows: int):
        self._queue = deque(blocks)
        self._num_credits = num_credits
        self._block_rows = block_rows
        self._in_line: dict[int, WorkBlock] = {}
        self._ticket_of: dict[str, int] = {}
        self._spent: set[int] = set()
        self._committed: set[str] = set()
        self._coming: dict[int, list[RowRef]] = {}
        self._num_requeued = 0
        self._is_stopped = False
        self.num_rows_in_line = 0

    @property
    def num_in_line(self) -> int:
        """Blocks admitted and not committed: what a kill would lose."""
        return len(self._in_line)

    def stop(self) -> None:
        """Admit nothing more; what is in the line may finish."""
        self._is_stopped = True

    def admit(self, ticket: int) -> WorkBlock | None:
        """The block for a ticket; None: none now (see `is_over`). Same ticket, same block, until committed."""
        if ticket in self._in_line:
            return self._in_line[ticket]
        if ticket in self._spent or self._is_stopped or self.num_in_line >= self._num_credits:
            return None
        if not self._queue and 2 * self.num_in_line <= self._num_credits:
            self._queue_coming()  # not before: rows that come a moment later make fuller blocks
        if not self._queue:
            return None
        block = self._queue.popleft()
        self._in_line[ticket] = block
        self._ticket_of[block.key] = ticket
        self.num_rows_in_line += len(block.refs)
        return block

    def commit(self, key: str, coming: list[RowRef], turn: int) -> None:
        """A block was committed; `coming` are its rows that have another user turn, at `turn`."""
        if self.is_committed(key):
            return
        self._committed.add(key)
        ticket = self._ticket_of.pop(key)
        block = self._in_line.pop(ticket)
        self._spent.add(ticket)
        self.num_rows_in_line -= len(block.refs)
        if coming:
            self._coming.setdefault(turn, []).extend(coming)
            if len(self._coming[turn]) >= self._block_rows:
                full, self._coming[turn] = (
                    self._coming[turn][: self._block_rows],
                    self._coming[turn][self._block_rows :],
                )
                self._queue_rows(turn, full)

    def is_spent(self, ticket: int) -> bool:
        """Whether this ticket's block is committed.

        A call repeated after that gets no other block: Ray has the first call's result, so another's would be lost.
        """
        return ticket in self._spent

    def is_committed(self, key: str) -> bool:
        """Whether this block's commit has been counted."""
        return key in self._committed

    @property
    def is_over(self) -> bool:
        """Nothing is waiting and nothing in the line can bring more."""
        waiting = self._queue or any(self._coming.values())
        return self._is_stopped or not (waiting or self._in_line)

    def _queue_coming(self) -> None:
        for turn in sorted(self._coming):
            if refs := self._coming.pop(turn):
                self._queue_rows(turn, refs)

    def _queue_rows(self, turn: int, refs: list[RowRef]) -> None:
        self._num_requeued += 1
        self._queue.append(WorkBlock(key=f"t{turn}-{self._num_requeued:06d}", turn=turn, refs=RowRefs(refs)))


def num_tickets(blocks: list[WorkBlock], num_rows_by_turn: dict[int, int]) -> int:
    """Tickets that are enough for these blocks and for every block their later turns can bring.

    Each commit brings at most one block of the next turn, so a turn has at most as many blocks as the
    turn before, and no more than rows that reach it. Args: rows that have a turn t, for t from 1 on.
    """
    total = last = len(blocks)
    for turn in sorted(num_rows_by_turn):
        last = min(last, num_rows_by_turn[turn])
        total += last
    return total
