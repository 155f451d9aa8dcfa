"""Losses in full digits: formulas at 50 digits, and the curves of a plain float64 loop that shares no code with ours.

What was computed once stands here, so that a change of any of it, ours or a library's, is seen.
"""

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from moaa_ray.training.losses import LOSSES, LossSettings, Pairs  # noqa: E402
from tests.training.students import make_documents, make_model  # noqa: E402
from tests.training.workers import LENGTHS, train_steps  # noqa: E402

CASES = {
    # chosen, rejected, their references, their tokens, beta
    "ordinary": (-310.5, -402.25, -318.75, -398.5, 180, 210, 0.01),
    "short": (-0.5, -7.25, -1.125, -2.5, 1, 3, 0.1),
    "certain": (-0.0009765625, -0.03125, -12, -15.5, 2, 8, 2.5),
    "far apart": (-900, -20, -400, -640, 300, 5, 1),
}
WANTED = {
    "ordinary": {
        "sigmoid": 0.63494610159561355589,
        "ipo": 2493.6350088577097506,
        "hinge": 0.88,
        "robust": 0.61994610159561355589,
        "simpo": 0.85326151174967656338,
        "orpo": 1.7308590276296798928,
        "kto": 0.48475632711743044179,
    },
    "short": {
        "sigmoid": 0.46008393234075153755,
        "ipo": 7.7934027777777777778,
        "hinge": 0.4625,
        "robust": 0.39289643234075153755,
        "simpo": 0.74878014429969876966,
        "orpo": 0.5061610084286925309,
        "kto": 0.43162219275976535185,
    },
    "certain": {
        "sigmoid": 8.6744873113955009844,
        "ipo": 14.945321741104125977,
        "hinge": 9.67431640625,
        "robust": 9.7587768621767509844,
        "simpo": 0.84945560644613189036,
        "orpo": 0.29447133933770447654,
        "kto": 0.50000000000006020701,
    },
    "far apart": {
        "sigmoid": 1120.0,
        "ipo": 15918.027777777777778,
        "hinge": 1121.0,
        "robust": 1260.0,
        "simpo": 0.40318604888545789319,
        "orpo": 3.3046024176903726837,
        "kto": 1.0,
    },
}
"""At 50 digits, with label_smoothing 0.1, gamma 0.3 and kl_estimate (0.3, 0.1)."""


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("kind", LOSSES)
def test_losses_have_the_digits_of_their_formulas(kind, case):
    *values, beta = CASES[case]
    names = ("chosen", "rejected", "ref_chosen", "ref_rejected", "chosen_tokens", "rejected_tokens")
    pairs = Pairs(**{n: torch.tensor([v], dtype=torch.float64) for n, v in zip(names, values, strict=True)})
    settings = LossSettings(beta=beta, label_smoothing=0.1, gamma=0.3, kl_estimate=(0.3, 0.1))
    # Some are differences of numbers near 1: what is left of 2.2e-16 there is absolute.
    assert LOSSES[kind](pairs, settings).item() == pytest.approx(WANTED[case][kind], rel=1e-14, abs=1e-14)


SFT = [
    (5.81726013665297, 5.674819627264802),
    (5.8448648643848635, 5.600315161527539),
    (5.080398580869479, 5.008806833434565),
    (5.309525504950954, 4.729771252078712),
]
DPO = [
    (1.3124367129164323, 0.9459811542296445),
    (1.2115932865912045, 0.7804256609860988),
    (1.1445260526031955, 0.8020343688042548),
    (1.0618168826440502, 0.7985183036581117),
]
"""(loss, gradient norm) of the first steps."""


def plain_curve(objective: str, num_steps: int = 4) -> list[tuple[float, float]]:
    """SFT or DPO in float64, one document at a time, through full logits, with torch's own AdamW and clipping."""
    model = make_model("llama").double()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.0)
    documents = make_documents(LENGTHS)
    curve = []
    for step in range(num_steps):
        optimizer.zero_grad()
        loss = sft_loss(model, documents, step) if objective == "sft" else dpo_loss(model, documents, step)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        curve.append((loss.item(), norm.item()))
    return curve


def sft_loss(model, documents, step: int):
    units = [documents[(step * 8 + i) % 16] for i in range(8)]
    return -torch.cat([logprobs(model, unit) for unit in units]).mean()


def dpo_loss(model, documents, step: int):
    """beta 0.01, references of -5 a target, and a tenth of the chosen tokens' mean negative log-probability."""
    total, chosen = torch.zeros((), dtype=torch.float64), []
    for i in range(8):
        winner, loser = documents[i], documents[(i + step + 1) % 16]
        of_winner, of_loser = logprobs(model, winner), logprobs(model, loser)
        margin = (of_winner.sum() + 5 * len(of_winner)) - (of_loser.sum() + 5 * len(of_loser))
        total = total - torch.nn.functional.logsigmoid(0.01 * margin)
        chosen.append(of_winner)
    return total / 8 - 0.1 * torch.cat(chosen).mean()


def logprobs(model, document):
    tokens = torch.from_numpy(document.tokens.astype("int64"))
    scores = torch.log_softmax(model(tokens[None]).logits[0].double(), dim=-1)
    counts = torch.from_numpy(document.counts)
    return scores[:-1].gather(1, tokens[1:, None])[:, 0][counts[1:]]


@pytest.mark.parametrize(("objective", "wanted"), [("sft", SFT), ("dpo", DPO)])
def test_a_plain_loop_in_float64_has_these_digits(objective, wanted):
    """Up to 1e-7 or so: transformers takes norms and rotary angles in float32 in any model, in which CPUs differ."""
    got = plain_curve(objective)
    assert [number for pair in got for number in pair] == pytest.approx([n for pair in wanted for n in pair], rel=5e-7)


def test_our_steps_have_them_as_far_as_float32_goes():
    results = train_steps("single", num_workers=1, per_worker=8)
    for result, (loss, norm) in zip(results, [*SFT, *DPO], strict=True):
        assert result.loss == pytest.approx(loss, rel=1e-6)
        assert result.grad_norm == pytest.approx(norm, rel=1e-6)
