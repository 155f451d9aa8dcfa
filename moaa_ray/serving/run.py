"""`moaa serve` in the foreground: the models loaded, an address that works, and everything gone at the end."""

import errno
import json
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from ray import serve
from ray.serve.config import HTTPOptions, ProxyLocation
from rich.console import Console

from moaa_ray.errors import ConfigError, StageError
from moaa_ray.generation.placing import ray_cluster
from moaa_ray.generation.session import address_of, session
from moaa_ray.loading import LoadedPreference
from moaa_ray.planning.pools import least_replicas
from moaa_ray.serving.app import app_of, engines_on_gpu
from moaa_ray.serving.keys import read_keys
from moaa_ray.serving.offer import Offer, offer_of
from moaa_ray.serving.splitting import check_gpus, split_offer

_POLL_S = 0.5
_MAX_SAID_CHARS = 600
QUICK = {
    "RAY_SERVE_USE_GRPC_BY_DEFAULT": "1",
    "RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD": "0",
    "RAY_SERVE_REPLICA_GRPC_MAX_MESSAGE_LENGTH": str(2**31 - 1),
}
"""From Serve's proxy to the ingress by gRPC too (app.py), and one event loop in each replica, as nothing of ours
computes there: together half of what a mixture adds to its models' latency. What is too long says
serve.max_body_bytes alone: gRPC's own limit is 4 MiB, and a message is a request with its proposals."""


def serve_run(loaded: LoadedPreference, *, console: Console | None, tell: Callable[[str], None]) -> None:
    """Serve until SIGINT or SIGTERM, then release all of it. `tell` is given the text for people, once it works.

    Raises ConfigError before anything starts, StageError where a model does not come up.
    """
    offer = offer_of(loaded)
    name, config = loaded.recipe.name, offer.config
    if address_of(loaded.recipe.ray) == "local":
        read_keys(config, offer.base_dir)  # the ingress reads them for itself, on its own node
        _check_free(config.host, config.port)
    _check_proxy(offer)
    cpu_slots = 1 + sum(model.num_cpus * least_replicas(model) for model in offer.engines.values())
    make_quick()
    with session(loaded.recipe.ray, cpu_slots=cpu_slots) as is_local:
        cluster = ray_cluster(cpu_slots, is_local=is_local)
        on_gpu = engines_on_gpu(offer, has_gpus=cluster.num_gpus > 0)
        offer = split_offer(offer, loaded.recipe.plan, cluster)
        check_gpus(offer, on_gpu, cluster)
        serve.start(
            proxy_location=ProxyLocation.HeadOnly,
            http_options=HTTPOptions(host=config.host, port=config.port),
        )
        try:
            target = serve.RunTarget(app_of(offer, on_gpu=on_gpu), name=name)
            serve.run_many([target], wait_for_applications_running=False)
            _wait_until_up(name, config.start_timeout_s, console)
            with _signals() as stopped:
                tell(_welcome(offer))
                stopped.wait()
        finally:
            serve.shutdown() if is_local else serve.delete(name)


def make_quick() -> None:
    """Before a local Ray starts: its processes inherit this. A cluster's own processes need it in their environment."""
    for name, value in QUICK.items():
        os.environ.setdefault(name, value)


def _wait_until_up(name: str, timeout_s: float, console: Console | None) -> None:
    ends, told = time.monotonic() + timeout_s, ""
    while True:
        app = serve.status().applications[name]
        if app.status == "RUNNING":
            return
        waiting = [known for known, each in app.deployments.items() if each.status != "HEALTHY"]
        if app.status in ("DEPLOY_FAILED", "UNHEALTHY") or time.monotonic() > ends:
            said = {known: each.message for known, each in app.deployments.items() if known in waiting}
            why = "; ".join(f"{known}: {_last_line(text)}" for known, text in said.items())
            late = "" if app.status == "DEPLOY_FAILED" else f" within serve.start_timeout_s = {timeout_s:g} s"
            raise StageError(f"serve: these did not come up{late}: {why or _last_line(app.message)}")
        if console is not None and told != (now := ", ".join(waiting)):
            told = now
            console.print(f"starting: {now}")
        time.sleep(_POLL_S)


def _last_line(text: str) -> str:
    """What an actor's traceback comes to."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    errors = [line for line in lines if "Error: " in line]
    return (errors or lines or ["no reason given"])[-1][:_MAX_SAID_CHARS]


def _welcome(offer: Offer) -> str:
    config = offer.config
    host = f"[{config.host}]" if ":" in config.host else config.host
    url = f"http://{host}:{config.port}/v1"
    body = json.dumps({"model": offer.names[0], "messages": [{"role": "user", "content": "Hello!"}], "stream": True})
    key = " -H 'Authorization: Bearer KEY'" if config.has_keys else ""
    return (
        f"serving at {url}; ^C ends it\n  models: {', '.join(offer.names)}\n"
        f"  curl -N {url}/chat/completions -H 'Content-Type: application/json'{key} -d '{body}'"
    )


@contextmanager
def _signals() -> Iterator[threading.Event]:
    """An event that the first SIGINT or SIGTERM sets; a second one ends the process at once, as for every command."""
    stopped = threading.Event()

    def stop(number: int, _frame: object) -> None:
        if stopped.is_set():
            os._exit(128 + number)
        stopped.set()

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stopped
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _check_free(host: str, port: int) -> None:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            if isinstance(error, socket.gaierror) or error.errno == errno.EADDRNOTAVAIL:
                raise ConfigError(
                    f"serve.host = {host!r}: no address of this machine ({error.strerror}); take one that it has, "
                    "127.0.0.1 for itself alone or 0.0.0.0 for all"
                ) from None
            raise ConfigError(
                f"serve.port = {port}: cannot listen on {host}:{port} ({error.strerror}); take another port, e.g. "
                f"serve.port={port + 1}"
            ) from None


def _check_proxy(offer: Offer) -> None:
    """Serve's other proxy listens on all addresses, whatever it is told (Ray 2.60, serve/_private/constants.py)."""
    if os.environ.get("RAY_SERVE_ENABLE_HA_PROXY") == "1" and not offer.config.has_keys:
        raise ConfigError(
            f"serve.host = {offer.config.host!r}: with RAY_SERVE_ENABLE_HA_PROXY=1 Serve listens on all addresses; "
            "unset it, or set serve.api_keys"
        )
