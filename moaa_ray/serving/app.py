"""The Serve application: a deployment for every engine, and one in front that takes requests.

    ingress (Front) --> one ModelServer per model: the proposers, the aggregator, the students

A Serve config file names `moaa_ray.serving.app:build`, with the recipe under `args`.
"""

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any, cast

from grpc.aio import AioRpcError
from ray import serve
from ray.exceptions import RayError
from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentHandle, DeploymentResponseGenerator
from starlette.requests import Request
from starlette.responses import Response

from moaa_ray.core.mixture import MixturePass
from moaa_ray.core.packing_gpus import Cluster
from moaa_ray.errors import ConfigError
from moaa_ray.generation.placing import ray_cluster
from moaa_ray.loading import load_preference
from moaa_ray.serving.front import Front
from moaa_ray.serving.keys import read_keys
from moaa_ray.serving.mixture import Pieces
from moaa_ray.serving.model_server import ModelServer
from moaa_ray.serving.offer import Offer, WritingModel, offer_of
from moaa_ray.serving.splitting import split_offer
from moaa_ray.settings.base import ReplicaRange
from moaa_ray.types import Answer, Failure, Row

_READY_WITHIN_S, _PROBE_EVERY_S = 2.0, 0.5
_LOST = Failure(reason="unavailable")
_TOO_LONG = Failure(
    reason="context_length", detail="more than this server passes on in one piece; shorten it", retryable=False
)
_BROKEN = (RayError, RayServeException, AioRpcError, RuntimeError)
"""How a call ends that no replica has answered; the last two where gRPC says why, of a stream in Serve's words."""
_HEALTH = {"health_check_period_s": 5.0, "health_check_timeout_s": 60.0}
"""A replica that loads or computes on few CPUs may be slow to say that it lives."""
_NO_LIMIT = 100_000
"""Requests at a time in a replica. Front counts those that it works on, and engines have queues of their own; where
Serve has to hold requests back it asks again and again whether there is room, and answers 503 in the end."""


class ReplicaModels:
    """The `Models` of a Serve application: each call goes to a replica of the model's deployment.

    A call without any replica would wait for one. So a model that lost one is not called again until it
    answers a probe, and meanwhile fails at once: a mixture goes on without it, and nobody waits.
    """

    def __init__(self, handles: Mapping[str, DeploymentHandle]):
        # By value is by gRPC: half the latency of a task of Ray's for each message, which it is by default.
        self._handles = {name: handle.options(_by_reference=False) for name, handle in handles.items()}
        self._streams = {name: handle.options(stream=True) for name, handle in self._handles.items()}
        self._lost: dict[str, asyncio.Task] = {}

    async def answer(self, p: MixturePass, row: Row) -> dict[str, Answer]:
        if p.engine in self._lost:
            return p.all_failed(row, _LOST)
        response = self._handles[p.engine].answer.remote(p, row)
        try:
            return await response
        except asyncio.CancelledError:
            response.cancel()
            raise
        except _BROKEN as error:
            return p.all_failed(row, self._failure(p.engine, error))

    async def stream(self, p: MixturePass, row: Row) -> Pieces:
        if p.engine in self._lost:
            yield _LOST
            return
        response = cast(DeploymentResponseGenerator, self._streams[p.engine].stream.remote(p, row))
        is_over = False
        try:
            async for batch in response:
                for piece in batch:
                    yield piece
            is_over = True
        except _BROKEN as error:
            is_over = True
            yield self._failure(p.engine, error)
        finally:
            if not is_over:
                response.cancel()

    def _failure(self, name: str, error: Exception) -> Failure:
        """What a call comes to whose replica has gone, is not there, or cannot take as much."""
        if "StatusCode.RESOURCE_EXHAUSTED" in str(error):
            return _TOO_LONG
        if name not in self._lost:
            self._lost[name] = asyncio.create_task(self._until_back(name))
        return Failure(reason=_LOST.reason, detail=type(error).__name__)

    async def _until_back(self, name: str) -> None:
        while not await self._is_ready(self._handles[name]):
            await asyncio.sleep(_PROBE_EVERY_S)
        del self._lost[name]

    async def missing(self) -> list[str]:
        found = await asyncio.gather(*(self._is_ready(handle) for handle in self._handles.values()))
        ready = {name for name, is_ready in zip(self._handles, found, strict=True) if is_ready}
        return [name for name in self._handles if name not in ready - self._lost.keys()]

    async def _is_ready(self, handle: DeploymentHandle) -> bool:
        response = handle.ready.remote()
        try:
            async with asyncio.timeout(_READY_WITHIN_S):
                return await response
        except TimeoutError:
            response.cancel()
        except _BROKEN:
            pass
        return False


