"""Every loss by hand, at ordinary values and at the ends where careless formulas give inf or nan."""

from math import exp, isfinite, log

import pytest

torch = pytest.importorskip("torch")

from moaa_ray.training import losses  # noqa: E402
from moaa_ray.training.losses import LOSSES, LossSettings, Pairs  # noqa: E402


def pairs(chosen=-10.0, rejected=-12.0, ref_chosen=-11.0, ref_rejected=-11.0, tokens=(4, 5)) -> Pairs:
    values = (chosen, rejected, ref_chosen, ref_rejected, *map(float, tokens))
    names = ("chosen", "rejected", "ref_chosen", "ref_rejected", "chosen_tokens", "rejected_tokens")
    return Pairs(**{n: torch.tensor([v], dtype=torch.float64) for n, v in zip(names, values, strict=True)})


def loss(kind: str, of: Pairs, **settings) -> float:
    return LOSSES[kind](of, LossSettings(**settings)).item()


def log_sigmoid(x: float) -> float:
    return -log(1 + exp(-x))


def test_by_hand():
    # Ratios: chosen +1, rejected -1, margin 2.
    assert loss("sigmoid", pairs(), beta=0.5) == pytest.approx(-log_sigmoid(1.0), rel=1e-12)
    assert loss("hinge", pairs(), beta=0.25) == pytest.approx(0.5)
    assert loss("hinge", pairs(), beta=1.0) == 0.0
    assert loss("ipo", pairs(), beta=0.5) == pytest.approx((1 / 4 + 1 / 5 - 1) ** 2)
    robust = (-(1 - 0.1) * log_sigmoid(1.0) + 0.1 * log_sigmoid(-1.0)) / 0.8
    assert loss("robust", pairs(), beta=0.5, label_smoothing=0.1) == pytest.approx(robust)
    assert loss("simpo", pairs(), beta=2.0, gamma=0.3) == pytest.approx(-log_sigmoid(2 * (-10 / 4 + 12 / 5) - 0.3))
    kto = (2 - 1 / (1 + exp(-0.5 * (1 - 0.1))) - 1 / (1 + exp(-0.5 * (0.3 + 1)))) / 2
    assert loss("kto", pairs(), beta=0.5, kl_estimate=(0.3, 0.1)) == pytest.approx(kto)


def test_length_normalised_by_hand():
    # Ratios per token: chosen 1/4, rejected -1/5, margin 0.45; beta 10 makes it 4.5.
    assert loss("sigmoid", pairs(), beta=10.0, length_normalized=True) == pytest.approx(-log_sigmoid(4.5), rel=1e-12)
    assert loss("hinge", pairs(), beta=2.0, length_normalized=True) == pytest.approx(0.1)
    robust = (-(1 - 0.1) * log_sigmoid(4.5) + 0.1 * log_sigmoid(-4.5)) / 0.8
    assert loss("robust", pairs(), beta=10.0, label_smoothing=0.1, length_normalized=True) == pytest.approx(robust)
    settings = LossSettings(beta=10.0, length_normalized=True)
    told = losses.pair_metrics(pairs(), "sigmoid", settings)
    assert [told[name].item() for name in ("margin", "reward_chosen", "reward_rejected", "chosen_ratio")] == (
        pytest.approx([4.5, 2.5, -2.0, 1.0])
    )


def test_orpo_by_hand():
    p, q = exp(-10 / 4), exp(-12 / 5)
    odds_ratio = log(p / (1 - p)) - log(q / (1 - q))
    assert loss("orpo", pairs(), beta=0.1) == pytest.approx(10 / 4 - 0.1 * log_sigmoid(odds_ratio), rel=1e-12)


def test_dpo_starts_at_ln_2_with_margin_0():
    same = pairs(chosen=-11.0, rejected=-11.0)
    assert loss("sigmoid", same) == pytest.approx(log(2), rel=1e-15)
    assert losses.pair_metrics(same, "sigmoid", LossSettings())["accuracy"].item() == 0.5


