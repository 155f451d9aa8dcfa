"""The output layer without full logits: log-probabilities of the targets, a few rows of logits at a time.

N targets against V words are N x V logits; only `chunk` rows of them are ever in memory. Backward
computes them again (target_logprobs), or has been done by then (summed_loss), because a sum's gradient
is known when the logits are.
"""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from moaa_ray.training.products import add_outer, product

CHUNK_LOGITS = {"cpu": 2**23, "cuda": 2**28}
"""Logits in memory at once."""


class Head(nn.Module):
    """The model's own output layer, with the weight and the name it had, asked for losses rather than logits."""

    def __init__(self, weight: nn.Parameter, softcap: float | None = None):
        """weight [V, D]; softcap bends logits to at most this (Gemma 2)."""
        super().__init__()
        self.weight = weight
        self.softcap = softcap
        self._norms: Callable[..., tuple[Tensor, Tensor]] = logprobs_and_norms
        self._grad: Callable[..., Tensor] = grad_of_logits
        self._is_compiled = False

    def compile(self) -> None:
        """Compile what is done with a chunk of logits, instead of the whole, whose number of rows changes."""
        self._norms = torch.compile(logprobs_and_norms, dynamic=True)
        self._grad = torch.compile(grad_of_logits, dynamic=True)
        self._is_compiled = True

    def _both(self, logits: Tensor, targets: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
        if not self._is_compiled:
            return logprobs_and_grad(logits, targets, weights, self.softcap)
        logprobs, norms = self._norms(logits, targets, self.softcap)
        return logprobs, self._grad(logits, targets, norms, weights, self.softcap)

    def forward(self, hidden: Tensor, targets: Tensor | None = None, weights: Tensor | None = None) -> Tensor:
        """hidden [N, D], targets [N] -> log-probabilities [N]; with weights [N] the sum of -weight x logprob.

        Without targets: logits [N, V], as any output layer gives.
        """
        if torch.is_autocast_enabled(hidden.device.type):
            hidden = hidden.to(torch.get_autocast_dtype(hidden.device.type))  # else the gradients' matmuls were float32
        if targets is None:
            logits = nn.functional.linear(hidden, self.weight)
            return logits if self.softcap is None else self.softcap * torch.tanh(logits / self.softcap)
        if weights is None:
            return _TargetLogprobs.apply(hidden, self.weight, targets, self)
        return _SummedLoss.apply(hidden, self.weight, targets, weights, self)


def _chunks(hidden: Tensor, num_words: int) -> Iterator[slice]:
    rows = max(16, CHUNK_LOGITS.get(hidden.device.type, 2**23) // num_words)
    return (slice(i, min(i + rows, len(hidden))) for i in range(0, len(hidden), rows))


def logprobs_and_norms(logits: Tensor, targets: Tensor, softcap: float | None) -> tuple[Tensor, Tensor]:
    """logits [n, V], targets [n] -> log-probabilities of the targets and log-sums [n], float32.

    Uncompiled it uses up float32 logits: a buffer of their size costs more than the sums.
    """
    logits = logits.float()
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    picked = logits.gather(1, targets[:, None])[:, 0]
    norms = torch.logsumexp(logits, -1) if torch.compiler.is_compiling() else _exponentials(logits)[0]
    return picked - norms, norms


def logprobs_and_grad(logits: Tensor, targets: Tensor, weights: Tensor, softcap: float | None) -> tuple[Tensor, Tensor]:
    """What logprobs_and_norms and grad_of_logits give, with one exponential of each logit; uses up float32 logits."""
    dtype, slope = logits.dtype, None
    logits = logits.float()
    if softcap is not None:
        bent = torch.tanh(logits / softcap)
        logits, slope = softcap * bent, 1 - bent**2
    picked = logits.gather(1, targets[:, None])[:, 0]
    norms, exponentials, sums = _exponentials(logits)
    grad = exponentials.mul_((weights / sums)[:, None])
    grad.scatter_add_(1, targets[:, None], -weights[:, None])
    return picked - norms, (grad if slope is None else grad.mul_(slope)).to(dtype)


def _exponentials(logits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Log-sums [n], and in the place of logits [n, V] exponentials of their distances to the largest, with sums [n]."""
    largest = logits.amax(-1)
    exponentials = logits.sub_(largest[:, None]).exp_()
    sums = exponentials.sum(-1)
    return largest + sums.log(), exponentials, sums


def grad_of_logits(logits: Tensor, targets: Tensor, norms: Tensor, weights: Tensor, softcap: float | None) -> Tensor:
    """Gradient [n, V] of the sum of -weight x log-probability; float32 logits are used up for it."""
    grad = slope = None
    dtype = logits.dtype
    logits = logits.float()
    if softcap is not None:
        bent = torch.tanh(logits / softcap)
        logits, slope = softcap * bent, 1 - bent**2
    if torch.compiler.is_compiling():
        is_target = torch.arange(logits.shape[1], device=logits.device) == targets[:, None]
        grad = weights[:, None] * (torch.exp(logits - norms[:, None]) - is_target)
    else:
        grad = logits.sub_(norms[:, None]).exp_().mul_(weights[:, None])
        grad.scatter_add_(1, targets[:, None], -weights[:, None])
    return (grad if slope is None else grad.mul_(slope)).to(dtype)


def _word_weight(hidden: Tensor, weight: Tensor) -> Tensor:
    return weight if weight.dtype == hidden.dtype else weight.to(hidden.dtype)


class _TargetLogprobs(torch.autograd.Function):
    """hidden [N, D], weight [V, D], targets [N] -> log p(target) [N], float32."""

    @staticmethod
    def forward(ctx, hidden: Tensor, weight: Tensor, targets: Tensor, head: Head) -> Tensor:
        words = _word_weight(hidden, weight)
        logprobs = torch.empty(len(hidden), dtype=torch.float32, device=hidden.device)
        norms = torch.empty_like(logprobs)
        for part in _chunks(hidden, len(words)):
            logprobs[part], norms[part] = head._norms(product(hidden[part], words.t()), targets[part], head.softcap)
        ctx.save_for_backward(hidden, weight, targets, norms)
        ctx.head = head
        return logprobs

    @staticmethod
    def backward(ctx, *grads: Tensor):
        hidden, weight, targets, norms = ctx.saved_tensors
        words = _word_weight(hidden, weight)
        grad_hidden = torch.empty_like(hidden)
        grad_weight = torch.zeros_like(weight, dtype=torch.float32) if ctx.needs_input_grad[1] else None
        for part in _chunks(hidden, len(words)):
            logits = product(hidden[part], words.t())
            grad = ctx.head._grad(logits, targets[part], norms[part], -grads[0][part], ctx.head.softcap)
            _add_grads(grad, part, hidden, words, grad_hidden, grad_weight)
        return grad_hidden, grad_weight, None, None


class _SummedLoss(torch.autograd.Function):
    """hidden [N, D], weight [V, D], targets [N], weights [N] -> sum of -weight x log p(target), float32 scalar."""

    @staticmethod
    def forward(ctx, hidden: Tensor, weight: Tensor, targets: Tensor, weights: Tensor, head: Head) -> Tensor:
        words = _word_weight(hidden, weight)
        wants_grad = any(ctx.needs_input_grad[:2])
        total = torch.zeros((), dtype=torch.float64, device=hidden.device)
        grad_hidden = torch.empty_like(hidden) if wants_grad else None
        grad_weight = torch.zeros_like(weight, dtype=torch.float32) if ctx.needs_input_grad[1] else None
        for part in _chunks(hidden, len(words)):
            logits = product(hidden[part], words.t())
            if grad_hidden is None:
                logprobs, _ = head._norms(logits, targets[part], head.softcap)
            else:
                logprobs, grad = head._both(logits, targets[part], weights[part])
                _add_grads(grad, part, hidden, words, grad_hidden, grad_weight)
            total -= (weights[part] * logprobs).sum(dtype=torch.float64)
        ctx.grads = grad_hidden, grad_weight
        return total.float()

    @staticmethod
    def backward(ctx, *grads: Tensor):
        grad_hidden, grad_weight = ctx.grads
        del ctx.grads  # else autograd would copy what it may keep as the weight's gradient
        if grad_weight is not None:
            grad_weight.mul_(grads[0])
        return grad_hidden.mul_(grads[0]), grad_weight, None, None, None


def _add_grads(
    grad: Tensor, part: slice, hidden: Tensor, words: Tensor, grad_hidden: Tensor, grad_weight: Tensor | None
) -> None:
    """Gradients of one chunk of logits [n, V], put where they belong; the words' only where they are trained."""
    grad_hidden[part] = product(grad, words)
    if grad_weight is None:
        return
    if grad.dtype == grad_weight.dtype:
        add_outer(grad_weight, grad, hidden[part])
    elif grad.is_cuda:  # half-precision factors, summed in float32
        torch.addmm(grad_weight, grad.t(), hidden[part], out_dtype=grad_weight.dtype, out=grad_weight)
    else:
        grad_weight.add_(grad.t() @ hidden[part])
