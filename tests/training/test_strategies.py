"""Every strategy, number of workers and accumulation takes the same steps."""

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

from moaa_ray.training.step import StepResult
from moaa_ray.training.strategies.base import Numerics, World
from moaa_ray.training.strategies.fsdp2 import num_replicas
from tests.training.workers import train_steps


def assert_same_curve(got: list[StepResult], wanted: list[StepResult], *, rel: float = 1e-5) -> None:
    assert len(got) == len(wanted)
    for a, b in zip(got, wanted, strict=True):
        assert a.loss == pytest.approx(b.loss, rel=rel)
        assert a.grad_norm == pytest.approx(b.grad_norm, rel=rel)
        # Ratios are small differences of float32 log-probabilities that add up to about -100.
        assert a.metrics == pytest.approx(b.metrics, rel=rel, abs=1e-4)


def test_accumulation_changes_nothing():
    whole = train_steps("single", num_workers=1, per_worker=8)
    assert whole[0].loss != pytest.approx(whole[3].loss, rel=1e-3)
    assert_same_curve(train_steps("single", num_workers=1, per_worker=2), whole)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("strategy", "num_workers", "per_worker"),
    [
        ("ddp", 2, 4),
        ("fsdp2", 2, 1),
        ("fsdp2 gathered", 2, 1),
        pytest.param("fsdp2", 1, 8, marks=pytest.mark.long),
        pytest.param("fsdp2", 4, 2, marks=pytest.mark.long),
    ],
)
def test_strategies_and_workers_change_nothing(strategy, num_workers, per_worker):
    alone = train_steps("single", num_workers=1, per_worker=8, num_steps=10)
    many = train_steps(strategy, num_workers=num_workers, per_worker=per_worker, num_steps=10)
    assert_same_curve(many, alone)


def test_every_node_has_a_replica_unless_shards_are_over_all():
    nodes = World(size=16, workers_per_node=8)
    assert num_replicas(nodes, Numerics()) == 2
    assert num_replicas(nodes, Numerics(sharding="all")) == 1
    assert num_replicas(World(size=16, workers_per_node=1), Numerics()) == 1


@pytest.mark.slow
@pytest.mark.parametrize("sharding", ["node", "all"])
def test_two_nodes_of_two_workers_change_nothing(sharding):
    alone = train_steps("single", num_workers=1, per_worker=8, num_steps=3)
    many = train_steps(f"fsdp2 {sharding}", num_workers=4, per_worker=1, num_steps=3)
    assert_same_curve(many, alone, rel=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("family", ["qwen3", pytest.param("gemma2", marks=pytest.mark.long)])
def test_tied_output_layers_are_sharded_right(family):
    # Two steps: this model's curve is so steep that `single` with another accumulation is 3e-5 off after four.
    alone = train_steps("single", num_workers=1, per_worker=8, family=family, num_steps=2)
    assert_same_curve(train_steps("fsdp2", num_workers=2, per_worker=2, family=family, num_steps=2), alone)
