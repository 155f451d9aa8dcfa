"""One prompt in a training stage: whether it was trained on or held out, in which steps, and which models saw it.

Which steps a unit is in follows from the batch plan, a pure function of what the checkpoints and metrics/<stage>.json
say of the run; nothing is computed by a model here.
"""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from moaa_ray.core.batches import BatchPlan, Source
from moaa_ray.data.manifest import Manifest, parse_manifest
from moaa_ray.data.store import Store
from moaa_ray.data.unit_store import UNITS_MANIFEST
from moaa_ray.errors import DataError
from moaa_ray.loading import RUN
from moaa_ray.reporting.layout import Layout
from moaa_ray.reporting.lookup import find_failure, find_row

OWN_DATA = {"sft": "sft", "dpo": "pairs"}
"""The folder of the run that a stage trains on where the recipe names none."""

_TAKEN = re.compile(r"weight (?P<weight>[0-9.e+-]+), epochs (?P<epochs>None|\d+)")
_VALIDATION = "-validation"
_STEP = re.compile(r"step-(\d+)/complete\.json")
_MOST_STEPS = 12


@dataclass(frozen=True, kw_only=True)
class Training:
    """What is known of a training stage: finished, or as far as its checkpoints."""

    stage: str
    fingerprint: Mapping[str, str]
    checkpoints: Mapping[int, str]
    """Steps done -> place."""
    num_done: int
    """Steps done."""
    is_finished: bool
    best_step: int | None
    """The step with the best validation, counted from 1."""
    has_model: bool

    @property
    def keys(self) -> list[str]:
        """The unit folders of its datasets, in order."""
        return [self.fingerprint[f"data.{i}"] for i in range(len(self.fingerprint)) if f"data.{i}" in self.fingerprint]


@dataclass(frozen=True, kw_only=True)
class UnitPlace:
    """Where a prompt stands among the units of a dataset."""

    key: str
    is_held_out: bool
    number: int
    num_units: int
    num_rows: int
    """Rows in the unit: the documents of a pack."""
    path: str


def training_part(store: Store, stage: str, row_id: str, out: Layout) -> bool:
    """What a training stage did with the prompt; True where it had it."""
    training = read_training(store, stage)
    keys = training.keys or _prepared(store, stage)
    found = [place for key in keys for place in _find_units(store, stage, key, row_id)]
    refused = [(key, failure) for key in keys if (failure := find_failure(store, f"{stage}-{key}", row_id))]
    if not found and not refused:
        if keys:
            out.title(f"TRAINING {stage}   it did not have this prompt")
        return False
    state = f"{training.num_done:,} steps done" + ("" if training.is_finished else ", not finished")
    out.title(f"TRAINING {stage}   {state if training.fingerprint else 'data prepared, not begun'}")
    for key, failure in refused:
        record = failure.record
        out.line(f"dropped: {record['reason']}: {record['detail']}; dataset {key}, {failure.path}")
    for place in found:
        _placed(place, training, store, out)
    _models(training, out)
    return True


def read_training(store: Store, stage: str) -> Training:
    """The stage by its metrics, else by its newest checkpoint."""
    paths = store.list(f"checkpoints/{stage}")
    named = {path: _STEP.fullmatch(path.removeprefix(f"checkpoints/{stage}/")) for path in paths}
    steps = {int(found[1]): path.rsplit("/", 1)[0] for path, found in named.items() if found}
    checkpoints = dict(sorted(steps.items()))
    done = f"metrics/{stage}.json"
    record: dict[str, Any] = _json(store, done) if store.exists(done) else {}
    fingerprint, num_done = record.get("fingerprint", {}), 0
    if record:
        num_done = record["summary"]["last"]["step"] + 1
    elif checkpoints:
        num_done = max(checkpoints)
        fingerprint = _json(store, f"{checkpoints[num_done]}/complete.json")["fingerprint"]
    best = record.get("summary", {}).get("best_validation", {}).get("step")
    return Training(
        stage=stage,
        fingerprint=fingerprint,
        checkpoints=checkpoints,
        num_done=num_done,
        is_finished=bool(record),
        best_step=None if best is None else int(best) + 1,
        has_model=store.exists(f"models/{stage}/config.json"),
    )


def steps_of(store: Store, training: Training, place: UnitPlace) -> list[int] | None:
    """The steps done, counted from 1, in which a unit was trained on; None where the plan is not known."""
    fields = training.fingerprint
    taken = [_TAKEN.fullmatch(fields.get(f"data.{i}.taken", "")) for i in range(len(training.keys))]
    if not {"batch", "epochs", "seed"} <= fields.keys() or not all(taken):
        return None
    sizes = [_manifest(store, training.stage, key).rows for key in training.keys]
    sources = tuple(
        Source(size, weight=float(found["weight"]), epochs=None if found["epochs"] == "None" else int(found["epochs"]))
        for size, found in zip(sizes, taken, strict=True)
        if found
    )
    plan = BatchPlan(
        sources=sources, batch=int(fields["batch"]), epochs=int(fields["epochs"]), seed=int(fields["seed"])
    )
    number = sum(sizes[: training.keys.index(place.key)]) + place.number
    last = min(training.num_done, plan.num_steps)
    return [step + 1 for step in range(last) if number in plan.units_of(step)]


