"""DeepSpeed's ZeRO stage 3: weights, gradients and optimizer state in shards, on request in the host's memory.

The same steps as every other strategy: DeepSpeed shards, gathers, reduces and clips; the schedule, the loss's
denominators and AdamW's settings stay ours. Left out: its launcher, schedulers, loss scaling for float16, and kernels
that are compiled on first use (torch's fused AdamW is as exact and needs no compiler on the cluster).
"""

import os
import shutil
import warnings
from argparse import Namespace
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from moaa_ray.errors import ConfigError, StageError
from moaa_ray.training.optimizer import build_adamw
from moaa_ray.training.strategies.base import Numerics, World, from_first, prepare_blocks
from moaa_ray.training.student import Student
from moaa_ray.training.weights import plain_name

TAG = "zero3"
UNIVERSAL_TAG = "zero3_universal"


class DeepSpeed:
    """ZeRO-3 through deepspeed.initialize: float32 weights, or bfloat16 ones beside float32 masters where asked for."""

    def __init__(self, student: Student, world: World, numerics: Numerics, *, cpu_offload: bool = False):
        """Shards the student in place, parameter by parameter; its weights may be on the meta device (see `fill`).

        cpu_offload keeps weights and optimizer state in the host's memory. torch.distributed has to be initialised,
        also for one worker. Raises ConfigError for what ZeRO-3 cannot do here.
        """
        _check(numerics)
        deepspeed = _import_deepspeed(world)
        self.student = student
        self.world = world
        self.numerics = numerics
        prepare_blocks(student, numerics)
        self.optimizer: torch.optim.Optimizer = build_adamw(student, numerics.adamw)
        self._decays = [group["weight_decay"] for group in self.optimizer.param_groups]
        settings = _settings(world, numerics, cpu_offload=cpu_offload)
        exact = _exact_weights(student, numerics)
        _shard(student, world, numerics, settings)
        self._engine, *_ = deepspeed.initialize(model=student, optimizer=self.optimizer, config=settings)
        self.model: nn.Module = self._engine
        self.fill(exact)

    @contextmanager
    def microbatch(self, *, is_last: bool) -> Iterator[None]:
        """See Strategy. ZeRO-3 reduces gradients in every microbatch; the last one ends their sum."""
        self._engine.set_gradient_accumulation_boundary(is_last)
        yield

    def backward(self, loss: Tensor) -> None:
        """See Strategy. Workers' gradients are averaged, and the loss is a share of a sum: hence the factor.

        Over microbatches they are added, not averaged: hence no scale by DeepSpeed's own accumulation.
        """
        self._engine.backward(loss * self.world.size, scale_wrt_gas=False)

    def update(self, rate: float) -> float:
        """See Strategy. At a norm that is not finite no step is taken, and the norm is nan."""
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self._engine.step()
        if not self._engine.was_step_applied():
            return float("nan")
        return float(self._engine.get_global_grad_norm())

    def fill(self, weights: Iterable[tuple[str, Tensor]]) -> None:
        """Set parameters, by their plain names, to whole tensors on the CPU, of which each worker takes its shard.

        Raises KeyError for a name that the student does not have.
        """
        from deepspeed.runtime.zero.partition_parameters import ZeroParamStatus
        from deepspeed.utils import safe_set_local_fp32_param

        parameters = dict(self._named())
        for name, weight in weights:
            parameter: Any = parameters[name]
            assert weight.shape == parameter.ds_shape, name
            size = parameter.ds_tensor.numel()
            mine = weight.detach().float().flatten()[self.world.rank * size : (self.world.rank + 1) * size]
            shard = torch.zeros(size, device=parameter.ds_tensor.device)
            shard[: len(mine)] = mine.to(shard.device)
            parameter.ds_tensor.data.copy_(shard)
            safe_set_local_fp32_param(parameter, shard)
            if parameter.ds_status == ZeroParamStatus.AVAILABLE:  # small ones are whole in every worker at all times
                parameter.data.copy_(weight)

    def full_parameters(self) -> Iterator[tuple[str, Tensor]]:
        """(plain name, whole float32 tensor on the CPU), one at a time; all workers have to go through it together."""
        import deepspeed
        from deepspeed.utils import safe_get_full_fp32_param

        for name, parameter in self._named():
            if parameter.requires_grad:
                whole = safe_get_full_fp32_param(parameter)
                assert whole is not None
                yield name, whole.detach().cpu()
                continue
            with deepspeed.zero.GatheredParameters([parameter]):
                whole = parameter.detach().float().cpu().clone()
            yield name, whole

    def save(self, folder: Path) -> None:
        """Write weights and optimizer state into a new folder that all workers share; returns when all is written."""
        try:
            self._engine.save_checkpoint(str(folder), tag=TAG, save_latest=False)
        except OSError as error:
            raise StageError(f"cannot save to {folder}: {error}; free space or rights there, then run again") from error

    def load(self, folder: Path) -> None:
        """Read what `save` wrote, in place. Of another number of workers it is first converted, beside it, once.

        DeepSpeed's format is pickled: read only what this run has written. Raises StageError where there is nothing.
        """
        num_shards = len(list((folder / TAG).glob("*_optim_states.pt")))
        if num_shards == 0:
            raise StageError(f"{folder} holds no DeepSpeed checkpoint; resume with the strategy that saved it")
        is_other_size = num_shards != self.world.size
        if is_other_size:
            from_first(lambda: _convert(folder))
        self._engine._config.load_universal_checkpoint = is_other_size
        self._engine.load_checkpoint(str(folder), tag=UNIVERSAL_TAG if is_other_size else TAG)
        # Converted, all groups get the first one's decay, and share one counter of steps, which each would advance.
        for group, decay in zip(self.optimizer.param_groups, self._decays, strict=True):
            group["weight_decay"] = decay
        for shard, state in self.optimizer.state.items():
            state["step"] = state["step"].to(shard.device, copy=True)

    def _named(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Parameters by the names they have in the model's own files; tied ones once."""
        return ((plain_name(name), parameter) for name, parameter in self.student.named_parameters())


def _exact_weights(student: Student, numerics: Numerics) -> list[tuple[str, Tensor]]:
    """Copies of float32 weights that DeepSpeed would round to bfloat16 before it makes the masters of them."""
    if not numerics.is_bf16:
        return []
    return [(plain_name(name), p.detach().clone()) for name, p in student.named_parameters() if not p.is_meta]


def _shard(student: Student, world: World, numerics: Numerics, settings: dict[str, Any]) -> None:
    """Split all parameters over the workers, one module at a time, so that no worker ever holds the whole model."""
    import deepspeed

    first: Any = None
    for module in student.modules():
        own = [p for p in module.parameters(recurse=False) if not hasattr(p, "ds_id")]
        for p in own:
            source = torch.empty_like(p, device=world.device) if p.is_meta else p.detach().to(world.device)
            source = source.bfloat16() if numerics.is_bf16 else source
            # Keeps the object, which the optimizer and tied layers know by identity.
            torch.utils.swap_tensors(p, nn.Parameter(source, requires_grad=p.requires_grad))
        if own and first is None:
            deepspeed.zero.Init(module=module, config_dict_or_path=settings, mem_efficient_linear=False)
            first = own[0]
        elif own:
            first.convert_to_zero_parameters(param_list=own)
    for buffer_name, buffer in list(student.named_buffers()):
        parent, _, last = buffer_name.rpartition(".")
        setattr(student.get_submodule(parent), last, buffer.to(world.device))


def _convert(folder: Path) -> None:
    """Make DeepSpeed's universal checkpoint, which any number of workers can load, unless it is there."""
    from deepspeed.checkpoint import ds_to_universal

    target = folder / UNIVERSAL_TAG
    if target.is_dir():
        return
    partial = folder / f"{UNIVERSAL_TAG}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    # One process each: more are forked, which threads of gloo and CUDA do not survive.
    arguments = Namespace(
        input_folder=str(folder / TAG),
        output_folder=str(partial),
        num_extract_workers=1,
        num_merge_workers=1,
        keep_temp_folder=False,
        strict=True,
    )
    try:
        ds_to_universal.main(arguments)
        partial.rename(target)
    except OSError as error:
        raise StageError(
            f"cannot convert {folder} for another number of workers: {error}; free space or rights there (it needs the "
            "checkpoint's size once more), or go on with as many workers as saved it"
        ) from error


def _import_deepspeed(world: World) -> Any:
    """The library, told of this worker's device before it looks for one itself."""
    if not dist.is_initialized():
        raise ConfigError(
            "strategy deepspeed needs torch.distributed, also for one worker: call init_process_group first, or choose "
            "strategy single"
        )
    # DeepSpeed takes the device's number from here. A launcher's own LOCAL_RANK is wrong where a worker sees one GPU.
    os.environ["LOCAL_RANK"] = str(world.device.index or 0)
    os.environ["DS_ACCELERATOR"] = world.device.type
    # One line for every collective of every step: DeepSpeed calls names that torch 2.13 has renamed.
    warnings.filterwarnings("ignore", message=r".*torch\.distributed\.\w+. is deprecated", category=FutureWarning)
    try:
        import deepspeed
        import deepspeed.ops
    except ImportError as error:
        raise ConfigError(
            f"strategy deepspeed needs the library: {error}; pip install moaa_ray[deepspeed], or choose strategy fsdp2"
        ) from error
    # Else DeepSpeed compiles a reduction through shared memory on first use, half a minute and a compiler per worker.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    return deepspeed


def _check(numerics: Numerics) -> None:
    if numerics.compile:
        raise ConfigError(
            "compile = true does not go with strategy deepspeed: its hooks, which gather weights, split every compiled "
            "graph; set compile: false, or choose strategy fsdp2"
        )


def _settings(world: World, numerics: Numerics, *, cpu_offload: bool) -> dict[str, Any]:
    """deepspeed.initialize's config."""
    zero: dict[str, Any] = {"stage": 3, "overlap_comm": world.device.type == "cuda"}
    if cpu_offload:
        host = {"device": "cpu", "pin_memory": world.device.type == "cuda"}
        zero |= {"offload_optimizer": host, "offload_param": host}
    return {
        "train_micro_batch_size_per_gpu": 1,  # only its own counters use it
        "gradient_accumulation_steps": 1,
        "gradient_clipping": numerics.max_grad_norm,
        "zero_optimization": zero,
        "zero_force_ds_cpu_optimizer": False,
        "bf16": {"enabled": numerics.is_bf16},
        "data_types": {"grad_accum_dtype": "fp32"},
        "communication_data_type": "fp32",
        "steps_per_print": None,
    }
