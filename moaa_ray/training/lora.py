"""Low-rank adapters: beside a frozen weight W [out, in], B [out, rank] and A [rank, in] are trained, as W + s B A.

Ours and not peft's, whose wrapping renames every weight, wants storage when it initialises, and merges whole weights in
place: here names, meta device, shards and the export one weight at a time stay what they are without adapters. The
arithmetic is peft's (tests/training/test_lora.py). Source: Hu et al. 2021, arXiv:2106.09685.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import dropout

from moaa_ray.core.seeds import seed_for
from moaa_ray.errors import ConfigError
from moaa_ray.training.products import linear
from moaa_ray.training.shards import fill
from moaa_ray.training.student import Student

_A, _B = ".lora_a", ".lora_b"


@dataclass(frozen=True, kw_only=True)
class LoraSettings:
    """Adapters of all linear layers of the decoder layers, or of those whose names are among the targets."""

    rank: int
    alpha: float
    dropout: float = 0.0
    targets: tuple[str, ...] = ()
    seed: int = 0
    """Of the first values of A."""

    @property
    def scale(self) -> float:
        """What B A is multiplied by."""
        return self.alpha / self.rank


class LoraLinear(nn.Module):
    """A linear layer with the weight, bias and name it had, and an adapter in float32 that is 0 until B is trained."""

    def __init__(self, layer: nn.Linear, settings: LoraSettings):
        super().__init__()
        rows, columns = layer.weight.shape
        like = {"dtype": torch.float32, "device": layer.weight.device}
        # Before the weight, so that `merged` meets them in this order.
        self.lora_a = nn.Parameter(torch.empty(settings.rank, columns, **like))
        self.lora_b = nn.Parameter(torch.empty(rows, settings.rank, **like))
        self.weight = layer.weight
        self.bias = layer.bias
        self.scale = settings.scale
        self.dropout = settings.dropout
        self.is_on = True

    def forward(self, hidden: Tensor) -> Tensor:
        """hidden [..., in] -> [..., out]."""
        out = linear(hidden, self.weight, self.bias)
        if not self.is_on:
            return out
        low = linear(dropout(hidden, self.dropout, self.training), self.lora_a)
        return out + self.scale * linear(low, self.lora_b)


def add_adapters(student: Student, settings: LoraSettings, *, is_bf16: bool) -> None:
    """Freeze a student, in bfloat16 where asked for, and give it adapters, in place; all may be on the meta device.

    Raises ConfigError for a target that names no linear layer of the decoder layers.
    """
    for p in student.parameters():
        p.requires_grad_(False)
        if is_bf16:
            p.data = p.data.bfloat16()
    layers = [(path, module) for path, module in student.blocks.named_modules() if isinstance(module, nn.Linear)]
    names = {path.rpartition(".")[2] for path, _ in layers}
    if unknown := sorted(set(settings.targets) - names):
        raise ConfigError(
            f"lora.targets = {', '.join(unknown)}: no linear layer of the decoder layers has this name, there are "
            f"{', '.join(sorted(names))}; name some of these, or leave it out for all"
        )
    for path, layer in layers:
        parent, _, name = path.rpartition(".")
        if name in settings.targets or not settings.targets:
            setattr(student.blocks.get_submodule(parent), name, LoraLinear(layer, settings))


def is_adapter(name: str) -> bool:
    """Whether a parameter's name is that of an adapter's A or B."""
    return name.endswith((_A, _B))


def init_adapters(named: Iterator[tuple[str, nn.Parameter]], seed: int) -> None:
    """First values, the same however they are sharded: A uniform within 1 / sqrt(in), as peft's; B zero."""
    for name, p in named:
        if name.endswith(_B):
            fill(p, torch.zeros(p.shape))
        elif name.endswith(_A):
            draw = torch.Generator().manual_seed(seed_for(seed, name))
            fill(p, (2 * torch.rand(p.shape, generator=draw) - 1) / p.shape[1] ** 0.5)


def merged(tensors: Iterator[tuple[str, Tensor]], settings: LoraSettings | None) -> Iterator[tuple[str, Tensor]]:
    """(name, whole tensor) of a student with adapters -> of the model that computes the same without, in float32."""
    adapter: list[Tensor] = []
    for name, tensor in tensors:
        if settings is None:
            yield name, tensor
        elif is_adapter(name):
            adapter.append(tensor)
        elif adapter and name.endswith(".weight"):
            a, b = adapter
            adapter = []
            yield name, tensor.float() + settings.scale * (b @ a)
        else:
            yield name, tensor


@contextmanager
def adapters_off(model: nn.Module) -> Iterator[None]:
    """The model computes what it did before adapters were trained: the reference of DPO."""
    adapted = [module for module in model.modules() if isinstance(module, LoraLinear)]
    for module in adapted:
        module.is_on = False
    try:
        yield
    finally:
        for module in adapted:
            module.is_on = True
