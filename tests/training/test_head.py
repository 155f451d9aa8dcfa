"""What is done with a chunk of logits, beside log_softmax and autograd in float64."""

import pytest

torch = pytest.importorskip("torch")

from moaa_ray.training.head import grad_of_logits, logprobs_and_grad, logprobs_and_norms  # noqa: E402

TARGETS = torch.tensor([0, 6, 3, 3])
WEIGHTS = torch.tensor([0.25, 0.0, 2.0, 1e-3])


def exact(logits, softcap):
    """(log-probabilities, gradient of the weighted sum) in float64."""
    logits = logits.double().requires_grad_()
    bent = logits if softcap is None else softcap * torch.tanh(logits / softcap)
    logprobs = torch.log_softmax(bent, -1).gather(1, TARGETS[:, None])[:, 0]
    (-(WEIGHTS.double() * logprobs).sum()).backward()
    return logprobs.detach(), logits.grad


@pytest.mark.parametrize("softcap", [None, 30.0])
@pytest.mark.parametrize("scale", [0.0, 1.0, 1e4], ids=["equal", "usual", "far apart"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_log_probabilities_and_gradients_at_once_or_apart_are_the_exact_ones(dtype, scale, softcap):
    logits = (scale * torch.randn(4, 7, generator=torch.Generator().manual_seed(1))).to(dtype)
    expected, slope = exact(logits, softcap)
    close = {"rtol": 1e-5, "atol": 1e-6}
    logprobs, grad = logprobs_and_grad(logits.clone(), TARGETS, WEIGHTS, softcap)
    apart, norms = logprobs_and_norms(logits.clone(), TARGETS, softcap)
    grad_apart = grad_of_logits(logits.clone(), TARGETS, norms, WEIGHTS, softcap)
    for found in (logprobs, apart):
        torch.testing.assert_close(found.double(), expected, **close)
    for found in (grad, grad_apart):
        assert found.dtype == dtype
        torch.testing.assert_close(
            found.double(), slope, **(close if dtype == torch.float32 else {"rtol": 8e-3, "atol": 8e-3})
        )


@pytest.mark.parametrize("value", [float("inf"), float("-inf"), float("nan")])
def test_a_target_whose_logit_is_not_finite_never_gives_a_finite_loss(value):
    logits = torch.zeros(1, 7)
    logits[0, 2] = value
    logprobs, _ = logprobs_and_grad(logits, torch.tensor([2]), torch.ones(1), None)
    assert not torch.isfinite(logprobs).any()
