"""Preference losses, each one pure function of a batch of pairs -> the loss of every pair [B].

Sums and margins are float64: a margin is the small difference of large sums. None of them divides by
the batch; the loop does, once, by the global number of pairs of the optimizer step.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid


@dataclass(frozen=True, kw_only=True)
class LossSettings:
    """What shapes a preference loss beside its kind. Unused ones have no effect."""

    beta: float = 0.01
    label_smoothing: float = 0.0  # robust: the assumed share of flipped pairs; below 0.5
    gamma: float = 0.5  # simpo: target margin of beta x mean log-probability
    length_normalized: bool = False  # sigmoid, hinge, robust: log-ratios per token, as ipo has them in any case
    kl_estimate: tuple[float, float] = (0.0, 0.0)
    """kto: mean log-ratio of chosen and of rejected over the optimizer step before, at least 0."""


@dataclass(frozen=True, kw_only=True)
class Pairs:
    """B pairs: summed log-probabilities of the completions under the policy and the reference, all float64 [B]."""

    chosen: Tensor
    rejected: Tensor
    ref_chosen: Tensor
    ref_rejected: Tensor
    chosen_tokens: Tensor
    rejected_tokens: Tensor

    @property
    def chosen_ratio(self) -> Tensor:
        """log policy / reference of the chosen completions."""
        return self.chosen - self.ref_chosen

    @property
    def rejected_ratio(self) -> Tensor:
        """log policy / reference of the rejected completions."""
        return self.rejected - self.ref_rejected

    def ratios(self, *, per_token: bool) -> tuple[Tensor, Tensor]:
        """Both ratios, of the sums or per token; times beta they are DPO's implicit rewards."""
        if per_token:
            return self.chosen_ratio / self.chosen_tokens, self.rejected_ratio / self.rejected_tokens
        return self.chosen_ratio, self.rejected_ratio

    def margin(self, *, per_token: bool) -> Tensor:
        """Chosen ratio minus rejected ratio."""
        chosen, rejected = self.ratios(per_token=per_token)
        return chosen - rejected


def sigmoid(pairs: Pairs, settings: LossSettings) -> Tensor:
    """DPO (arXiv 2305.18290, eq. 7); length-normalised as in Tulu 3 (arXiv 2411.15124, section 5.1)."""
    return -logsigmoid(settings.beta * pairs.margin(per_token=settings.length_normalized))


def ipo(pairs: Pairs, settings: LossSettings) -> Tensor:
    """IPO (arXiv 2310.12036, eq. 17), on mean log-ratios per token, as its authors run it."""
    margin = pairs.margin(per_token=True)
    return (margin - 1 / (2 * settings.beta)) ** 2


def hinge(pairs: Pairs, settings: LossSettings) -> Tensor:
    """SLiC's hinge on DPO's margin (arXiv 2309.06657)."""
    return torch.relu(1 - settings.beta * pairs.margin(per_token=settings.length_normalized))


def robust(pairs: Pairs, settings: LossSettings) -> Tensor:
    """DPO without the bias of randomly flipped pairs (arXiv 2403.00409, eq. 12)."""
    flipped, margin = settings.label_smoothing, settings.beta * pairs.margin(per_token=settings.length_normalized)
    return (flipped * logsigmoid(-margin) - (1 - flipped) * logsigmoid(margin)) / (1 - 2 * flipped)


def simpo(pairs: Pairs, settings: LossSettings) -> Tensor:
    """SimPO (arXiv 2405.14734, eq. 6): mean log-probabilities, a target margin, no reference."""
    margin = pairs.chosen / pairs.chosen_tokens - pairs.rejected / pairs.rejected_tokens
    return -logsigmoid(settings.beta * margin - settings.gamma)


def orpo(pairs: Pairs, settings: LossSettings) -> Tensor:
    """ORPO (arXiv 2403.07691, eq. 6): nll per chosen token, and beta x the log odds ratio's sigmoid; no reference."""
    chosen, rejected = pairs.chosen / pairs.chosen_tokens, pairs.rejected / pairs.rejected_tokens
    odds_ratio = chosen - rejected - (_log1m_exp(chosen) - _log1m_exp(rejected))
    return -chosen - settings.beta * logsigmoid(odds_ratio)


