"""The stages sft and dpo: from a recipe and a dataset to a model folder, resumable after a kill at any moment.

    check -> tokenise and pack (Ray Data) -> train (Ray Train, training/loop.py) -> model folder, curve, summary

A finished stage starts no Ray. What may change between starts is what only says how fast and where.
"""

import json
import math
import time
import uuid
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

from rich.console import Console

from moaa_ray.core.batches import BatchPlan, Source, check_divides
from moaa_ray.data import commit
from moaa_ray.data.store import Store, open_store
from moaa_ray.errors import ConfigError, DataError, StageError
from moaa_ray.fingerprint import section_fingerprint
from moaa_ray.loading import LoadedTraining
from moaa_ray.run_record import join_run, noting_stop, put_summary, set_stage
from moaa_ray.settings.training import DpoConfig, SftConfig
from moaa_ray.telemetry import Telemetry
from moaa_ray.training_stage.card import card_numbers, model_card
from moaa_ray.training_stage.curve import put_curve
from moaa_ray.training_stage.datasets import (
    Dataset,
    Prepared,
    Stage,
    StudentFiles,
    close_dataset,
    find_datasets,
    known_facts,
)
from moaa_ray.training_stage.progress import TrainingProgress
from moaa_ray.training_stage.students import student_of
from moaa_ray.training_stage.summary import TrainingSummary, summary_of
from moaa_ray.training_stage.tracker_kinds import Tracked, check_trackers
from moaa_ray.training_stage.trackers import Trackers

if TYPE_CHECKING:
    from moaa_ray.planning.training import TrainingPlan
    from moaa_ray.training.trainer import Workers

_CHECKPOINTS_A_RUN = 20


def train_stage(loaded: LoadedTraining, stage: Stage, *, console: Console | None = None) -> TrainingSummary:
    """Run a training stage to its end; called again it goes on.

    Raises ConfigError and DataError before anything starts, StageError when it stops short, FencedError when another
    driver takes the run over.
    """
    store, config = open_store(loaded.run_dir), _section(loaded, stage)
    student = student_of(loaded, stage)
    datasets = find_datasets(store, stage, config, student, seed=loaded.recipe.seed, base_dir=loaded.base_dir)
    _check(config, stage, store)
    if stage == "dpo":
        _plan_of(loaded, stage, [dataset.most() for dataset in datasets])  # too few pairs are told before they are read
    fingerprint = _fingerprint(loaded, config, student, datasets)
    if (done := _finished(store, stage, fingerprint, export=config.export)) is not None:
        return done
    join_run(store, loaded)
    with noting_stop(store, stage):
        epoch = commit.take_epoch(store, commit.owner_record())
        set_stage(store, stage, status="running", epoch=epoch.number)
        began = time.time()
        with TrainingProgress(store, stage, console=console) as progress:
            prepared, workers, planned = _train(loaded, stage, student, datasets, fingerprint, epoch, progress)
        lines = _lines(store, stage)
        price = loaded.recipe.plan.gpu_hour_usd
        commit.check_owner(store, epoch)
        has_curve = put_curve(store, stage, lines, progress.note)
        summary = summary_of(
            store, stage, prepared, lines, workers, since=began, gpu_hour_usd=price, has_curve=has_curve,
            best_by=config.judged_by, planned=planned,
        )  # fmt: skip
        card = model_card(loaded, stage, student, datasets, fingerprint)
        card += card_numbers(lines, summary.best_validation, export=config.export, best_by=config.judged_by)
        store.put(f"models/{stage}/README.md", card.encode())
        _write(store, loaded, stage, summary, fingerprint)
        set_stage(store, stage, status="done", epoch=epoch.number, steps=summary.num_steps)
        return summary


def _section(loaded: LoadedTraining, stage: Stage) -> SftConfig | DpoConfig:
    return loaded.recipe.sft if stage == "sft" else loaded.recipe.dpo


def _check(config: SftConfig | DpoConfig, stage: Stage, store: Store) -> None:
    check_trackers(stage, config.track)
    if config.strategy == "deepspeed" and not store.can_rename:
        raise ConfigError(
            f"{stage}.strategy = deepspeed with run_dir = {store.uri}: it saves to file systems only; name a run_dir "
            "on one that all nodes share, or choose fsdp2"
        )
    if config.workers != "auto":
        check_divides(config.batch, config.workers, config.micro_batch, field=f"{stage}.batch")


def _plan_of(loaded: LoadedTraining, stage: Stage, sources: Sequence[Source]) -> BatchPlan:
    """The batches. Raises ConfigError where there is not one."""
    config, kind = _section(loaded, stage), "packs" if stage == "sft" else "pairs"
    seed = loaded.recipe.seed
    return BatchPlan(sources=tuple(sources), batch=config.batch, epochs=config.epochs, seed=seed, kind=kind)


def _fingerprint(
    loaded: LoadedTraining, config: SftConfig | DpoConfig, student: StudentFiles, datasets: list[Dataset]
) -> dict[str, str]:
    units = {}
    for i, dataset in enumerate(datasets):
        units[f"data.{i}"] = dataset.folder.rsplit("/", 1)[-1]
        units[f"data.{i}.taken"] = f"weight {dataset.config.weight!r}, epochs {dataset.config.epochs!r}"
    fields = section_fingerprint(config, without=("data", "student"))
    return {**fields, **units, "student": student.digest, "seed": str(loaded.recipe.seed)}


