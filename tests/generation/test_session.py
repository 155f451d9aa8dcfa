"""One Ray for all stages of a run: started by the first that needs it, large enough for all, stopped at the end."""

import os

import pytest

from moaa_ray.errors import ConfigError
from moaa_ray.generation.session import one_session, session
from moaa_ray.recipe import RayConfig

LOCAL = RayConfig(address="local")


@pytest.mark.slow
def test_sessions_within_a_whole_are_one_and_as_large_as_the_largest_needs():
    import ray

    with one_session(cpu_slots=7, with_dashboard=False):
        assert not ray.is_initialized()
        with session(LOCAL, cpu_slots=1) as is_local:
            assert is_local
            first = ray.get_runtime_context().get_node_id()
            assert ray.cluster_resources()["CPU"] >= 7
            assert ray.get(ray.remote(lambda: os.nice(0)).remote()) == os.nice(
                0
            )  # Ray's own workers stand back for all others
        with session(LOCAL, cpu_slots=3) as is_local:
            assert is_local
            assert ray.get_runtime_context().get_node_id() == first
    assert not ray.is_initialized()


@pytest.mark.slow
def test_a_session_alone_ends_with_its_block_also_when_the_stage_fails():
    import ray

    with pytest.raises(ZeroDivisionError), session(LOCAL, cpu_slots=1):
        raise ZeroDivisionError
    assert not ray.is_initialized()


def test_a_whole_in_which_nothing_needs_ray_starts_none():
    import ray

    with one_session(cpu_slots=7, with_dashboard=True):
        pass
    assert not ray.is_initialized()


def test_another_version_of_ray_on_the_cluster_is_told_with_the_way_out(monkeypatch):
    """Ray's own words, when the driver is another version than the cluster."""
    import ray

    def init(**_):
        raise RuntimeError(
            "Version mismatch: The cluster was started with:\n    Ray: 2.59.0\nThis process was:\n    2.60"
        )

    monkeypatch.setattr(ray, "init", init)
    with (
        pytest.raises(
            ConfigError, match=r"ray\.address = 10\.0\.0\.1:6379: Version mismatch: .*; install the same Ray"
        ),
        session(RayConfig(address="10.0.0.1:6379"), cpu_slots=1),
    ):
        pass


def test_a_cluster_that_wants_another_token_is_told_by_its_address(monkeypatch):
    import ray

    def init(**_):
        raise RuntimeError("InvalidAuthToken: Authentication token is missing or incorrect")

    monkeypatch.setattr(ray, "init", init)
    with (
        pytest.raises(ConfigError, match=r"10\.0\.0\.1:6379: .*InvalidAuthToken.*; see to address and token"),
        session(RayConfig(address="10.0.0.1:6379"), cpu_slots=1),
    ):
        pass
