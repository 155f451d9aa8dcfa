"""Training on a GPU: the kernels that CPUs lack, in bfloat16, beside float32 and one document at a time.

Runs where torch finds a GPU, with transformers and without Ray: pytest --noconftest -o addopts="" this_file.
"""

import os

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
if not torch.cuda.is_available():
    pytest.skip("no GPU", allow_module_level=True)

import torch.distributed as dist  # noqa: E402

from moaa_ray.data.store import open_store  # noqa: E402
from moaa_ray.training import attention, head  # noqa: E402
from moaa_ray.training.job import Cadence  # noqa: E402
from moaa_ray.training.loop import train  # noqa: E402
from moaa_ray.training.metrics import read_metrics  # noqa: E402
from moaa_ray.training.microbatch import Document, lay_out  # noqa: E402
from moaa_ray.training.strategies.base import Numerics, World, prepare_blocks  # noqa: E402
from moaa_ray.training.student import Student  # noqa: E402
from tests.training.jobs import make_job, make_student, train_until_killed  # noqa: E402
from tests.training.students import make_model  # noqa: E402

GPU = torch.device("cuda", 0)
LENGTHS = [(30, 100, 160), (1, 3, 200), (129, 1, 64), (60, 400, 2)]


@pytest.fixture(scope="module")
def alone():
    """A world of one, as Ray Train makes it on GPUs."""
    dist.init_process_group(
        "cpu:gloo,cuda:nccl", init_method=f"tcp://127.0.0.1:{29100 + os.getpid() % 800}", rank=0, world_size=1
    )
    yield World(device=GPU)
    dist.destroy_process_group()


def pairs() -> list[Document]:
    draw = np.random.default_rng(0)
    documents = []
    for prompt, *completions in LENGTHS:
        asked = draw.integers(0, 193, prompt)
        for n in completions:
            tokens = np.concatenate([asked, draw.integers(0, 193, n)]).astype(np.int32)
            documents.append(Document(tokens=tokens, counts=np.arange(len(tokens)) >= prompt))
    return documents


def student_of(family: str, dtype: torch.dtype) -> Student:
    model = make_model(family)
    with torch.no_grad():
        for p in model.parameters():
            p.div_(2.0)  # bfloat16 has 8 bits: with sharper attention nothing could be said of its errors
    return Student(model.to(GPU, dtype))


def answers(student: Student, batch) -> tuple[torch.Tensor, dict]:
    """Log-probabilities, and the gradients of a weighted sum of them."""
    logprobs = student(batch.to(GPU))
    (logprobs * torch.linspace(1, 2, len(logprobs), device=GPU)).mean().backward()
    grads = {name: p.grad.float() for name, p in student.named_parameters()}
    student.zero_grad()
    return logprobs.detach().float(), grads


def distance(one: tuple, other: tuple) -> list[float]:
    """Relative, of the log-probabilities and of every gradient."""
    far = [((one[0] - other[0]).norm() / other[0].norm()).item()]
    return far + [((one[1][name] - g).norm() / g.norm()).item() for name, g in other[1].items()]


@pytest.mark.parametrize("family", ["llama", "qwen3", "mistral"])
def test_the_kernel_errs_no_more_than_bfloat16_does_anyway(family, monkeypatch):
    batch = lay_out(pairs())
    exact = answers(student_of(family, torch.float32), batch)
    student = student_of(family, torch.bfloat16)
    by_kernel = distance(answers(student, batch), exact)
    monkeypatch.setattr(attention, "has_kernel", lambda *args: False)
    one_by_one = distance(answers(student, batch), exact)
    assert max(one_by_one) < 0.05, one_by_one
    for mine, theirs in zip(by_kernel, one_by_one, strict=True):
        assert mine < 2 * theirs + 2e-3, (by_kernel, one_by_one)


