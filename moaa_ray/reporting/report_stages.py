"""The stages of a run, and of the run directories inside it, as their files tell them: for report.html."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

from moaa_ray.data.cleanup import runs_inside
from moaa_ray.data.store import Store, open_store
from moaa_ray.generation.progress import duration
from moaa_ray.generation.timeline import Moment, read_timelines
from moaa_ray.generation.usage import total_usage
from moaa_ray.reporting.status import newest_word, what_came
from moaa_ray.run_record import read_run, read_summary
from moaa_ray.training.metrics import read_metrics

Span = tuple[float, float]
"""Unix times of a beginning and an end."""
_PARTS = ("rounds", "iterations", "judges")
EVALUATION = "evaluation"
"""Folder of the run directories of an evaluation."""


@dataclass(frozen=True, kw_only=True)
class Place:
    """A run directory: the run's own, or one inside it."""

    path: str
    """Relative to the run; empty: the run itself."""
    store: Store
    record: Mapping[str, Any]
    """Its run.json."""
    summary: Mapping[str, Any]
    """Its summary.json, by stage."""

    @property
    def title(self) -> str:
        """For people, as in round 2, judge jury, answers of dpo; empty for the run itself."""
        parts = self.path.split("/")
        if parts[0] == EVALUATION and len(parts) == 3:
            return f"answers of {parts[2]}" if parts[1] == "answers" else f"judge {parts[2]}"
        kinds, names = parts[::2], parts[1::2]
        if len(kinds) != len(names) or not set(kinds) <= set(_PARTS):
            return self.path
        return ", ".join(f"{kind[:-1]} {name}" for kind, name in zip(kinds, names, strict=True))


@dataclass(frozen=True, kw_only=True)
class StageFacts:
    """One stage in one run directory."""

    stage: str
    title: str
    is_done: bool
    at: float
    """When it was last begun or ended; unix time."""
    told: str
    """What came of it, or how far it is."""
    facts: Mapping[str, Any]
    """Its part of summary.json; empty while it runs."""
    usage: Sequence[Mapping[str, Any]]
    """By pool, over all starts."""
    phases: Sequence[Sequence[Moment]]
    """Of its pools."""
    steps: Sequence[Mapping[str, Any]]
    """Of training."""

    @property
    def spans(self) -> list[Span]:
        """When it worked: every phase of every start, or every step."""
        phases = [(phase[0]["at"], phase[-1]["at"]) for phase in self.phases if phase]
        return phases + [(step["time"] - step["seconds"], step["time"]) for step in self.steps]


def places_of(run: str) -> list[Place]:
    """The run directory and those inside it. Raises ConfigError where there is no run."""
    whole = open_store(run)
    paths = [path for path in runs_inside(whole) if path != "run.json"]
    return [_place(whole, ""), *(_place(open_store(f"{whole.uri}/{path}"), path) for path in paths)]


def stages_of(places: Sequence[Place]) -> list[StageFacts]:
    """Every stage that has begun anywhere, in the order in which they began to work."""
    found = [
        _stage(place, name) for place in places for name in place.record.get("stages", {}) if not _is_sum(place, name)
    ]
    return sorted(found, key=lambda one: min((begin for begin, _ in one.spans), default=one.at))


def _is_sum(place: Place, stage: str) -> bool:
    """Whether a run only notes here what was done in directories inside it, which are told themselves."""
    inside = {"judge": ("judges", "checks"), "evaluate": (EVALUATION,)}
    return stage in inside and not set(inside[stage]) & set(place.path.split("/"))


def stage_rows(stages: Sequence[StageFacts]) -> list[Sequence[str]]:
    """A row of titles, and one for every stage."""
    rows = [
        (
            one.title,
            "done" if one.is_done else "not finished",
            clock(min((begin for begin, _ in one.spans), default=one.at)),
            duration(worked_s(one.spans)) if one.spans else "-",
            one.told,
        )
        for one in stages
    ]
    return [("stage", "state", "began (UTC)", "at work", "what came of it"), *rows]


def clock(at: float) -> str:
    """A time for people."""
    return f"{datetime.fromtimestamp(at, UTC):%Y-%m-%d %H:%M}"


def worked_s(spans: Sequence[Span]) -> float:
    """Seconds that the spans cover together."""
    return sum(end - begin for begin, end in merged(spans))


def merged(spans: Sequence[Span], *, gap_s: float = 0.0) -> list[Span]:
    """The same times as spans in order, none of which is within gap_s of the next."""
    found: list[Span] = []
    for begin, end in sorted(spans):
        if found and begin - found[-1][1] <= gap_s:
            found[-1] = found[-1][0], max(end, found[-1][1])
        else:
            found.append((begin, end))
    return found


def _place(store: Store, path: str) -> Place:
    return Place(path=path, store=store, record=read_run(store), summary=read_summary(store))


def _stage(place: Place, stage: str) -> StageFacts:
    state, store = place.record["stages"][stage], place.store
    is_done, at = state["status"] == "done", datetime.fromisoformat(state["at"]).timestamp()
    word = None if is_done else newest_word(store, stage, state["epoch"])
    facts = place.summary.get(stage, {}) if is_done else {}
    title = place.title.removeprefix("judge ") if stage == "judge" else place.title
    return StageFacts(
        stage=stage,
        title=f"{stage} ({title})" if title else stage,
        is_done=is_done,
        at=at,
        told=what_came(state) if is_done else word[1] if word else "has begun",
        facts=facts,
        usage=facts.get("usage") or [asdict(pool) for pool in total_usage(store, stage)],
        phases=read_timelines(store, stage),
        steps=read_metrics(store, f"metrics/{stage}.jsonl"),
    )
