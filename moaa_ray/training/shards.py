"""Whole tensors into parameters, of which a worker may hold a slice only."""

from typing import Any

from torch import nn
from torch.distributed.tensor import DTensor
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset


def fill(parameter: nn.Parameter, whole: Any) -> int:
    """Copy a whole tensor, or this worker's slice of it (DTensor), into a parameter; returns the bytes filled here.

    whole has the parameter's shape and is only sliced, so it may be a tensor in a file (safetensors' PySafeSlice).
    """
    local, part = parameter.data, ...
    if isinstance(parameter.data, DTensor):
        shape, offset = compute_local_shape_and_global_offset(
            parameter.shape, parameter.data.device_mesh, parameter.data.placements
        )
        local = parameter.data.to_local()
        part = tuple(slice(start, start + size) for start, size in zip(offset, shape, strict=True))
    if local.numel():
        local.copy_(whole[part])
    return local.nbytes
