"""What a training stage says at its end."""

from collections import Counter

import pytest

pytest.importorskip("torch")

from moaa_ray.core.training_cost import TrainingWork
from moaa_ray.data.store import open_store
from moaa_ray.planning.training import TrainingPlan
from moaa_ray.training.trainer import Workers
from moaa_ray.training_stage.datasets import Prepared
from moaa_ray.training_stage.summary import TrainingSummary, summary_of


def line(step: int, **validated: float) -> dict:
    known = {"num_steps": 3, "loss": 0.5, "tokens": 300, "seconds": 2.0, "time": 10.0 + step}
    return {"step": step, **known, **{f"validation_{name}": value for name, value in validated.items()}}


def summary(lines: list[dict], *, best_by: str = "loss", planned: TrainingPlan | None = None) -> TrainingSummary:
    prepared = [Prepared(num_rows=9, num_units=8, num_validation_units=1, num_tokens=90, dropped=Counter())]
    workers = Workers(num=1, use_gpu=False, num_cpus=1.0, max_restarts=0)
    return summary_of(
        open_store("memory://summary"), "dpo", prepared, lines, workers,
        since=0.0, gpu_hour_usd=None, has_curve=True, best_by=best_by, planned=planned,
    )  # fmt: skip


@pytest.mark.parametrize(("best_by", "best"), [("loss", 1), ("accuracy", 0), ("margin", 2)])
def test_the_best_validation_is_the_one_that_training_chose(best_by, best):
    lines = [
        line(0, loss=0.6, accuracy=0.8, margin=0.1),
        line(1, loss=0.5, accuracy=0.7, margin=0.2),
        line(2, loss=0.7, accuracy=0.8, margin=0.3),
    ]
    done = summary(lines, best_by=best_by)
    assert done.best_validation["step"] == best
    assert f"best validation at step {best + 1}: " in done.text()


def test_chosen_completions_that_ended_less_likely_are_told_of():
    whole = summary([line(2, loss=0.5, chosen_ratio=-4.0, chosen_tokens=50.0)], best_by="loss")
    fallen = summary([line(2, loss=0.5, chosen_ratio=-25.0, chosen_tokens=50.0)], best_by="loss")
    assert "less likely" not in whole.text()
    assert "by 25.0 nats each and 0.50 a token (validation at step 3); raise dpo.sft_weight" in fallen.text()


@pytest.mark.parametrize(("seconds", "told"), [(None, ""), (75.0, ", 1m15s")])
def test_the_stage_is_compared_with_its_plan(seconds, told):
    plan = TrainingPlan(
        stage="dpo", num_rows=8, work=TrainingWork(tokens=1500.0, mean_length=50.0), num_epochs=1, num_steps=4,
        num_workers=1, gpu="", seconds=seconds, state_bytes=None, cost_usd=None, notes=(),
    )  # fmt: skip
    lines = [line(i) for i in range(3)]
    assert f"planned: 4 steps, 1,500 tokens{told}; took 3, 900, 6s\n" in summary(lines, planned=plan).text()
    assert "planned" not in summary(lines).text()
