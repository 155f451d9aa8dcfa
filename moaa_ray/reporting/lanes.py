"""The pipeline's timeline: a lane for every pool and every training stage, all on one axis of time.

Long times in which nothing of the run was at work, as between two starts, are cut out of the axis.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

from markupsafe import Markup

from moaa_ray.generation.progress import duration
from moaa_ray.generation.timeline import Moment
from moaa_ray.reporting import pictures
from moaa_ray.reporting.report_stages import Span, StageFacts, merged, worked_s

_COLUMNS = 240
_GAP = 0.012
"""Width of a cut, in parts of the time shown."""
_LONG_GAP = 0.1
"""A time without work that is longer than this part of all work is cut out."""
_TICKS = 5
_SILENT_S = 3.0
"""Engines tell their counters every second."""
_BETWEEN_STEPS_S = 1.0
"""Steps that follow each other so soon are drawn as one piece."""


@dataclass(frozen=True, kw_only=True)
class Lane:
    """One pool, or the steps of a training stage."""

    name: str
    told: str
    picture: Markup


@dataclass(frozen=True, kw_only=True)
class Piece:
    """A stretch of time in which a pool did one thing."""

    span: Span
    state: str
    """starting or up."""
    busy: float
    """Part of its engines' time with at least one request, 0 to 1."""


@dataclass(frozen=True, kw_only=True)
class Axis:
    """The time that is shown."""

    shown: Sequence[Span]
    gap_s: float
    """What the width of a cut stands for."""
    total_s: float
    """All that is shown, cuts included."""

    def at(self, time: float) -> float:
        """Where a time stands, from 0 to 1."""
        passed = sum(max(0.0, min(time, end) - begin) for begin, end in self.shown)
        cuts = sum(time >= begin for begin, _ in self.shown[1:])
        return (passed + cuts * self.gap_s) / self.total_s

    def time(self, place: float) -> float:
        """The time that stands at a place; within a cut, the one behind it."""
        left = place * self.total_s
        for begin, end in self.shown:
            if left <= end - begin:
                return begin + max(0.0, left)
            left -= end - begin + self.gap_s
        return self.shown[-1][1]

    def cuts(self) -> list[float]:
        """The places of the cuts' middles."""
        return [self.at(begin) - self.gap_s / self.total_s / 2 for begin, _ in self.shown[1:]]

    def ticks(self) -> list[str]:
        """What stands below the axis, evenly from its beginning to its end."""
        return [duration(self.time(i / (_TICKS - 1)) - self.shown[0][0]) for i in range(_TICKS)]


def axis_of(stages: Sequence[StageFacts]) -> Axis | None:
    """The time in which the stages worked; None where none has."""
    spans = [span for one in stages for span in one.spans]
    if not spans:
        return None
    shown = merged(spans, gap_s=_LONG_GAP * worked_s(spans))
    shown_s = worked_s(shown)
    gap_s = _GAP * shown_s
    return Axis(shown=shown, gap_s=gap_s, total_s=max(1e-9, shown_s + gap_s * (len(shown) - 1)))


def lanes_of(stage: StageFacts, axis: Axis) -> list[Lane]:
    """The lanes of one stage, in the order of its line."""
    names = dict.fromkeys(name for phase in stage.phases for moment in phase for name in moment["pools"])
    lanes = [_lane(name, _pool_pieces(stage.phases, name), _pool_told(stage.phases, name), axis) for name in names]
    if stage.steps:
        tokens, seconds = (sum(step[key] for step in stage.steps) for key in ("tokens", "seconds"))
        told = f"{len(stage.steps):,} steps, {tokens / max(1e-9, seconds):,.0f} tokens/s"
        lanes.append(_lane("steps", _step_pieces(stage), told, axis))
    return lanes


def _lane(name: str, pieces: Iterable[Piece], told: str, axis: Axis) -> Lane:
    columns = [[0.0, 0.0, 0.0] for _ in range(_COLUMNS)]  # starting, up, busy: parts of the column
    for piece in pieces:
        begin, end = (axis.at(time) * _COLUMNS for time in piece.span)
        for i in range(int(begin), min(_COLUMNS, int(end) + 1)):
            part = max(0.0, min(end, i + 1) - max(begin, i))
            columns[i][0 if piece.state == "starting" else 1] += part
            columns[i][2] += part * piece.busy
    return Lane(name=name, told=told, picture=pictures.lane(columns, axis.cuts(), f"{name}: {told}"))


def _pool_pieces(phases: Sequence[Sequence[Moment]], name: str) -> Iterator[Piece]:
    for phase in phases:
        for before, after in pairwise(_with_news(phase, name)):
            one, other = before["pools"][name], after["pools"][name]
            up_s, span = other["up_s"] - one["up_s"], (before["at"], after["at"])
            if up_s > 0:
                busy = (other["busy_s"] - one["busy_s"]) / up_s
                yield Piece(span=span, state="up", busy=min(1.0, max(0.0, busy)))
            elif one["starting"] or other["starting"] or (other["workers"] and not other["up"]):
                yield Piece(span=span, state="starting", busy=0.0)


def _with_news(phase: Sequence[Moment], name: str) -> list[Moment]:
    """The moments at which a pool has told anything; one that is silent for longer is gone, and told so by a moment."""
    kept: list[Moment] = []
    for moment in phase:
        is_new = not kept or moment["pools"][name]["up_s"] != kept[-1]["pools"][name]["up_s"]
        if is_new or moment["at"] - kept[-1]["at"] > _SILENT_S:
            kept.append(moment)
    return kept


def _pool_told(phases: Sequence[Sequence[Moment]], name: str) -> str:
    last = [phase[-1]["pools"][name] for phase in phases if phase and name in phase[-1]["pools"]]
    rows, tokens, busy_s, up_s = (
        sum(counters[key] for counters in last) for key in ("rows", "completion_tokens", "busy_s", "up_s")
    )
    busy = f"busy {busy_s / up_s:.0%} of the {duration(up_s)} that it was up" if up_s else "never up"
    speed = f", {tokens / busy_s:,.0f} tokens/s" if tokens and busy_s else ""
    return f"{rows:,} rows{speed}, {busy}"


def _step_pieces(stage: StageFacts) -> Iterator[Piece]:
    for span in merged(stage.spans, gap_s=_BETWEEN_STEPS_S):
        yield Piece(span=span, state="up", busy=1.0)
