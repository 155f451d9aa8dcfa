"""The GPU's path through attention, its kernel played by the CPU: eager and compiled, beside a call per document."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from moaa_ray.training import attention  # noqa: E402
from moaa_ray.training.microbatch import lay_out  # noqa: E402
from moaa_ray.training.strategies.base import Numerics, prepare_blocks  # noqa: E402
from moaa_ray.training.student import Student  # noqa: E402
from moaa_ray.training.weights import plain_name  # noqa: E402
from tests.training.students import make_documents, make_model  # noqa: E402
from tests.training.varlen import give_cpu_a_kernel  # noqa: E402


@pytest.fixture
def kernel(monkeypatch):
    give_cpu_a_kernel()
    return lambda: monkeypatch.setattr(attention, "has_kernel", lambda query, dropout, softcap: softcap is None)


def microbatches() -> list:
    """Of other numbers of documents and tokens each time, and with shared prompts."""
    batches = [lay_out(make_documents(lengths, seed=seed)) for seed, lengths in enumerate(([9, 17, 4, 40], [30, 8]))]
    for seed, lengths in enumerate(([12, 14, 20, 30], [9, 9])):
        pairs = make_documents(lengths, seed=10 + seed)
        for chosen, rejected in zip(pairs[::2], pairs[1::2], strict=True):
            prompt = min(np.argmax(chosen.counts), np.argmax(rejected.counts))
            rejected.tokens[:prompt] = chosen.tokens[:prompt]
        batches.append(lay_out(pairs, share_prompts=True))
        assert batches[-1].spans.key_rows is not None
    return batches


def answers(student: Student) -> list[tuple]:
    """Log-probabilities, summed loss and the gradients of both, of every microbatch."""
    found = []
    for batch in microbatches():
        logprobs = student(batch)
        (-logprobs.sum() / 7).backward()
        first = gradients(student)
        loss = student(batch, torch.linspace(0.1, 0.2, batch.num_targets))
        loss.backward()
        found.append((logprobs.detach(), loss.detach(), first, gradients(student)))
    return found


def gradients(student: Student) -> dict:
    found = {plain_name(name): p.grad.clone() for name, p in student.named_parameters()}
    student.zero_grad()
    return found


def assert_same(got: list[tuple], wanted: list[tuple]) -> None:
    for one, other in zip(got, wanted, strict=True):
        assert (one[0] - other[0]).abs().max() < 1e-5
        assert one[1].item() == pytest.approx(other[1].item(), rel=1e-6)
        for mine, theirs in zip(one[2:], other[2:], strict=True):
            assert mine.keys() == theirs.keys()
            for name, grad in theirs.items():
                assert (mine[name] - grad).abs().max() <= 1e-5 * grad.abs().max() + 1e-8, name


@pytest.mark.parametrize("family", ["llama", "qwen3", "mistral"])
def test_one_call_for_all_documents_equals_a_call_for_each(family, kernel):
    student = Student(make_model(family))
    wanted = answers(student)
    kernel()
    assert_same(answers(student), wanted)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "with_kernel", "checkpointing"),
    [
        ("mistral", True, False),
        ("gemma2", False, True),
        pytest.param("llama", True, True, marks=pytest.mark.long),
        pytest.param("gemma2", False, False, marks=pytest.mark.long),
    ],
)
def test_compiled_layers_and_head_equal_eager_ones_without_compiling_for_every_length(
    family, with_kernel, checkpointing, kernel
):
    torch._dynamo.reset()
    student = Student(make_model(family))
    wanted = answers(student)
    if with_kernel:
        kernel()
    prepare_blocks(student, Numerics(compile=True, activation_checkpointing=checkpointing))
    with torch._dynamo.config.patch(recompile_limit=4, fail_on_recompile_limit_hit=True):
        assert_same(answers(student), wanted)
