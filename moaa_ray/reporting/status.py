"""How far a run is, told from its directory alone: `moaa status`, from anywhere that can read it."""

import json
import time
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from moaa_ray.data.cleanup import runs_inside
from moaa_ray.data.manifest import MANIFEST
from moaa_ray.data.store import Store, open_store
from moaa_ray.generation.progress import duration
from moaa_ray.recipe import STAGES
from moaa_ray.run_record import progress_path, read_run
from moaa_ray.training.metrics import read_metrics
from moaa_ray.training_stage.progress import progress_line

_QUIET_S = 120.0
"""A driver writes every ten seconds or so; after so much silence it may be dead, or start engines or processes."""
_MARGIN = " " * 12
_WAY_ON = "the same command goes on where it stopped"


def run_status(run: str, *, now: float | None = None) -> str:
    """The stages of a run, and of the run directories inside it, in order. Raises ConfigError where there is none."""
    now = time.time() if now is None else now
    whole = open_store(run)
    parts = [_of_run(whole, now, title=whole.uri)]
    for inside in runs_inside(whole):
        place = open_store(f"{whole.uri}/{inside}")
        if place.exists("run.json"):
            parts.append(_of_run(place, now, title=inside))
    return "\n\n".join(parts)


def _of_run(store: Store, now: float, *, title: str) -> str:
    record = read_run(store)
    known: Mapping[str, Any] = record.get("stages", {})
    lines = [f"{record.get('name', '?')}: {title}"]
    begun = [stage for stage in STAGES if stage in known]
    lines += [f"  {stage:<9} {_of_stage(store, stage, known[stage], now)}" for stage in begun]
    if not begun:
        folders = sorted(path.split("/")[0] for path in store.list() if path.endswith(f"/{MANIFEST}"))
        lines.append(f"  holds {', '.join(folders)}" if folders else "  no stage has begun")
    return "\n".join(lines)


def _of_stage(store: Store, stage: str, facts: Mapping[str, Any], now: float) -> str:
    at = datetime.fromisoformat(facts["at"]).timestamp()
    if facts["status"] == "done":
        return f"done {_ago(now - at)}: {what_came(facts)}"
    said_at, text = newest_word(store, stage, facts["epoch"]) or (at, "has begun")
    if facts["status"] == "stopped":
        return f"stopped {_ago(now - at)} ({text}): {facts['why']}\n{_MARGIN}{_WAY_ON}"
    silence_s = now - max(at, said_at)
    text = f"running, last word {_ago(silence_s)}: {text}"
    if silence_s > _QUIET_S:
        text += f"\n{_MARGIN}if its driver is dead, {_WAY_ON}"
    return text


def newest_word(store: Store, stage: str, epoch: int) -> tuple[float, str] | None:
    """When the stage last said how far it is, and what; None where this start has said nothing yet."""
    if stage in ("sft", "dpo"):
        lines = read_metrics(store, f"metrics/{stage}.jsonl")
        return (lines[-1]["time"], progress_line(stage, lines)) if lines else None
    if not store.exists(progress_path(stage)):
        return None
    newest = json.loads(store.read(progress_path(stage)))
    return (newest["at"], newest["text"]) if newest["epoch"] == epoch else None


def what_came(facts: Mapping[str, Any]) -> str:
    """What a finished stage has left, by its entry in run.json."""
    if "steps" in facts:
        return f"{facts['steps']:,} steps"
    if "pairs" in facts:
        return f"{facts['pairs']:,} pairs"
    return ", ".join(f"{num:,} {status}" for status, num in facts.get("counts", {}).items() if num) or "no rows"


def _ago(seconds: float) -> str:
    return f"{duration(max(0.0, seconds))} ago"
