"""Which rows to blame when an engine dies: suspects are asked again apart from all others.

After a death every row that was with the engine is a suspect. Suspects are asked in groups of about
the square root of their number with nothing else in flight; the rows of a group that kills again are
asked one by one. Only a row that died alone, and not for the first time, is quarantined. Deaths that
a row cannot have caused (a lost node, preemption, the memory monitor) make suspects but blame nobody.
Counting strikes instead would quarantine most neighbours of one poison row.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

MAX_ATTEMPTS = 3
"""Blamed deaths after which a row is not asked again in this run."""
MAX_DEATHS = 10
"""Deaths of any kind after which a row is not asked again in this run."""


@dataclass(frozen=True, kw_only=True)
class History:
    """What a row has lived through: deaths of any kind, blamed deaths, and the smallest company it died in."""

    deaths: int = 0
    blamed: int = 0
    company: int = 10**9
    is_quarantined: bool = False


@dataclass(frozen=True, kw_only=True)
class Sorting:
    """Row ids by what may be done with them; each list keeps the order asked in."""

    free: list[str] = field(default_factory=list)
    suspects: list[str] = field(default_factory=list)
    quarantined: list[str] = field(default_factory=list)
    exhausted: list[str] = field(default_factory=list)


class Suspects:
    """The histories of one pool's rows."""

    def __init__(self) -> None:
        self._histories: dict[str, History] = {}

    def sort(self, ids: Iterable[str]) -> Sorting:
        """Each id as free, suspect, quarantined, or exhausted (too many deaths without proof)."""
        sorting = Sorting()
        for row_id in ids:
            history = self._histories.get(row_id)
            if history is None:
                sorting.free.append(row_id)
            elif history.is_quarantined:
                sorting.quarantined.append(row_id)
            elif history.blamed >= MAX_ATTEMPTS or history.deaths >= MAX_DEATHS:
                sorting.exhausted.append(row_id)
            else:
                sorting.suspects.append(row_id)
        return sorting

    def died(self, open_ids: Sequence[str], *, is_blamed: bool, in_isolation: bool) -> None:
        """Record the death of an engine that held these rows; in_isolation: they were a group of suspects."""
        company = len(open_ids) if in_isolation or len(open_ids) == 1 else 10**9
        for row_id in open_ids:
            before = self._histories.get(row_id, History())
            died_alone = is_blamed and company == 1 and before.blamed >= 1
            self._histories[row_id] = History(
                deaths=before.deaths + 1,
                blamed=before.blamed + is_blamed,
                company=min(before.company, company) if is_blamed else before.company,
                is_quarantined=died_alone,
            )

    def clear(self, ids: Iterable[str]) -> None:
        """These rows were answered: they are suspects no more."""
        for row_id in ids:
            self._histories.pop(row_id, None)

    def next_group(self, ids: Sequence[str]) -> list[str]:
        """The suspects to ask next with nothing else in flight.

        Rows that never died in a group go first, about sqrt(n) at a time; then, one by one, those that did.
        """
        ungrouped = [row_id for row_id in ids if self._company(row_id) == 10**9]
        if ungrouped:
            return ungrouped[: math.isqrt(len(ungrouped) - 1) + 1]
        return list(ids[:1])

    def _company(self, row_id: str) -> int:
        return self._histories.get(row_id, History()).company
