"""One Ray for all stages of a run: started by the first that needs it, large enough for all, stopped at the end."""

import os
import socket
import time

import pytest

from moaa_ray.errors import ConfigError, StageError
from moaa_ray.generation import session as sessions
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


@pytest.fixture
def port():
    """One at which somebody listens."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


@pytest.mark.parametrize("address", ["127.0.0.1:{port}", "ray://127.0.0.1:{port}", "no-such-host.invalid:6379"])
def test_a_cluster_that_is_not_there_is_told_within_seconds(monkeypatch, address):
    monkeypatch.setattr(sessions, "_OPEN_LIMIT_S", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as server:
        free = server.getsockname()[1]
    address = address.replace("{port}", str(free))
    began = time.monotonic()
    with (
        pytest.raises(ConfigError, match=rf"ray\.address = {address}: no Ray cluster answers there .*; start one"),
        session(RayConfig(address=address), cpu_slots=1),
    ):
        pass
    assert time.monotonic() - began < 30


def test_another_version_of_ray_on_the_cluster_is_told_with_the_way_out(monkeypatch, port):
    """Ray's own words, when the driver is another version than the cluster."""
    import ray

    def init(**_):
        raise RuntimeError(
            "Version mismatch: The cluster was started with:\n    Ray: 2.59.0\nThis process was:\n    2.60"
        )

    monkeypatch.setattr(ray, "init", init)
    with (
        pytest.raises(
            ConfigError, match=rf"ray\.address = 127\.0\.0\.1:{port}: Version mismatch: .*; install the same Ray"
        ),
        session(RayConfig(address=f"127.0.0.1:{port}"), cpu_slots=1),
    ):
        pass


def test_a_cluster_that_wants_another_token_is_told_by_its_address(monkeypatch, port):
    import ray

    def init(**_):
        raise RuntimeError("InvalidAuthToken: Authentication token is missing or incorrect")

    monkeypatch.setattr(ray, "init", init)
    with (
        pytest.raises(ConfigError, match=rf"127\.0\.0\.1:{port}: .*InvalidAuthToken.*; see to address and token"),
        session(RayConfig(address=f"127.0.0.1:{port}"), cpu_slots=1),
    ):
        pass


def test_a_cluster_that_does_not_answer_a_wrong_token_may_want_another(monkeypatch, port):
    """What Ray 2.60 says of a wrong token, and of none."""
    import ray

    def init(**_):
        raise ConnectionError(f"Failed to connect to Ray cluster at 127.0.0.1:{port}")

    monkeypatch.setattr(ray, "init", init)
    with (
        pytest.raises(ConfigError, match=r"and the token that it wants \(RAY_AUTH_MODE, RAY_AUTH_TOKEN\)"),
        session(RayConfig(address=f"127.0.0.1:{port}"), cpu_slots=1),
    ):
        pass


def test_what_ray_says_of_a_start_that_fails_does_not_bury_the_way_out(monkeypatch):
    import ray

    def init(**_):
        raise RuntimeError("a line of dashboard.log\n" * 20)

    monkeypatch.setattr(ray, "init", init)
    with (
        pytest.raises(StageError, match=r"^Ray did not start \(.{300}\); free this machine's CPUs and run it again$"),
        session(LOCAL, cpu_slots=1),
    ):
        pass
