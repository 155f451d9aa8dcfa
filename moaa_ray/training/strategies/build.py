"""From a model folder and a strategy's name to a model that is loaded, spread over the workers, ready to train."""

from moaa_ray.errors import ConfigError
from moaa_ray.training.lora import LoraSettings, add_adapters, init_adapters
from moaa_ray.training.strategies.base import Numerics, Strategy, World
from moaa_ray.training.strategies.ddp import Ddp
from moaa_ray.training.strategies.fsdp2 import Fsdp2
from moaa_ray.training.strategies.single import Single
from moaa_ray.training.weights import build_student, load_weights, plain_name, whole_weights


def build_strategy(
    name: str,
    folder: str,
    world: World,
    numerics: Numerics,
    *,
    cpu_offload: bool = False,
    lora: LoraSettings | None = None,
) -> Strategy:
    """The strategy of this name (fsdp2, ddp, single, deepspeed) around the student in `folder`.

    With lora the student is frozen and its adapters are trained. Raises ConfigError where they cannot be.
    """
    student = build_student(folder)
    if lora is not None:
        if name == "deepspeed":
            raise ConfigError("lora with strategy = deepspeed is not supported; choose fsdp2, ddp or single")
        add_adapters(student, lora, is_bf16=numerics.is_bf16)
    if name == "deepspeed":
        from moaa_ray.training.strategies.deepspeed import DeepSpeed

        sharded = DeepSpeed(student, world, numerics, cpu_offload=cpu_offload)
        sharded.fill(whole_weights(student, folder))
        return sharded
    strategy = {"fsdp2": Fsdp2, "ddp": Ddp, "single": Single}[name](student, world, numerics)
    load_weights(strategy.model, folder)
    if lora is not None:
        init_adapters(((plain_name(key), p) for key, p in strategy.model.named_parameters()), lora.seed)
    return strategy