@pytest.mark.parametrize("family", ["llama", "qwen3", "mistral", "gemma2"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_shared_prompts_change_nothing(family, dtype):
    student = student_of(family, dtype)
    shared, apart = lay_out(pairs(), share_prompts=True), lay_out(pairs())
    assert len(apart.tokens) - len(shared.tokens) == sum(prompt for prompt, *_ in LENGTHS)
    limit = 1e-4 if dtype == torch.float32 else 0.03
    assert max(distance(answers(student, shared), answers(student, apart))) < limit


def test_documents_of_a_pack_are_those_alone():
    student = student_of("llama", torch.bfloat16)
    with torch.no_grad():
        packed = student(lay_out(pairs()).to(GPU))
        alone = torch.cat([student(lay_out([document]).to(GPU)) for document in pairs()])
    assert (packed - alone).abs().max() < 0.03


@pytest.mark.parametrize("checkpointing", [False, True])
def test_compiled_equals_eager(checkpointing):
    batches = [lay_out(pairs(), share_prompts=True), lay_out(pairs()[:4], share_prompts=True)]
    student = student_of("llama", torch.bfloat16)
    wanted = [answers(student, batch) for batch in batches]
    prepare_blocks(student, Numerics(compile=True, activation_checkpointing=checkpointing))
    with torch._dynamo.config.patch(recompile_limit=2, fail_on_recompile_limit_hit=True):
        for batch, (logprobs, grads) in zip(batches, wanted, strict=True):
            got, mine = answers(student, batch)
            mine = {name.replace("_checkpoint_wrapped_module.", ""): g for name, g in mine.items()}
            assert max(distance((got, mine), (logprobs, grads))) < 0.03


@pytest.mark.parametrize("softcap", [None, 2.0])
@pytest.mark.parametrize("is_compiled", [False, True])
def test_the_output_layers_gradients_are_summed_in_float32(softcap, is_compiled, monkeypatch):
    monkeypatch.setitem(head.CHUNK_LOGITS, "cuda", 64 * 1000)
    generator = torch.Generator(GPU).manual_seed(0)
    hidden = torch.randn(200, 64, device=GPU, generator=generator).bfloat16()
    weight = torch.nn.Parameter(torch.randn(1000, 64, device=GPU, generator=generator).bfloat16() / 8)
    targets = torch.randint(1000, (200,), device=GPU, generator=generator)
    weights = torch.rand(200, device=GPU, generator=generator)
    layer = head.Head(weight, softcap)
    if is_compiled:
        layer.compile()
    exact_hidden, exact_weight = (t.detach().double().requires_grad_() for t in (hidden, weight))
    logits = exact_hidden @ exact_weight.t()
    logits = logits if softcap is None else softcap * torch.tanh(logits / softcap)
    wanted = -(weights * torch.log_softmax(logits, -1).gather(1, targets[:, None])[:, 0]).sum()
    wanted.backward()
    for ask in (lambda h: layer(h, targets, weights), lambda h: -(weights * layer(h, targets)).sum()):
        mine = hidden.clone().requires_grad_()
        weight.grad = None
        loss = ask(mine)
        loss.backward()
        assert loss.item() == pytest.approx(wanted.item(), rel=2e-3)
        for grad, exact in ((mine.grad, exact_hidden.grad), (weight.grad, exact_weight.grad)):
            assert (grad.double() - exact).norm() / exact.norm() < 6e-3


@pytest.mark.parametrize("stage", ["sft", "dpo"])
@pytest.mark.parametrize("is_compiled", [False, True])
def test_a_job_learns_goes_on_from_its_checkpoint_and_exports(stage, is_compiled, alone, tmp_path):
    make_student(tmp_path / "student")
    settings = {
        "strategy": "fsdp2",
        "numerics": Numerics(is_bf16=True, compile=is_compiled),
        "cadence": Cadence(checkpoint_every=3),
    }
    whole, broken = (make_job(tmp_path / name, tmp_path / "student", stage, **settings) for name in ("whole", "broken"))
    train(whole, alone)
    wanted = read_metrics(open_store(whole.run_uri), whole.metrics_path)
    losses = [line["loss"] for line in wanted]
    assert len(losses) == whole.plan.num_steps
    assert sum(losses[-3:]) < sum(losses[:3])
    assert all(line["memory_bytes"] > 0 for line in wanted)

    train_until_killed(broken, alone, at=5)
    train(broken, alone)
    got = read_metrics(open_store(broken.run_uri), broken.metrics_path)
    assert [line["loss"] for line in got] == pytest.approx(losses, rel=2e-2)