def _finished(store: Store, stage: Stage, fingerprint: dict[str, str], *, export: str) -> TrainingSummary | None:
    """The summary of a stage that has been run to its end with this very recipe. Raises DataError for a damaged one."""
    path = f"metrics/{stage}.json"
    if not store.exists(path):
        return None
    try:
        record = json.loads(store.read(path))
        done = TrainingSummary(**{**record["summary"], "worked": None})
        record["fingerprint"] = dict(record["fingerprint"])
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{store.uri}/{path}: damaged, or of another version ({error!r:.80}); restore it, or remove it: the stage "
            "then ends anew from its last checkpoint"
        ) from error
    if record["fingerprint"] == fingerprint:
        # With the model gone, or another state wanted, training finds itself over and exports again.
        is_there = record.get("export", export) == export and store.exists(f"models/{stage}/config.json")
        return done if is_there else None
    changed = sorted(
        k for k in {*record["fingerprint"], *fingerprint} if record["fingerprint"].get(k) != fingerprint.get(k)
    )
    raise ConfigError(
        f"{store.uri}/models/{stage} was trained with another recipe ({', '.join(changed[:8])} differ); give another "
        f"run_dir, put the recipe back, or remove models/{stage}, checkpoints/{stage} and metrics/{stage}.json"
    )


def _train(
    loaded: LoadedTraining,
    stage: Stage,
    student: StudentFiles,
    datasets: list[Dataset],
    fingerprint: dict[str, str],
    epoch: commit.Epoch,
    progress: TrainingProgress,
) -> "tuple[list[Prepared], Workers, TrainingPlan | None]":
    """Everything that needs Ray: the units, then the steps; and what was expected of them."""
    from moaa_ray.doctor.asking import check_nodes
    from moaa_ray.generation.placing import ray_cluster
    from moaa_ray.generation.session import session
    from moaa_ray.training.trainer import prepare, run_training
    from moaa_ray.training_stage.jobs import check_checkpoints, check_student, make_job, plan_of_stage, workers_of

    store, config = open_store(loaded.run_dir), _section(loaded, stage)
    check_student(config, student, datasets[0].tasks[0])
    check_checkpoints(loaded.run_dir, stage, fingerprint)
    with session(loaded.recipe.ray, cpu_slots=config.cpu_slots, with_dashboard=True) as is_local:
        if not is_local:
            check_nodes(store.uri)
        cluster = ray_cluster(config.cpu_slots, is_local=is_local)
        workers = workers_of(stage, config, cluster)
        check_divides(config.batch, workers.num, config.micro_batch, field=f"{stage}.batch")
        prepared = []
        for dataset in datasets:
            if dataset.is_prepared(store):
                prepared.append(known_facts(store, dataset))
                continue
            progress.note(f"{stage}: tokenising {dataset.config.path}")
            prepared.append(close_dataset(store, stage, dataset, prepare(dataset.tasks)))
        num_held_out = sum(part.num_validation_units for part in prepared)
        if not num_held_out and (config.export == "best" or config.early_stopping is not None):
            raise ConfigError(
                f"{stage}: export = best and early_stopping need validation, and validation_fraction = "
                f"{config.validation_fraction} of these rows is none; raise it, or leave both out"
            )
        taken = [(dataset.config, part) for dataset, part in zip(datasets, prepared, strict=True)]
        planned = plan_of_stage(loaded, stage, cluster, taken)
        plan = _plan_of(loaded, stage, [dataset.source(store) for dataset in datasets])
        job = make_job(
            loaded, stage, config, student, datasets, plan, fingerprint=fingerprint, epoch=epoch.number,
            num_held_out=num_held_out,
            checkpoint_every=config.checkpoint_every or max(1, math.ceil(plan.num_steps / _CHECKPOINTS_A_RUN)),
        )  # fmt: skip
        progress.begin(plan, workers.num)
        attempt = f"{epoch.number:06d}-{uuid.uuid4().hex[:6]}"
        with (
            Telemetry(run=loaded.recipe.name, stage=stage) as told,
            Trackers(config.track, _tracked(loaded, stage), progress.note) as trackers,
        ):
            run_training(job, workers, attempt=attempt, watch=lambda: progress.show(told, trackers))
            progress.show(told, trackers, is_last=True)
    return prepared, workers, planned


def _tracked(loaded: LoadedTraining, stage: Stage) -> Tracked:
    config = _section(loaded, stage).model_dump(mode="json", exclude={"data"})
    return Tracked(
        store=open_store(loaded.run_dir),
        run=loaded.recipe.name,
        stage=stage,
        config={"student": loaded.recipe.student.model, "seed": loaded.recipe.seed, **config},
    )


def _lines(store: Store, stage: Stage) -> list[dict]:
    """The metrics of every step. Raises StageError where training has left no model."""
    from moaa_ray.training.metrics import read_metrics

    lines = read_metrics(store, f"metrics/{stage}.jsonl")
    if not lines or not store.exists(f"models/{stage}/config.json"):
        raise StageError(f"{stage}: training ended without a model in {store.uri}/models/{stage}; run it again")
    return lines


def _write(store: Store, loaded: LoadedTraining, stage: Stage, summary: TrainingSummary, fingerprint: dict) -> None:
    """The summary, for the run and last with what says that the stage is done."""
    record = {"summary": asdict(summary), "fingerprint": fingerprint, "export": _section(loaded, stage).export}
    put_summary(store, stage, asdict(summary))
    store.put(f"metrics/{stage}.json", (json.dumps(record, indent=2) + "\n").encode())
