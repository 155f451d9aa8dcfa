"""What a step adds up, by hand."""

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from moaa_ray.errors import StageError  # noqa: E402
from moaa_ray.training.microbatch import lay_out  # noqa: E402
from moaa_ray.training.step import PreferenceSettings, StepResult, check_finite, preference_step  # noqa: E402
from moaa_ray.training.strategies.base import Numerics, World  # noqa: E402
from moaa_ray.training.strategies.single import Single  # noqa: E402
from moaa_ray.training.student import Student  # noqa: E402
from tests.training.students import make_documents, make_model, plain_logprobs  # noqa: E402


def test_the_sft_term_is_a_mean_over_all_chosen_tokens_whatever_ld_alpha_weighs():
    model = make_model("llama")
    documents = make_documents([30, 9])
    nll = -plain_logprobs(model, documents[0]).detach().double().mean().item()
    for sft_weight, wanted in ((0.0, 0.0), (0.5, 0.5 * nll)):
        strategy = Single(Student(make_model("llama")), World(), Numerics())
        settings = PreferenceSettings(kind="hinge", sft_weight=sft_weight, ld_alpha=0.0)
        result = preference_step(
            strategy,
            [lay_out(documents)],
            [torch.tensor([-1e9, 0.0], dtype=torch.float64)],  # a margin so large that the hinge is 0
            settings,
            num_pairs=1,
            num_chosen_targets=documents[0].num_targets,
            rate=0.0,
        )
        assert result.loss == pytest.approx(wanted, rel=1e-5)


def test_a_loss_that_is_not_finite_names_the_rows_of_the_worker_that_has_it():
    bad = StepResult(loss=float("nan"), grad_norm=1.0, own_loss=float("nan"), metrics={})
    with pytest.raises(
        StageError, match=r"step 3: loss nan, gradient norm 1.0; the rows were a, b\. Lower the learning rate"
    ):
        check_finite(3, bad, ["a", "b"])
    check_finite(3, StepResult(loss=1.0, grad_norm=1.0, own_loss=1.0, metrics={}), ["a"])
