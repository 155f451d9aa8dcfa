"""Over how many GPUs one engine is split, where nobody has said it.

A degree is the number of GPUs that every layer is split over (tensor parallelism); groups of so many GPUs may stand one
behind the other (pipeline parallelism), each with a part of the layers.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from math import ceil, log2

from moaa_ray.core.gpus import GpuType
from moaa_ray.core.model_size import ModelShape
from moaa_ray.core.packing_gpus import Cluster
from moaa_ray.core.throughput import EngineSize, gpu_bytes, memory_sum, needed_gpus
from moaa_ray.errors import ConfigError

DOUBLING_COST = 0.05
"""Part of the speed that each doubling of the degree must bring to be worth it: the roofline leaves out what the GPUs
of an engine say to each other; an assumption."""


def degrees(shape: ModelShape, most: int) -> list[int]:
    """Powers of two up to `most` by which vLLM can split the model's layers, in ascending order.

    It gives every GPU as many attention heads and as much of the feed-forward width as any other, and where there are
    fewer KV heads than GPUs a copy of one. Example: Qwen2.5-7B has 28 heads: 1, 2 and 4, but not 8.
    """
    return [size for size in (2**i for i in range(max(1, most).bit_length())) if divides(size, shape)]


def divides(degree: int, shape: ModelShape) -> bool:
    """Whether vLLM can split the model's layers by this degree, by the rule of `degrees`."""
    return (
        shape.num_heads % degree == 0
        and shape.inner % degree == 0
        and max(shape.num_kv_heads, degree) % min(shape.num_kv_heads, degree) == 0
    )


def check_degree(name: str, degree: int, shape: ModelShape) -> None:
    """Raise ConfigError for a degree that the recipe names and vLLM would refuse once it has loaded."""
    if not divides(degree, shape):
        near = [size for size in range(1, 2 * degree) if divides(size, shape)]
        raise ConfigError(
            f"models.{name}.tensor_parallel = {degree}: every GPU gets as many of the {shape.num_heads} attention "
            f"heads as any other, of the {shape.num_kv_heads} KV heads (or one of them whole) and of the feed-forward "
            f"width {shape.inner}, which {degree} does not divide; take one of {', '.join(map(str, near))}, or auto"
        )


def fitting(engine: EngineSize, gpu: GpuType, *, most: int, pipeline_parallel: int = 1) -> list[EngineSize]:
    """The engine at every degree up to `most` at which weights and one full context window fit, smallest first."""
    sizes = [
        replace(engine, tensor_parallel=degree, num_gpus=degree * pipeline_parallel)
        for degree in degrees(engine.shape, most)
    ]
    return [size for size in sizes if size.fits(gpu)]


def over_nodes(name: str, engine: EngineSize, gpu: GpuType, cluster: Cluster) -> EngineSize:
    """The engine at the largest degree of one node and over as many such groups as it needs.

    Raises ConfigError, with the sum, when the cluster's largest nodes together have too little memory.
    """
    degree = degrees(engine.shape, cluster.largest_node)[-1]
    num_nodes = sum(node.num_gpus == cluster.largest_node for node in cluster.nodes)
    groups = ceil(needed_gpus(name, replace(engine, tensor_parallel=degree), gpu) / degree)
    room = num_nodes * cluster.largest_node
    if degree * groups > room or groups > engine.shape.num_layers:
        raise ConfigError(
            f"models.{name}: {memory_sum(engine)}, but the {room} x {gpu.name} of the largest nodes have "
            f"{room * gpu_bytes(engine, gpu) / 1e9:.1f} GB; it needs {degree * groups} of them "
            f"(tensor_parallel {degree} x pipeline_parallel {groups}): use a larger cluster or GPUs with more memory, "
            "or quantise (quantization: fp8), or lower context_window"
        )
    return replace(engine, tensor_parallel=degree, num_gpus=degree * groups)


def fastest(sizes: Sequence[EngineSize], row_s: Callable[[EngineSize], float]) -> EngineSize:
    """The size with the least GPU-seconds per row, where every doubling costs DOUBLING_COST more.

    row_s gives the seconds per row of one engine. Where a small degree leaves little room for the KV cache, few
    requests run side by side and the weights are read for few; there a larger degree is faster even per GPU.
    """
    return min(sizes, key=lambda size: size.num_gpus * row_s(size) * (1 + DOUBLING_COST) ** log2(size.tensor_parallel))
