"""The line that people see, and what Prometheus is told."""

import io
import json

from rich.console import Console

from moaa_ray.core.batches import BatchPlan, Source
from moaa_ray.data.store import open_store
from moaa_ray.training_stage.falling import falling_note
from moaa_ray.training_stage.progress import TrainingProgress, progress_line, tell
from moaa_ray.training_stage.tracker_kinds import Tracked
from moaa_ray.training_stage.trackers import Trackers
from tests.telling import Heard


def line(step: int, **more) -> dict:
    known = {"num_steps": 100, "epoch": 0.5, "loss": 1.25, "grad_norm": 2.0, "learning_rate": 8e-6, "tokens": 3000}
    return {"step": step, **known, "seconds": 2.0, "save_s": 1.0, "memory_bytes": 3 * 2**30, **more}


def test_time_left_counts_steps_and_saves_and_speed_counts_steps_alone():
    text = progress_line("sft", [line(8), line(9, mfu=0.431)])
    assert text == (
        "sft step 10/100, epoch 0.50, loss 1.2500, lr 8.00e-06, grad norm 2.00, 1,500 tokens/s, MFU 43%, 3.0 GiB, "
        "4m30s left"
    )


def test_pairs_show_accuracy_and_margin_and_the_newest_validation():
    text = progress_line(
        "dpo", [line(3, accuracy=0.5, margin=0.1, validation_loss=0.6931), line(4, accuracy=0.75, margin=0.2)]
    )
    assert "loss 1.2500, accuracy 0.75, margin 0.200" in text
    assert text.endswith("validation loss 0.6931 at step 4")


def test_units_that_no_step_takes_are_told():
    """6 packs in steps of 4: one step, and 2 that are not trained on."""
    plan = BatchPlan(sources=(Source(6),), batch=4, epochs=1, seed=0)
    console = Console(file=io.StringIO())
    TrainingProgress(open_store("memory://told"), "sft", console=console).begin(plan, 1)
    told = "sft: 6 packs, 1 epochs in 1 steps of 4, 1 worker; the last 2 packs of the last epoch fill no step\n"
    assert console.file.getvalue() == told


def pairs(step: int, *, ratio: float, **more) -> dict:
    return line(step, accuracy=0.5, margin=0.1, chosen_ratio=ratio, chosen_tokens=50.0, time=0.0, **more)


def test_chosen_completions_that_become_less_likely_are_told_of_once():
    """Of 50 tokens: 5 nats are 0.1 a token. Validation decides where there is any."""
    assert falling_note("dpo", [line(1)]) == falling_note("dpo", []) == ""
    assert falling_note("dpo", [pairs(1, ratio=-4.9)]) == ""
    assert falling_note("dpo", [pairs(0, ratio=2.0), pairs(1, ratio=-8.0)]) == ""
    validated = {"validation_chosen_ratio": -4.0, "validation_chosen_tokens": 50.0}
    assert falling_note("dpo", [pairs(1, ratio=-8.0, **validated)]) == ""

    store, console = open_store("memory://falling"), Console(file=io.StringIO())
    progress = TrainingProgress(store, "dpo", console=console)
    lines = [pairs(0, ratio=0.0), pairs(1, ratio=-12.0), pairs(2, ratio=-21.0)]
    for shown in (lines[:1], lines[:2], lines):
        store.put("metrics/dpo.jsonl", "\n".join(map(json.dumps, shown)).encode())
        progress.show(Heard(), Trackers([], tracked(), progress.note), is_last=True)
    told = [said for said in console.file.getvalue().splitlines() if "less likely" in said]
    assert told == [
        "dpo: the chosen completions have become less likely than they were, by 6.0 nats each and 0.12 a token (mean "
        "of the steps up to 2); raise dpo.sft_weight, or lower dpo.learning_rate"
    ]


def tracked() -> Tracked:
    return Tracked(store=open_store("memory://falling"), run="r", stage="dpo", config={})


def test_prometheus_is_told_of_the_newest_step_and_the_newest_validation():
    heard = Heard()
    lines = [line(8, validation_loss=1.5, mfu=0.4), line(9, loss=0.25, mfu=0.43, tokens_per_s=1500.0)]
    tell(heard, lines)
    assert heard.last() == {
        ("moaa_stage_active",): 1,
        ("moaa_training_step",): 10,
        ("moaa_training_steps",): 100,
        ("moaa_training_step_seconds",): 2.0,
        ("moaa_training_loss",): 0.25,
        ("moaa_training_validation_loss",): 1.5,
        ("moaa_training_learning_rate",): 8e-6,
        ("moaa_training_gradient_norm",): 2.0,
        ("moaa_training_tokens_per_second",): 1500.0,
        ("moaa_training_mfu_ratio",): 0.43,
        ("moaa_training_memory_bytes",): 3 * 2**30,
    }


def test_a_training_without_a_step_yet_is_active_and_says_no_more():
    heard = Heard()
    tell(heard, [])
    assert heard.last() == {("moaa_stage_active",): 1}
