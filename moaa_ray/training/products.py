"""Matrix products in float32 on x86 CPUs by oneDNN, which uses AVX-512 wherever it is.

torch gives them to Intel's MKL, whose kernels on other makers' processors stop at AVX2: on an AMD EPYC core (Zen 5)
products of a small model's sizes run at 105 GFLOP/s, and at 245 by oneDNN. Half precision and GPUs are left to torch.
"""

import torch
from torch import Tensor, nn

_BLOCK = 2**21
"""Numbers of a sum that are computed at once."""

_HAS_BOTH = torch.backends.mkl.is_available() and torch.backends.mkldnn.is_available()


class Linear(nn.Linear):
    """A linear layer with the weight, bias and name of the one it replaces."""

    def __init__(self, layer: nn.Linear):
        nn.Module.__init__(self)
        self.in_features, self.out_features = layer.in_features, layer.out_features
        self.weight, self.bias = layer.weight, layer.bias

    def forward(self, input: Tensor) -> Tensor:
        """input [..., in] -> [..., out]."""
        return linear(input, self.weight, self.bias)


def linear(hidden: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """hidden [..., in], weight [out, in], bias [out] -> [..., out], as torch.nn.functional.linear."""
    if _is_ours(hidden, weight):
        return _Linear.apply(hidden, weight, bias)
    return nn.functional.linear(hidden, weight, bias)


def product(left: Tensor, right: Tensor) -> Tensor:
    """left [n, k] @ right [k, m], for use within a backward pass: it has none of its own."""
    return _product(left, right.t()) if _is_ours(left, right) else left @ right


def add_outer(total: Tensor, left: Tensor, right: Tensor) -> None:
    """Add left [k, n] transposed @ right [k, m] to total [n, m] in place; has no backward pass of its own either."""
    if not _is_ours(left, right):
        total.addmm_(left.t(), right)
        return
    rows = max(1, _BLOCK // total.shape[1])  # the output layer's gradient is not to be in memory twice
    for own, part in zip(total.split(rows), left.split(rows, dim=1), strict=True):
        own.add_(_outer(part, right))


def _is_ours(left: Tensor, right: Tensor) -> bool:
    return (
        _HAS_BOTH
        and left.device.type == "cpu"
        and left.dtype == right.dtype == torch.float32
        and not torch.is_autocast_enabled("cpu")
    )


@torch.library.custom_op("moaa_ray::product", mutates_args=())
def _product(left: Tensor, right: Tensor, bias: Tensor | None = None) -> Tensor:
    """left [..., k], right [m, k] -> left @ right.t() + bias [..., m].

    An operator of its own, as Inductor takes oneDNN's for frozen weights alone.
    """
    if not (right.is_contiguous() or right.t().is_contiguous()):
        right = right.contiguous()  # oneDNN multiplies by other strides number by number, a thousand times as slow
    return torch.ops.mkldnn._linear_pointwise(left, right, bias, "none", [], "")


@_product.register_fake
def _(left: Tensor, right: Tensor, bias: Tensor | None = None) -> Tensor:
    return left.new_empty(*left.shape[:-1], len(right))


def _outer(left: Tensor, right: Tensor) -> Tensor:
    """left [k, n] transposed @ right [k, m] -> [n, m]. What is transposed on the left is copied: the smaller."""
    if left.shape[1] > right.shape[1]:
        return _product(right.t(), left.t()).t()
    return _product(left.t(), right.t())


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(hidden, weight)
        return _product(hidden, weight, bias)

    @staticmethod
    def backward(ctx, *grads: Tensor):
        hidden, weight = ctx.saved_tensors
        grad = grads[0]
        rows = grad.flatten(0, -2)
        needs_hidden, needs_weight, needs_bias = ctx.needs_input_grad
        return (
            _product(grad, weight.t()) if needs_hidden else None,
            _outer(rows, hidden.flatten(0, -2)).contiguous() if needs_weight else None,
            rows.sum(0) if needs_bias else None,
        )
