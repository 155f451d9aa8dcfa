"""How the models are put behind Ray Serve; that they answer there is test_serve.py's business."""

import asyncio
from typing import Any

import pytest
from grpc import StatusCode
from grpc.aio import AioRpcError, Metadata
from ray.exceptions import RayError

from moaa_ray.core.mixture import MixturePass
from moaa_ray.serving.app import ReplicaModels, replica_options
from moaa_ray.settings.base import ReplicaRange
from moaa_ray.settings.models import FakeModel, VllmModel
from moaa_ray.types import Failure, Message, Row
from tests.serving.local import offer, recipe, run


def test_serve_never_holds_back_what_an_engine_would_take_into_its_own_queue():
    """Serve's own limit has it ask again and again for room: 256 clients got a fifth of the answers a second."""
    for concurrency in (1, 64):
        options = replica_options(FakeModel(engine="fake", concurrency=concurrency), on_gpu=False)
        assert options["max_ongoing_requests"] >= 100_000


def test_a_model_takes_what_its_recipe_says():
    model = VllmModel(
        engine="vllm", model="m", tensor_parallel=4, num_cpus=2, replicas=3, node_labels={"accelerator": "h100"}
    )
    options = replica_options(model, on_gpu=True)
    assert options["num_replicas"] == 3
    wanted = {"num_cpus": 2, "num_gpus": 4, "label_selector": {"accelerator": "h100"}}
    assert options["ray_actor_options"] == wanted
    assert replica_options(model, on_gpu=False)["ray_actor_options"]["num_gpus"] == 0


def test_replicas_of_a_range_are_added_when_an_engine_is_half_full():
    model = FakeModel(engine="fake", concurrency=32, replicas=ReplicaRange(min=1, max=5))
    scaling = replica_options(model, on_gpu=False)["autoscaling_config"]
    assert scaling == {"min_replicas": 1, "max_replicas": 5, "target_ongoing_requests": 16}


class Handle:
    """Serve's handle of a deployment: every call ends with the error, where there is one."""

    def __init__(self):
        self.error: Exception | None = None
        self.answer = self.ready = self
        self.known: dict[str, Any] = {}

    def options(self, **options: Any) -> "Handle":
        self.known |= options
        return self

    async def remote(self, *_args: Any) -> Any:
        if self.error:
            raise self.error
        return {"id": "answered"}


def rpc_error(code: StatusCode) -> AioRpcError:
    return AioRpcError(code, Metadata(), Metadata(), details="told by gRPC")


def asked(tmp_path):
    """A pass of one model, and a row for it."""
    what = offer(tmp_path, recipe(serve={"models": ["a"]}))
    return what.alone["a"], Row(id="r", source="s", messages=(Message(role="user", content="Hello!"),))


def models_of(handle: Handle) -> ReplicaModels:
    return ReplicaModels({"a": handle})  # pyright: ignore[reportArgumentType]: a fake


async def failure_of(models: ReplicaModels, handle: Handle, p: MixturePass, row: Row, error: Exception) -> Failure:
    """What a call comes to that ends with the error."""
    handle.error = error
    (answer,) = (await models.answer(p, row)).values()
    assert isinstance(answer, Failure)
    return answer


def test_replicas_are_called_by_grpc_also_where_the_cluster_does_not_say_so():
    handle = Handle()
    models_of(handle)
    assert handle.known == {"_by_reference": False, "stream": True}


TOO_LONG = rpc_error(StatusCode.RESOURCE_EXHAUSTED)
OF_A_STREAM = RuntimeError("Unexpected error (StatusCode.RESOURCE_EXHAUSTED): Received message larger than max.")


@pytest.mark.parametrize("error", [TOO_LONG, OF_A_STREAM])
def test_a_request_that_is_too_long_for_grpc_is_the_clients_fault_and_costs_nobody_the_model(tmp_path, error):
    async def told() -> None:
        handle, (p, row) = Handle(), asked(tmp_path)
        models = models_of(handle)
        failure = await failure_of(models, handle, p, row, error)
        assert (failure.reason, failure.retryable) == ("context_length", False)
        handle.error = None
        assert await models.answer(p, row) == {"id": "answered"}

    run(told())


@pytest.mark.parametrize("error", [rpc_error(StatusCode.CANCELLED), RayError("gone")])
def test_a_model_is_missing_from_the_call_that_failed_until_it_answers_a_probe(tmp_path, error):
    async def told() -> None:
        handle, (p, row) = Handle(), asked(tmp_path)
        models = models_of(handle)
        assert (await failure_of(models, handle, p, row, error)).reason == "unavailable"
        await asyncio.sleep(0.01)  # a first probe fails as the call has
        handle.error = None
        assert await models.missing() == ["a"]  # as no request would reach it yet
        while await models.missing():
            await asyncio.sleep(0.05)
        assert await models.answer(p, row) == {"id": "answered"}

    run(told())