def kto(pairs: Pairs, settings: LossSettings) -> Tensor:
    """KTO (arXiv 2402.01306, eq. 8) on both halves of the pair, equal weights.

    The reference point is the mean log-ratio of the step before, not of this batch: it then depends
    neither on microbatches nor on the number of workers.
    """
    kl_chosen, kl_rejected = settings.kl_estimate
    desirable = 1 - torch.sigmoid(settings.beta * (pairs.chosen_ratio - kl_rejected))
    undesirable = 1 - torch.sigmoid(settings.beta * (kl_chosen - pairs.rejected_ratio))
    return (desirable + undesirable) / 2


def _log1m_exp(x: Tensor) -> Tensor:
    """log(1 - exp(x)) for x < 0, exact at both ends; x = 0 counts as a hair below."""
    x = x.clamp(max=-1e-12)
    return torch.where(x > -0.6931, torch.log(-torch.expm1(x)), torch.log1p(-torch.exp(x)))


Loss = Callable[[Pairs, LossSettings], Tensor]
LOSSES: Mapping[str, Loss] = MappingProxyType(
    {"sigmoid": sigmoid, "ipo": ipo, "hinge": hinge, "robust": robust, "simpo": simpo, "orpo": orpo, "kto": kto}
)
NEEDS_NO_REFERENCE = frozenset({"simpo", "orpo"})
COMPARES_MEANS = frozenset({"simpo", "orpo", "ipo"})


def document_sums(logprobs: Tensor, counts: Tensor) -> Tensor:
    """Log-probabilities of targets [N], sorted by document, of which each has counts [documents] -> sums, float64."""
    return torch.segment_reduce(logprobs.double(), "sum", lengths=counts, unsafe=True)


def length_desensitised(logprobs: Tensor, document_of: Tensor, counts: Tensor, alpha: float) -> Tensor:
    """LD-DPO (arXiv 2409.06411): tokens beyond the length of the pair's shorter completion weigh alpha."""
    shared = counts.view(-1, 2).amin(dim=1).repeat_interleave(2)
    starts = torch.cumsum(counts, 0) - counts
    rank = torch.arange(len(logprobs), device=logprobs.device) - starts[document_of]
    return torch.where(rank < shared[document_of], logprobs, alpha * logprobs)


def pair_metrics(pairs: Pairs, kind: str, settings: LossSettings) -> dict[str, Tensor]:
    """Sums over the batch of what is watched; divided by the global number of pairs they are means.

    Keys: margin and both rewards (times beta; per token where the loss compares means), accuracy (ties count half),
    longer_wins, and both lengths in tokens; of losses with a reference also the KL estimate per token of both
    completions, and the change of either's log-probability.
    """
    chosen, rejected = pairs.ratios(per_token=kind in COMPARES_MEANS or settings.length_normalized)
    margin = chosen - rejected
    wins = (margin > 0).double() + 0.5 * (margin == 0)
    longer = (pairs.chosen_tokens > pairs.rejected_tokens).double()
    longer = longer + 0.5 * (pairs.chosen_tokens == pairs.rejected_tokens)
    tokens = pairs.chosen_tokens + pairs.rejected_tokens
    against_ref = {
        "log_ratio_per_token": ((pairs.chosen_ratio + pairs.rejected_ratio) / tokens).sum(),
        "chosen_ratio": pairs.chosen_ratio.sum(),
        "rejected_ratio": pairs.rejected_ratio.sum(),
    }
    return {
        "margin": (settings.beta * margin).sum(),
        "reward_chosen": (settings.beta * chosen).sum(),
        "reward_rejected": (settings.beta * rejected).sum(),
        "accuracy": wins.sum(),
        "longer_wins": longer.sum(),
        **({} if kind in NEEDS_NO_REFERENCE else against_ref),
        "chosen_tokens": pairs.chosen_tokens.sum(),
        "rejected_tokens": pairs.rejected_tokens.sum(),
    }
