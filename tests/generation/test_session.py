"""One Ray for all stages of a run: started by the first that needs it, large enough for all, stopped at the end."""

import pytest

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
