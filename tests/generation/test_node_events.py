"""Why a worker died, as far as Ray knows."""

from types import SimpleNamespace

import pytest
import ray
from ray.exceptions import RpcError

from moaa_ray.generation import node_events
from moaa_ray.generation.node_events import is_blameless_death


@pytest.fixture
def asked(monkeypatch) -> list:
    """The addresses at which Ray is asked; the node "here" is alive."""
    context = SimpleNamespace(gcs_address="10.0.0.1:6379")
    monkeypatch.setattr(ray, "get_runtime_context", lambda: context)
    monkeypatch.setattr(ray, "nodes", lambda: [{"NodeID": "here", "Alive": True}, {"NodeID": "gone", "Alive": False}])
    return []


@pytest.mark.parametrize(
    ("exit_type", "is_blameless"), [("NODE_OUT_OF_MEMORY", True), ("SYSTEM_ERROR", False), (None, False)]
)
def test_the_runs_own_cluster_is_asked_how_a_worker_ended(monkeypatch, asked, exit_type, is_blameless):
    def get_worker(worker_id, *, address, timeout):
        asked.append((worker_id, address))
        return SimpleNamespace(exit_type=exit_type) if exit_type else None

    monkeypatch.setattr(node_events, "get_worker", get_worker)
    assert is_blameless_death("here", "w1") is is_blameless
    assert asked == [("w1", "10.0.0.1:6379")]


@pytest.mark.parametrize("error", [RpcError("Timed out while waiting for GCS"), ConnectionError(), ValueError()])
def test_a_worker_of_which_ray_cannot_tell_is_blamed_and_the_run_goes_on(monkeypatch, asked, error):
    def get_worker(*_, **__):
        raise error

    monkeypatch.setattr(node_events, "get_worker", get_worker)
    assert not is_blameless_death("here", "w1")


def test_a_worker_on_a_lost_node_is_not_blamed(asked):
    assert is_blameless_death("gone", "w1")
