"""From a model folder and a strategy's name to a model that is loaded, spread over the workers, ready to train."""

from moaa_ray.training.strategies.base import Numerics, Strategy, World
from moaa_ray.training.strategies.ddp import Ddp
from moaa_ray.training.strategies.fsdp2 import Fsdp2
from moaa_ray.training.strategies.single import Single
from moaa_ray.training.weights import build_student, load_weights, whole_weights


def build_strategy(name: str, folder: str, world: World, numerics: Numerics, *, cpu_offload: bool = False) -> Strategy:
    """The strategy of this name (fsdp2, ddp, single, deepspeed) around the student in `folder`."""
    student = build_student(folder)
    if name == "deepspeed":
        from moaa_ray.training.strategies.deepspeed import DeepSpeed

        sharded = DeepSpeed(student, world, numerics, cpu_offload=cpu_offload)
        sharded.fill(whole_weights(student, folder))
        return sharded
    strategy = {"fsdp2": Fsdp2, "ddp": Ddp, "single": Single}[name](student, world, numerics)
    load_weights(strategy.model, folder)
    return strategy
