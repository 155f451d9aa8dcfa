"""`moaa plan --simulate`: the figures, the picture, and runs that lose engines."""

from pathlib import Path

from typer.testing import CliRunner

from moaa_ray.cli import app
from moaa_ray.errors import ConfigError

JOBS = Path(__file__).parents[2] / "jobs"


def told(*args: str) -> str:
    command = ["plan", str(JOBS / "paper_moaa_llama_8gpu.yaml"), "run.stages=[generate]", "--simulate", *args]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0, done.output
    return done.output


def test_a_simulated_plan_shows_its_time_and_when_every_pool_is_busy():
    text = told("--cluster", "gpus=64,gpu=H100,cpus=512", "--rows", "20000")
    generate = text.split("\n\nsample:")[0]
    assert "simulated: " in generate
    assert "x the work bound" in generate
    bars = [line for line in generate.splitlines() if "GPUs, busy" in line]
    assert len(bars) == 5
    assert all("█" in bar for bar in bars)
    assert "all engines at work" in generate
    assert "made again" not in generate


def test_engines_that_are_lost_make_it_longer_and_are_counted():
    text = told("--cluster", "gpus=64,gpu=H100,cpus=512", "--rows", "20000", "--hours-between-losses", "2")
    assert "blocks made again after their engine was lost" in text


def test_phases_that_follow_each_other_stand_beside_each_other_in_the_picture():
    text = told("--cluster", "gpus=8,gpu=H100,cpus=64", "--rows", "2000")
    bars = [line for line in text.split("\n\nsample:")[0].splitlines() if "GPUs, busy" in line]
    assert any("...." in bar for bar in bars)


def test_losses_without_a_simulation_are_refused_rather_than_left_out():
    done = CliRunner().invoke(app, ["plan", str(JOBS / "self_moa.yaml"), "--hours-between-losses", "2"])
    assert isinstance(done.exception, ConfigError)
    assert "add --simulate" in str(done.exception)