@pytest.mark.parametrize("margin", [120.0, -120.0])
def test_margins_of_120_have_finite_losses_and_gradients(margin):
    assert loss("sigmoid", pairs(chosen=-11 + margin, rejected=-11), beta=1.0) == pytest.approx(max(0.0, -margin))
    for kind in LOSSES:
        of = pairs(chosen=-400 + margin, rejected=-400, ref_chosen=-400, ref_rejected=-400, tokens=(1, 1))
        of.chosen.requires_grad_()
        value = LOSSES[kind](of, LossSettings(beta=1.0, label_smoothing=0.1))
        value.backward()
        assert isfinite(value.item()), kind
        assert of.chosen.grad is not None
        assert isfinite(of.chosen.grad.item()), kind


def test_orpo_of_a_certain_token_is_finite():
    of = pairs(chosen=0.0, rejected=-1e-9, tokens=(1, 1))
    of.chosen.requires_grad_()
    value = LOSSES["orpo"](of, LossSettings(beta=0.1))
    value.backward()
    assert isfinite(value.item())
    assert of.chosen.grad is not None
    assert isfinite(of.chosen.grad.item())


def test_sums_go_by_document_also_where_one_has_no_target():
    logprobs = torch.tensor([-1.0, -2.0, -4.0, -8.0])
    sums = losses.document_sums(logprobs, torch.tensor([2, 0, 2]))
    assert sums.tolist() == [-3.0, 0.0, -12.0]
    assert sums.dtype == torch.float64


def test_length_desensitised_weighs_the_tail_of_the_longer_completion():
    logprobs = torch.tensor([-1.0, -1.0, -1.0, -1.0, -1.0, -1.0, -1.0])
    document_of = torch.tensor([0, 0, 0, 1, 2, 3, 3])
    counts = torch.tensor([3, 1, 1, 2])
    assert losses.length_desensitised(logprobs, document_of, counts, 0.25).tolist() == [
        -1,
        -0.25,
        -0.25,
        -1,
        -1,
        -1,
        -0.25,
    ]


def test_pair_metrics_are_sums_and_count_the_longer():
    metrics = losses.pair_metrics(pairs(), "sigmoid", LossSettings(beta=0.5))
    assert {name: value.item() for name, value in metrics.items()} == pytest.approx(
        {
            "margin": 1.0,
            "reward_chosen": 0.5,
            "reward_rejected": -0.5,
            "accuracy": 1.0,
            "longer_wins": 0.0,
            "log_ratio_per_token": 0.0,
            "chosen_ratio": 1.0,
            "rejected_ratio": -1.0,
            "chosen_tokens": 4.0,
            "rejected_tokens": 5.0,
        }
    )


@pytest.mark.parametrize("kind", losses.LOSSES)
def test_a_loss_without_a_reference_tells_nothing_of_one(kind):
    told = losses.pair_metrics(pairs(ref_chosen=0.0, ref_rejected=0.0), kind, LossSettings())
    against_ref = {"log_ratio_per_token", "chosen_ratio", "rejected_ratio"}
    assert against_ref & told.keys() == (set() if kind in ("simpo", "orpo") else against_ref)
    assert {"margin", "reward_chosen", "accuracy", "longer_wins", "chosen_tokens"} <= told.keys()


def test_losses_that_compare_means_tell_the_margin_of_means():
    # Sums prefer rejected (-5 against -2), means prefer chosen (-0.5 against -1).
    of = pairs(chosen=-5.0, rejected=-2.0, ref_chosen=0.0, ref_rejected=0.0, tokens=(10, 2))
    told = losses.pair_metrics(of, "simpo", LossSettings(beta=2.0))
    assert told["accuracy"].item() == 1.0
    assert told["margin"].item() == pytest.approx(1.0)
    assert (told["reward_chosen"].item(), told["reward_rejected"].item()) == pytest.approx((-1.0, -2.0))
    assert losses.pair_metrics(of, "sigmoid", LossSettings(beta=2.0))["accuracy"].item() == 0.0