class ModelReplica(ModelServer):
    """The deployment of one model."""

    async def __del__(self) -> None:
        """Serve awaits this when a replica ends; it gives no other sign of the end."""
        await self.stop()


class Exchange(Response):
    """A reply that is written while the request is read: Serve runs it as it would any other response."""

    def __init__(self, front: Front):
        self.background = None
        self._front = front

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        await self._front(scope, receive, send)


class Ingress:
    """The deployment in front."""

    def __init__(self, offer: Offer, handles: Mapping[str, DeploymentHandle]):
        self._front = Front(offer, ReplicaModels(handles), read_keys(offer.config, offer.base_dir))

    async def __call__(self, _request: Request) -> Response:
        return Exchange(self._front)


def app_of(offer: Offer, *, on_gpu: Mapping[str, bool]) -> serve.Application:
    """The application of an offer. on_gpu: whether each engine runs on GPUs."""
    handles = {
        name: _deployment(i, name, model, on_gpu=on_gpu[name]) for i, (name, model) in enumerate(offer.engines.items())
    }
    options = {"num_replicas": offer.config.ingresses, "max_ongoing_requests": _NO_LIMIT, **_HEALTH}
    ingress = cast(serve.Deployment, serve.deployment(Ingress))
    return ingress.options(name="ingress", **options).bind(offer, handles)


def _deployment(number: int, name: str, model: WritingModel, *, on_gpu: bool) -> serve.Application:
    most = 1
    if isinstance(model.replicas, ReplicaRange):
        most = model.replicas.max
    elif model.replicas != "auto":
        most = model.replicas
    replica = cast(serve.Deployment, serve.deployment(ModelReplica))
    named = replica.options(name=f"{number}-{name.replace('/', '-')}", **replica_options(model, on_gpu=on_gpu))
    return named.bind(model, on_gpu=on_gpu, share=1 / most)


def replica_options(model: WritingModel, *, on_gpu: bool) -> dict[str, Any]:
    """How Serve is to run a model's replicas."""
    options: dict[str, Any] = {"max_ongoing_requests": _NO_LIMIT, "user_config": {}, **_HEALTH}
    options["logging_config"] = {"enable_access_log": False}  # the ingress has one
    if isinstance(model.replicas, ReplicaRange):
        options["autoscaling_config"] = {
            "min_replicas": model.replicas.min,
            "max_replicas": model.replicas.max,
            "target_ongoing_requests": max(1, model.concurrency // 2),
        }
    elif model.replicas != "auto":
        options["num_replicas"] = model.replicas
    options["ray_actor_options"] = {"num_cpus": model.num_cpus, "num_gpus": model.num_gpus if on_gpu else 0}
    if model.node_labels:
        options["ray_actor_options"]["label_selector"] = dict(model.node_labels)
    return options


def engines_on_gpu(offer: Offer, *, has_gpus: bool) -> dict[str, bool]:
    """Whether each engine runs on GPUs, by the model's `device`. Raises ConfigError for a GPU that is not there."""
    on_gpu = {}
    for name, model in offer.engines.items():
        device = getattr(model, "device", "cpu")  # engines without weights have none
        if device == "gpu" and not has_gpus:
            raise ConfigError(f"models.{name}.device = 'gpu': the cluster has no GPU; set it to auto or cpu")
        on_gpu[name] = device == "gpu" or (device == "auto" and has_gpus)
    return on_gpu


def build(args: Mapping[str, Any]) -> serve.Application:
    """The application for a Serve config file. args: recipe (a path), overrides (a list), gpus (true by default).

    The config file says where Serve listens, so clients always have to show keys here.
    """
    overrides: Sequence[str] = args.get("overrides", ())
    loaded = load_preference(args["recipe"], overrides)
    offer = offer_of(loaded)
    if not offer.config.has_keys:
        raise ConfigError("serve.api_keys: missing; a Serve config file may listen anywhere, set it or api_keys_file")
    on_gpu = engines_on_gpu(offer, has_gpus=args.get("gpus", True))
    cluster = ray_cluster(0.0, is_local=False) if any(on_gpu.values()) else Cluster(nodes=())
    return app_of(split_offer(offer, loaded.recipe.plan, cluster), on_gpu=on_gpu)
