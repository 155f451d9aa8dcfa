"""Small training jobs on a tiny student and units of words, run in this process."""

from pathlib import Path
from unittest.mock import patch

import pytest

from moaa_ray.core.batches import BatchPlan, Source
from moaa_ray.data import commit
from moaa_ray.data.documents import DocumentTokenizer
from moaa_ray.data.store import open_store
from moaa_ray.data.unit_store import finish, write_chunk
from moaa_ray.data.units import UnitSettings, pair_units, sft_units
from moaa_ray.demo.tiny import make_tiny_model
from moaa_ray.training import loop
from moaa_ray.training.job import Cadence, Job, Rates
from moaa_ray.training.step import PreferenceSettings
from moaa_ray.training.strategies.base import Numerics, World

_WORDS = ("the river forms a boat and light travels faster than sound", "while people say what is true")


def text(i: int, length: int = 8) -> str:
    words = " ".join(_WORDS).split()
    return " ".join(words[(i * 7 + j * (1 + i % 3)) % len(words)] for j in range(length))


def sft_rows(num: int) -> list[dict]:
    return [
        {
            "id": f"r{i:03d}",
            "messages": [
                {"role": "user", "content": f"Question {i}?"},
                {"role": "assistant", "content": text(i, 4 + i % 9)},
            ],
        }
        for i in range(num)
    ]


def pair_rows(num: int) -> list[dict]:
    return [
        {
            "id": f"r{i:03d}",
            "prompt": [{"role": "user", "content": f"Question {i}?"}],
            "chosen": [{"role": "assistant", "content": text(i, 4 + i % 9)}],
            "rejected": [{"role": "assistant", "content": text(i + 5, 3 + i % 5) + " winhen"}],
        }
        for i in range(num)
    ]


def make_student(folder: Path, *, template: str = "chatml") -> Path:
    make_tiny_model(folder, seed=1, template=template)
    return folder


def make_job(run: Path, student: Path, stage: str = "sft", *, num_rows: int = 48, **changes) -> Job:
    """A job of two epochs in steps of four units, on units that are written into the run."""
    from transformers import AutoTokenizer

    store = open_store(str(run))
    tokenizer = DocumentTokenizer(AutoTokenizer.from_pretrained(student))
    settings = UnitSettings(max_tokens=96, document_tokens=96, over_long="drop", validation_fraction=0.2)
    make = sft_units if stage == "sft" else pair_units
    sets = make(sft_rows(num_rows) if stage == "sft" else pair_rows(num_rows), tokenizer, settings)
    for folder, units in (("units", sets.train), ("held-out", sets.validation)):
        if not store.exists(f"work/{stage}/{folder}/units.json"):
            write_chunk(store, f"work/{stage}/{folder}", "0", units)
            finish(store, f"work/{stage}/{folder}", {})
    epoch = commit.take_epoch(store, commit.owner_record())
    fields = {
        "stage": stage,
        "run_uri": str(run),
        "epoch": epoch.number,
        "student": str(student),
        "student_digest": "d",
        "chat_template": "",
        "units": (f"work/{stage}/units",),
        "validation": (f"work/{stage}/held-out",),
        "plan": BatchPlan(sources=(Source(len(sets.train)),), batch=4, epochs=2, seed=3),
        "micro_batch": 2,
        "strategy": "single",
        "numerics": Numerics(),
        "rates": Rates(peak=2e-3),
        "cadence": Cadence(checkpoint_every=3, is_async=False),
        "preference": None if stage == "sft" else PreferenceSettings(),
        "fingerprint": {"seed": "3"},
        "card": "# A student\n",
    }
    return Job(**{**fields, **changes})


def train_until_killed(job: Job, world: World, *, at: int) -> None:
    """Train as far as a kill before step `at` lets it."""
    real = loop.take_step

    def dies(parts, state, data, *, rate):
        if state.next_step == at:
            raise KeyboardInterrupt
        return real(parts, state, data, rate=rate)

    with patch.object(loop, "take_step", dies), pytest.raises(KeyboardInterrupt):
        loop.train(job, world)
