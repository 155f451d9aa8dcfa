"""SFT and DPO of tiny students by moaa_ray's own loop, in this process; every row is one unit, so steps count rows."""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from moaa_ray.core.batches import BatchPlan, Source
from moaa_ray.data import commit
from moaa_ray.data.documents import DocumentTokenizer
from moaa_ray.data.store import open_store
from moaa_ray.data.student_files import digest_of_model
from moaa_ray.data.unit_store import finish, write_chunk
from moaa_ray.data.units import UnitSettings, pair_units, sft_units
from moaa_ray.training.job import Cadence, Job, Rates
from moaa_ray.training.loop import train
from moaa_ray.training.losses import LossSettings
from moaa_ray.training.step import PreferenceSettings
from moaa_ray.training.strategies.base import Numerics, World

_UNITS = UnitSettings(max_tokens=64, document_tokens=64, over_long="drop", validation_fraction=0.0, packing=False)


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What is the same for every arm that is compared."""

    stage: Literal["sft", "dpo"]
    batch: int
    """Rows or pairs of an optimizer step."""
    epochs: int
    beta: float = 0.1


@dataclass(frozen=True, kw_only=True)
class Trained:
    """A student after a stage."""

    folder: Path
    num_steps: int
    num_tokens: int
    """Of all steps, prompts included."""


def train_student(
    run: Path, student: Path, rows: Sequence[dict[str, Any]], recipe: Recipe, *, rate: float, seed: int
) -> Trained:
    """Train a copy of the student on rows in the layout of sft/ or pairs/; what `run` held before is deleted."""
    from transformers import AutoTokenizer

    shutil.rmtree(run, ignore_errors=True)
    store = open_store(str(run))
    make = sft_units if recipe.stage == "sft" else pair_units
    sets = make(rows, DocumentTokenizer(AutoTokenizer.from_pretrained(student)), _UNITS)
    assert not sets.refusals, sets.refusals[:3]
    folder = f"work/{recipe.stage}/units"
    write_chunk(store, folder, "0", sets.train)
    finish(store, folder, {})
    plan = BatchPlan(sources=(Source(len(sets.train)),), batch=recipe.batch, epochs=recipe.epochs, seed=seed)
    job = Job(
        stage=recipe.stage,
        run_uri=str(run),
        epoch=commit.take_epoch(store, commit.owner_record()).number,
        student=str(student),
        student_digest=digest_of_model(str(student)),
        chat_template="",
        units=(folder,),
        validation=(),
        plan=plan,
        micro_batch=recipe.batch,
        strategy="single",
        numerics=Numerics(),
        rates=Rates(peak=rate),
        cadence=Cadence(checkpoint_every=plan.num_steps, is_async=False),
        preference=PreferenceSettings(loss=LossSettings(beta=recipe.beta)) if recipe.stage == "dpo" else None,
    )
    train(job, World())
    num_tokens = sum(sets.train[i].num_tokens for step in range(plan.num_steps) for i in plan.units_of(step))
    return Trained(folder=run / job.model_path, num_steps=plan.num_steps, num_tokens=num_tokens)
