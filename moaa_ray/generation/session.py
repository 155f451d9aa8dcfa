"""The only place that calls ray.init, and the settings of Ray Data that every stage runs with."""

import logging
import os
import re
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

import ray

from moaa_ray.errors import ConfigError, StageError
from moaa_ray.recipe import RayConfig

_START_ATTEMPTS = 3
_OPEN_LIMIT_S = 10.0
_SPARE_CPU_SLOTS = 4
"""Logical CPUs of a local cluster beyond the pools', so that Ray's own tasks never wait for a pool to end."""


@dataclass
class _Whole:
    """The one session of a run of several stages."""

    cpu_slots: float
    with_dashboard: bool
    is_started: bool = False
    is_local: bool = False


_WHOLE: ContextVar[_Whole | None] = ContextVar("moaa_whole_session", default=None)


@contextmanager
def one_session(*, cpu_slots: float, with_dashboard: bool) -> Iterator[None]:
    """Makes all sessions within the block one: the first that needs Ray starts it, the end of the block stops it.

    Within such a block another one adds nothing. Args: what the most demanding of them needs; see `session`.
    """
    if _WHOLE.get() is not None:
        yield
        return
    whole = _Whole(cpu_slots=cpu_slots, with_dashboard=with_dashboard)
    token = _WHOLE.set(whole)
    try:
        yield
    finally:
        _WHOLE.reset(token)
        if whole.is_started:
            ray.shutdown()


@contextmanager
def session(config: RayConfig, *, cpu_slots: float, with_dashboard: bool = False) -> Iterator[bool]:
    """A connection to Ray for the time of the block; yields whether it is a cluster started here, stopped at the end.

    Args: cpu_slots, the CPU slots that the pools take; a local cluster gets at least that many. with_dashboard: Ray
    Train needs it, as without one its clean-up of placement groups takes living workers for orphans.
    """
    whole = _WHOLE.get() or _Whole(cpu_slots=cpu_slots, with_dashboard=with_dashboard)
    if ray.is_initialized():
        _tame_logs()
        yield whole.is_local
        return
    address = address_of(config)
    os.environ.setdefault("RAY_DATA_DISABLE_PROGRESS_BARS", "1")
    options = {"address": address, "logging_level": logging.ERROR, "log_to_driver": False}
    if address == "local":
        wanted = int(max(cpu_slots, whole.cpu_slots)) + _SPARE_CPU_SLOTS
        num_cpus = config.num_cpus or max(os.cpu_count() or 1, wanted)
        # Ray's own 15 lets every background process go before the engines, which are what a run waits for.
        os.environ.setdefault("RAY_worker_niceness", "0")
        options |= {"num_cpus": num_cpus, "include_dashboard": with_dashboard or whole.with_dashboard}
    try:
        _wait_until_open(address)
        _init(options, num_attempts=_START_ATTEMPTS if address == "local" else 1)
    except ConnectionError as error:
        raise ConfigError(
            f"ray.address = {address}: no Ray cluster answers there ({error}); start one, give its address (here or in "
            "RAY_ADDRESS) and the token that it wants (RAY_AUTH_MODE, RAY_AUTH_TOKEN), or set ray.address=local"
        ) from error
    _tame_logs()
    whole.is_started, whole.is_local = True, address == "local"
    try:
        yield whole.is_local
    finally:
        if _WHOLE.get() is None:
            ray.shutdown()


def address_of(config: RayConfig) -> str:
    """Where a session connects to; "local": it starts a cluster of its own."""
    return (os.environ.get("RAY_ADDRESS") or "local") if config.address == "auto" else config.address


def _wait_until_open(address: str) -> None:
    """Raise ConnectionError where nobody listens at a host and port; Ray itself would try for many minutes."""
    place = re.fullmatch(r"(?:ray://)?\[?([^/\]]+?)\]?:(\d{1,5})", address)
    deadline = time.monotonic() + _OPEN_LIMIT_S
    while place:
        try:
            socket.create_connection((place[1], int(place[2])), timeout=_OPEN_LIMIT_S).close()
            return
        except (OSError, OverflowError) as error:
            if time.monotonic() > deadline:
                raise ConnectionError(f"{type(error).__name__}: {error}") from error
        time.sleep(0.5)


def _init(options: dict, *, num_attempts: int) -> None:
    """ray.init; a local cluster that does not come up in time on a busy machine is tried again."""
    for attempt in range(1, num_attempts + 1):
        try:
            with _own_sigterm():
                ray.init(**options)
            return
        except ConnectionError:
            raise
        except Exception as error:  # Ray raises a bare Exception when its own node is slow to start
            if "Version mismatch" in str(error):
                raise ConfigError(
                    f"ray.address = {options['address']}: {' '.join(str(error).split())}; install the same Ray and "
                    "Python here and on all nodes, e.g. with the image of cluster/Dockerfile"
                ) from error
            if options["address"] != "local":
                raise ConfigError(
                    f"ray.address = {options['address']}: this cluster does not let the run in "
                    f"({type(error).__name__}: {' '.join(str(error).split())[:400]}); see to address and token "
                    "(RAY_AUTH_MODE, RAY_AUTH_TOKEN), or set ray.address=local"
                ) from error
            if "timed out during startup" not in str(error) or attempt == num_attempts:
                said = " ".join(str(error).split())[:300]
                raise StageError(f"Ray did not start ({said}); free this machine's CPUs and run it again") from error
            ray.shutdown()


@contextmanager
def _own_sigterm() -> Iterator[None]:
    """Keeps this process's handler of SIGTERM: Ray puts its own in place, which ends the driver with exit code 1."""
    handler = signal.getsignal(signal.SIGTERM)
    if threading.current_thread() is not threading.main_thread() or not callable(handler):
        yield
        return
    try:
        try:
            yield
        finally:
            signal.signal(signal.SIGTERM, handler)
    except SystemExit:  # what Ray's handler makes of a SIGTERM that comes while Ray starts
        signal.raise_signal(signal.SIGTERM)
        raise


def log_folder() -> str:
    """Where Ray and the engines write their own logs on the head node."""
    return os.path.join(ray.get_runtime_context().get_temp_dir(), "session_latest", "logs")


def _tame_logs() -> None:
    """Ray Data's running commentary goes to its log file only."""
    for name in ("ray.data", "ray.data._internal", "ray"):
        logging.getLogger(name).setLevel(logging.ERROR)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