def _placed(place: UnitPlace, training: Training, store: Store, out: Layout) -> None:
    kind = "pack" if training.stage == "sft" else "pair"
    beside = f" with {place.num_rows - 1} other rows" if place.num_rows > 1 else ""
    where = f"{kind} {place.number:,} of {place.num_units:,}{beside}; dataset {place.key}"
    if place.is_held_out:
        out.line(f"held out for validation: {where}")
        return
    out.line(f"in the training part: {where}")
    steps = steps_of(store, training, place) if place.key in training.keys else None
    if steps is None:
        return
    shown = ", ".join(f"{step:,}" for step in steps[:_MOST_STEPS]) + (", ..." if len(steps) > _MOST_STEPS else "")
    out.line(f"trained on in step {shown}, counted from 1" if steps else "not in any of the steps done")
    for step, path in training.checkpoints.items():
        times = sum(seen <= step for seen in steps)
        out.line(f"{path}: saw it {times} x" if times else f"{path}: had not seen it yet")


def _models(training: Training, out: Layout) -> None:
    best = "" if training.best_step is None else f", best validation after step {training.best_step:,}"
    if training.has_model or training.is_finished:
        there = "is there" if training.has_model else "is no longer there"
        out.line(f"models/{training.stage} {there}; {training.num_done:,} steps done{best}")
    names = (
        training.fingerprint
        if out.is_full
        else ("student", *(f"data.{i}" for i in range(9)), "batch", "epochs", "seed")
    )
    told = [f"{name} {out.digest(training.fingerprint[name])}" for name in names if name in training.fingerprint]
    if told:
        out.line("made with " + ", ".join(told))


def _prepared(store: Store, stage: str) -> list[str]:
    """The unit folders that there are, of a stage that has saved nothing yet."""
    paths = [path.split("/") for path in store.list(f"work/{stage}/units") if path.endswith(f"/{UNITS_MANIFEST}")]
    return sorted(parts[3] for parts in paths if len(parts) == 5 and not parts[3].endswith(_VALIDATION))


def _find_units(store: Store, stage: str, key: str, row_id: str) -> Iterator[UnitPlace]:
    """The unit of the prompt in a dataset, among those to train on, then among those held out."""
    for suffix in ("", _VALIDATION):
        if not store.exists(_folder(stage, key + suffix) + f"/{UNITS_MANIFEST}"):
            continue
        manifest = _manifest(store, stage, key + suffix)
        for number, num_rows, path in _numbers(store, stage, key + suffix, manifest, row_id):
            yield UnitPlace(
                key=key, is_held_out=bool(suffix), number=number, num_units=manifest.rows, num_rows=num_rows, path=path
            )
            return


def _numbers(store: Store, stage: str, name: str, manifest: Manifest, row_id: str) -> Iterator[tuple[int, int, str]]:
    """(number, rows in it, file) of units with the prompt; the file that should hold it is read first.

    Files are named by the number of their first row in the dataset, which is known where it is the run's own.
    """
    starts, first = [], 0
    for shard in manifest.shards:
        starts.append((first, shard.name))
        first += shard.rows
    own, folder = find_row(store, OWN_DATA[stage], row_id), OWN_DATA[stage]
    if own is not None and manifest.facts.get("path") in (f"{store.uri}/{folder}", f"{RUN}{folder}"):
        before = [start for start in starts if int(start[1].split(".")[0]) <= own.number]
        starts = [*before[-1:], *(start for start in starts if start not in before[-1:])]
    for first, file in starts:
        path = f"{_folder(stage, name)}/{file}"
        for number, ids in enumerate(_ids(store, path)):
            if row_id in ids:
                yield first + number, len(ids), path


def _ids(store: Store, path: str) -> Iterator[list[str]]:
    """The ids of every unit of a file, without its tokens."""
    options = pa.ipc.IpcReadOptions(included_fields=[0], use_threads=False)
    try:
        with store.open(path) as file:
            reader = pa.ipc.open_file(pa.PythonFile(file, mode="r"), options=options)
            for number in range(reader.num_record_batches):
                yield reader.get_batch(number).column(0)[0].as_py()
    except pa.ArrowException as error:
        raise DataError(f"{store.uri}/{path}: damaged ({error}); restore it, or run the stage again") from error


def _json(store: Store, path: str) -> dict[str, Any]:
    try:
        return json.loads(store.read(path))
    except ValueError as error:
        raise DataError(f"{store.uri}/{path}: damaged ({error}); restore it, or run the stage again") from error


def _manifest(store: Store, stage: str, name: str) -> Manifest:
    path = f"{_folder(stage, name)}/{UNITS_MANIFEST}"
    return parse_manifest(store.read(path), f"{store.uri}/{path}")


def _folder(stage: str, name: str) -> str:
    return f"work/{stage}/units/{name}"
