"""Over how many GPUs the models of a recipe are split whose `tensor_parallel` is auto: chosen once for a stage."""

from collections.abc import Callable, Sequence
from pathlib import Path

from moaa_ray.core.gpus import GpuType
from moaa_ray.core.packing_gpus import Cluster
from moaa_ray.core.splitting import check_degree, fastest, fitting, over_nodes
from moaa_ray.core.throughput import EngineSize, check_memory, gpu_row_s
from moaa_ray.planning.pool_estimate import PassLoad, engine_size, shape_of_model, uses_gpu
from moaa_ray.settings.models import Model, VllmModel

Choose = Callable[[Sequence[EngineSize], Sequence[PassLoad], GpuType], EngineSize]
"""Of the sizes that fit, smallest first, the one to take."""


def smallest_split(sizes: Sequence[EngineSize], _loads: Sequence[PassLoad], _gpu: GpuType) -> EngineSize:
    """The fewest GPUs that fit."""
    return sizes[0]


def fastest_split(sizes: Sequence[EngineSize], loads: Sequence[PassLoad], gpu: GpuType) -> EngineSize:
    """The split with the least expected GPU-seconds for the loads of a row; the smallest one of about equals."""
    return fastest(
        sizes,
        lambda size: sum(
            load.num_requests
            * gpu_row_s(size, gpu, prompt_tokens=load.prompt_tokens, out_tokens=max(1.0, load.completion_tokens))
            for load in loads
        ),
    )


def split_model(
    name: str,
    model: Model,
    *,
    gpu: GpuType | None,
    cluster: Cluster,
    loads: Sequence[PassLoad],
    base_dir: Path,
    choose: Choose = fastest_split,
) -> Model:
    """The model section `name` with numbers for what is auto in its split; a number in the recipe is obeyed.

    Args: gpu, the type on which every engine must fit (None: there are none); loads, what the passes ask of a row.
    Raises ConfigError, with the sum, where no split of the cluster's GPUs holds it.
    """
    if not isinstance(model, VllmModel):
        return model
    shape = shape_of_model(model.model, base_dir)
    if model.tensor_parallel != "auto":
        if shape:
            check_degree(name, model.tensor_parallel, shape)
        return _with(model, *model.split)
    is_on_gpu = uses_gpu(model, gpu)
    size = engine_size(model, shape, base_dir, is_on_gpu=is_on_gpu) if shape else None
    if not is_on_gpu or gpu is None or size is None:
        return _with(model, 1, model.split[1])
    _, pipeline = model.split
    if sizes := fitting(size, gpu, most=cluster.largest_node, pipeline_parallel=pipeline):
        return _with(model, choose(sizes, loads, gpu).tensor_parallel, pipeline)
    if model.pipeline_parallel == "auto":
        whole = over_nodes(name, size, gpu, cluster)
        return _with(model, whole.tensor_parallel, whole.num_gpus // whole.tensor_parallel)
    check_memory(name, size, gpu, most=cluster.num_gpus)
    return _with(model, 1, pipeline)


def split_words(asked: Model, chosen: Model) -> str:
    """How an engine's GPUs come about, for people; empty for engines that are never split."""
    if not isinstance(asked, VllmModel) or not isinstance(chosen, VllmModel):
        return ""
    tensor, pipeline = chosen.split
    words = f"tensor_parallel {tensor}" + (" (chosen)" if asked.tensor_parallel == "auto" else "")
    if pipeline > 1:
        words += f" x pipeline_parallel {pipeline}" + (" (chosen)" if asked.pipeline_parallel == "auto" else "")
    return words


def _with(model: VllmModel, tensor: int, pipeline: int) -> VllmModel:
    return model.model_copy(update={"tensor_parallel": tensor, "pipeline_parallel": pipeline})
