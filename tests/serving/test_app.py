"""How the models are put behind Ray Serve; that they answer there is test_serve.py's business."""

from moaa_ray.serving.app import replica_options
from moaa_ray.settings.base import ReplicaRange
from moaa_ray.settings.models import FakeModel, VllmModel


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
