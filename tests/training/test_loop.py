"""The whole loop in one process: it learns, goes on at its exact step, validates, stops early, exports."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from transformers import AutoTokenizer  # noqa: E402

from moaa_ray.data.store import open_store  # noqa: E402
from moaa_ray.errors import ConfigError, FencedError, StageError  # noqa: E402
from moaa_ray.training import loop, scoring  # noqa: E402
from moaa_ray.training.export import export  # noqa: E402
from moaa_ray.training.job import Cadence, Rates  # noqa: E402
from moaa_ray.training.loop import train  # noqa: E402
from moaa_ray.training.metrics import read_metrics  # noqa: E402
from moaa_ray.training.step import PreferenceSettings  # noqa: E402
from moaa_ray.training.strategies.base import Numerics, World  # noqa: E402
from tests.training.jobs import make_job, make_student, train_until_killed  # noqa: E402


@pytest.fixture(scope="module")
def student(tmp_path_factory) -> Path:
    return make_student(tmp_path_factory.mktemp("student"))


def metrics(job) -> list[dict]:
    return read_metrics(open_store(job.run_uri), job.metrics_path)


def weights(job) -> dict:
    from safetensors.torch import load_file

    return load_file(Path(job.run_uri) / job.model_path / "model.safetensors")


@pytest.fixture(scope="module", params=["sft", "dpo"])
def unbroken(request, student, tmp_path_factory):
    job = make_job(tmp_path_factory.mktemp("unbroken"), student, request.param)
    train(job, World())
    return job


def test_every_step_is_told_once_and_the_model_learns(unbroken):
    lines = metrics(unbroken)
    assert [line["step"] for line in lines] == list(range(unbroken.plan.num_steps))
    assert sum(line["loss"] for line in lines[-3:]) < sum(line["loss"] for line in lines[:3])
    validated = [line["validation_loss"] for line in lines if "validation_loss" in line]
    assert len(validated) == 2
    if unbroken.stage == "dpo":
        assert lines[0]["loss"] == pytest.approx(0.6931471805599453, abs=1e-6)
        assert lines[0]["margin"] == pytest.approx(0.0, abs=1e-6)
        assert 0 <= lines[-1]["longer_wins"] <= 1


def test_killed_at_any_step_it_ends_with_the_bits_of_an_unbroken_run(unbroken, student, tmp_path):
    job = make_job(tmp_path, student, unbroken.stage)
    for dies_at in (2, 5, 6):
        train_until_killed(job, World(), at=dies_at)
    train(job, World())
    told = ("step", "loss", "grad_norm", "learning_rate")
    assert [[line[k] for k in told] for line in metrics(job)] == [[line[k] for k in told] for line in metrics(unbroken)]
    ours, theirs = weights(job), weights(unbroken)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_a_notice_that_a_node_will_go_is_answered_with_a_checkpoint_after_the_step(student, tmp_path):
    """Saves are due after the last step of an epoch only; the notice comes when two steps are done."""
    job = make_job(tmp_path, student, cadence=Cadence(checkpoint_every=1000, is_async=False))
    told = iter([False, True])
    train_until_killed(job, World(is_leaving=lambda: next(told, False)), at=4)
    assert [path.parent.name for path in (tmp_path / "checkpoints/sft").glob("*/complete.json")] == ["step-00000002"]


def test_a_finished_job_only_exports_again(unbroken):
    before = weights(unbroken)
    state = train(unbroken, World())
    assert state.is_over
    assert len(metrics(unbroken)) == unbroken.plan.num_steps
    assert all(torch.equal(before[name], value) for name, value in weights(unbroken).items())


def test_the_model_loads_with_transformers_and_says_what_it_is(unbroken):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = Path(unbroken.run_uri) / unbroken.model_path
    model = AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer.chat_template
    assert model(torch.tensor([[1, 2, 3]])).logits.shape[-1] == model.config.vocab_size
    assert (folder / "README.md").read_text() == "# A student\n"
    assert json.loads((folder / "config.json").read_text())["architectures"] == ["LlamaForCausalLM"]


def test_a_student_that_did_not_stop_at_the_end_of_a_turn_does_so_when_it_is_trained(tmp_path):
    student = make_student(tmp_path / "student")
    (student / "generation_config.json").write_text('{"eos_token_id": 0}')
    train(make_job(tmp_path / "run", student, num_rows=8, rates=Rates(peak=1e-5)), World())
    told = json.loads((tmp_path / "run" / "models" / "sft" / "generation_config.json").read_text())
    end = AutoTokenizer.from_pretrained(student).convert_tokens_to_ids("<|im_end|>")
    assert told["eos_token_id"] == [0, end]


def test_training_stops_when_validation_gets_worse_and_exports_the_best(student, tmp_path):
    cadence = Cadence(checkpoint_every=100, validate_every=1, early_stopping=2, export="best", is_async=False)
    job = make_job(tmp_path, student, cadence=cadence, rates=Rates(peak=0.5, kind="constant", warmup_ratio=0.0))
    state = train(job, World())
    losses = [line["validation_loss"] for line in metrics(job)]
    assert len(losses) < job.plan.num_steps
    best = min(range(len(losses)), key=losses.__getitem__)
    assert (state.best_step, state.num_worse) == (best + 1, 2)
    short = make_job(tmp_path / "short", student, cadence=cadence, rates=job.rates)
    short = replace(short, cadence=replace(cadence, early_stopping=None, export="last"))
    stop_after(short, best + 1)
    assert all(torch.equal(weights(job)[name], value) for name, value in weights(short).items())


@pytest.mark.parametrize(("stage", "best_by"), [("sft", "loss"), ("dpo", "accuracy")])
def test_the_best_state_is_kept_whatever_is_exported_and_can_be_exported_later(student, tmp_path, stage, best_by):
    """The rate is so high that an early step is the best; no epoch ends there, and no checkpoint is due."""
    cadence = Cadence(checkpoint_every=100, validate_every=1, keep_checkpoints=1, is_async=False, best_by=best_by)
    job = make_job(tmp_path, student, stage, cadence=cadence, rates=Rates(peak=0.5, kind="constant", warmup_ratio=0.0))
    state = train(job, World())
    values = [line[f"validation_{best_by}"] for line in metrics(job)]
    best = values.index(min(values) if best_by == "loss" else max(values))
    assert state.best_step == best + 1 < job.plan.num_steps
    assert not job.plan.ends_epoch(best)
    last = weights(job)
    best_job = replace(job, cadence=replace(cadence, export="best"))
    train(best_job, World())
    expected = make_job(tmp_path / "short", student, stage, cadence=cadence, rates=job.rates)
    stop_after(expected, best + 1)
    found = weights(job)
    assert all(torch.equal(found[name], value) for name, value in weights(expected).items())
    assert any(not torch.equal(found[name], value) for name, value in last.items())


@pytest.mark.parametrize("place", ["disk", "memory://test-loop/bad-export"])
def test_an_export_that_is_not_the_student_is_caught(place, student, tmp_path, monkeypatch):
    from safetensors.torch import load, save

    def damaged(strategy, folder_uri, **options):
        export(strategy, folder_uri, **options)
        store = open_store(folder_uri)
        tensors = load(store.read("model.safetensors"))
        tensors["lm_head.weight"].zero_()
        store.put("model.safetensors", save(tensors, metadata={"format": "pt"}))

    job = make_job(tmp_path if place == "disk" else place, student, numerics=Numerics(is_bf16=True))
    train(job, World())
    monkeypatch.setattr(loop, "export", damaged)
    with pytest.raises(StageError, match=r"models/sft: .* differ by 0\.[2-9]\d* nats .*, more than 0\.15;"):
        train(job, World())


def stop_after(job, num_steps: int) -> None:
    """Train only the first steps and export."""
    parts, state = loop._start(job, World())
    feed = loop.Feed(parts.units, job, World(), ref_sums=parts.ref)
    for step, data in feed.steps(0):
        if step == num_steps:
            break
        loop.take_step(parts, state, data, rate=loop.rate_at(job, step))
    loop._finish(parts, state)


def test_a_loss_that_is_not_finite_stops_with_the_step_and_the_rows(student, tmp_path):
    job = make_job(tmp_path, student, rates=Rates(peak=1e30, kind="constant", warmup_ratio=0.0))
    with pytest.raises(StageError, match=r"step [1-9]: loss .*nan.*the rows were r\d+, .*Lower the learning rate"):
        train(job, World())
    assert not (tmp_path / "models").exists()


@pytest.mark.parametrize("ld_alpha", [None, 0.5])
def test_the_loss_of_validation_is_that_of_the_steps(student, tmp_path, ld_alpha):
    """Before the first update, on the training pairs themselves: the preference term and the SFT term."""
    preference = PreferenceSettings(sft_weight=0.5, ld_alpha=ld_alpha)
    cadence = Cadence(checkpoint_every=100, validate_every=1, is_async=False)
    job = make_job(tmp_path, student, "dpo", num_rows=16, preference=preference, cadence=cadence, rates=Rates(peak=0.0))
    job = replace(
        job, validation=job.units, micro_batch=1, plan=replace(job.plan, batch=job.plan.sources[0].num_units, epochs=1)
    )
    train(job, World())
    (line,) = metrics(job)
    assert line["validation_loss"] == pytest.approx(line["loss"], rel=1e-6)
    assert line["loss"] > 1


def test_a_validation_that_is_not_finite_stops_the_run(student, tmp_path, monkeypatch):
    job = make_job(tmp_path, student, cadence=Cadence(checkpoint_every=100, validate_every=1, is_async=False))
    monkeypatch.setattr(scoring, "score", lambda *args, **kwargs: np.array([[float("nan")]]))
    with pytest.raises(StageError, match="validation loss nan: the model is ruined"):
        train(job, World())


def test_a_checkpoint_of_another_run_is_refused(unbroken, student):
    job = replace(unbroken, fingerprint={"seed": "4"})
    with pytest.raises(ConfigError, match="another run"):
        train(job, World())


def test_a_driver_that_was_taken_over_writes_no_checkpoint(student, tmp_path):
    job = make_job(tmp_path, student)
    make_job(tmp_path, student)
    with pytest.raises(FencedError):
        train(job, World())
    assert not (tmp_path / "checkpoints").exists()
