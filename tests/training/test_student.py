"""A packed student against `transformers`' own model on one document at a time, through full logits."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from moaa_ray.errors import ConfigError  # noqa: E402
from moaa_ray.training import attention, head  # noqa: E402
from moaa_ray.training.microbatch import Document, lay_out  # noqa: E402
from moaa_ray.training.student import Student, check_attention  # noqa: E402
from tests.training.students import FAMILIES, make_documents, make_model, plain_logprobs  # noqa: E402

LENGTHS = [5, 17, 1, 40, 2, 23]


def gradients(model) -> dict:
    found = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    return found


def assert_equal_gradients(got: dict, wanted: dict) -> None:
    assert got.keys() == wanted.keys()
    for name, grad in wanted.items():
        assert (got[name] - grad).abs().max() <= 1e-4 * grad.abs().max() + 1e-7, name


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("chunk_logits", [2**23, 16 * 193])
def test_packed_documents_equal_each_alone_forward_and_backward(family, chunk_logits, monkeypatch):
    monkeypatch.setitem(head.CHUNK_LOGITS, "cpu", chunk_logits)
    model, documents = make_model(family), make_documents(LENGTHS)
    wanted = torch.cat([plain_logprobs(model, document) for document in documents])
    (-wanted.sum() / 7).backward()
    wanted_grads = gradients(model)
    student, batch = Student(model), lay_out(documents)

    logprobs = student(batch)
    assert (logprobs - wanted).abs().max() < 3e-5
    (-logprobs.sum() / 7).backward()
    assert_equal_gradients(gradients(model), wanted_grads)

    loss = student(batch, torch.full((batch.num_targets,), 1 / 7))
    assert loss.item() == pytest.approx(-wanted.sum().item() / 7, rel=1e-6)
    loss.backward()
    assert_equal_gradients(gradients(model), wanted_grads)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_layer_is_tried_for_how_it_calls_attention(family, monkeypatch):
    attend, tried = attention.attend, []

    def noting(module, *args, **kwargs):
        tried.append(module.layer_idx)
        return attend(module, *args, **kwargs)

    monkeypatch.setattr(attention, "attend", noting)
    check_attention(Student(make_model(family)))
    monkeypatch.undo()
    attention.register()
    assert tried == [0, 1]


def test_a_microbatch_with_shared_prompts_lays_each_once_and_sees_it_twice():
    prompt, chosen, rejected = [5, 6, 7], [8, 9], [8, 4, 3]
    batch = lay_out(pair(prompt, chosen, rejected), share_prompts=True)
    assert batch.tokens.tolist() == [5, 6, 7, 8, 9, 8, 4, 3]
    assert batch.positions.tolist() == [0, 1, 2, 3, 4, 3, 4, 5]
    assert batch.spans.query_offsets.tolist() == [0, 5, 8]
    assert batch.spans.key_offsets.tolist() == [0, 5, 11]
    assert batch.spans.key_rows.tolist() == [0, 1, 2, 3, 4, 0, 1, 2, 5, 6, 7]
    assert batch.spans.longest == 6
    assert batch.spans.shapes == [(5, 5), (3, 6)]
    assert batch.targets.tolist() == [8, 9, 8, 4, 3]
    assert batch.sources.tolist() == [2, 3, 2, 5, 6]  # the prompt's last token predicts the first of both
    assert batch.document_of.tolist() == [0, 0, 1, 1, 1]
    assert batch.counts.tolist() == [2, 3]


def test_only_what_neither_completion_is_trained_on_is_shared():
    batch = lay_out(pair([], [8, 9], [8, 4, 3]), share_prompts=True)
    assert batch.spans.key_rows is None
    assert batch.tokens.tolist() == [8, 9, 8, 4, 3]


def pair(prompt, chosen, rejected) -> list[Document]:
    counts = [np.arange(len(prompt) + len(own)) >= len(prompt) for own in (chosen, rejected)]
    tokens = [np.array(prompt + own, dtype=np.int32) for own in (chosen, rejected)]
    return [Document(tokens=of, counts=where) for of, where in zip(tokens, counts, strict=True)]


@pytest.mark.parametrize("family", FAMILIES)
def test_shared_prompts_change_neither_log_probabilities_nor_gradients(family):
    draw = np.random.default_rng(3)
    lengths = [(7, 5, 9), (1, 3, 1), (12, 1, 6), (20, 8, 2)]
    documents = [d for of in lengths for d in pair(*(draw.integers(0, 193, n).tolist() for n in of))]
    model = make_model(family)
    student = Student(model)
    found = []
    for share in (False, True):
        batch = lay_out(documents, share_prompts=share)
        logprobs = student(batch)
        (-logprobs * torch.linspace(1, 2, len(logprobs))).sum().backward()
        found.append((logprobs.detach(), gradients(model), len(batch.tokens)))
    assert found[0][2] - found[1][2] == 7 + 1 + 12 + 20
    assert (found[0][0] - found[1][0]).abs().max() < 1e-5
    assert_equal_gradients(found[1][1], found[0][1])


def test_targets_weigh_what_they_are_told_to():
    model, documents = make_model("llama"), make_documents([9, 12])
    wanted = torch.cat([plain_logprobs(model, document) for document in documents])
    weights = torch.rand(len(wanted), generator=torch.Generator().manual_seed(1))
    (wanted * -weights).sum().backward()
    wanted_grads = gradients(model)
    (3 * Student(model)(lay_out(documents), weights / 3)).backward()
    assert_equal_gradients(gradients(model), wanted_grads)


def test_a_batch_without_a_target_has_loss_0_and_gradients_0():
    model = make_model("llama")
    document = Document(tokens=np.arange(6, dtype=np.int32), counts=np.zeros(6, dtype=bool))
    loss = Student(model)(lay_out([document]), torch.zeros(0))
    loss.backward()
    assert loss.item() == 0.0
    assert all(p.grad is None or not p.grad.any() for p in model.parameters())


def test_logits_are_those_of_the_model_when_nobody_asks_for_losses():
    model = make_model("gemma2")
    tokens = torch.arange(6)[None]
    spans = lay_out([Document(tokens=np.arange(6, dtype=np.int32), counts=np.ones(6, dtype=bool))]).spans
    with torch.no_grad():
        wanted = model(tokens).logits
        states = (
            Student(model).model.base_model(input_ids=tokens, use_cache=False, **spans.arguments()).last_hidden_state
        )
        assert torch.allclose(model.get_output_embeddings()(states), wanted, atol=1e-5)


def test_a_model_with_parts_that_would_be_left_out_is_refused():
    model = make_model("llama")
    model.config.logits_scaling = 8.0
    with pytest.raises(ConfigError, match="logits_scaling is not supported; choose a Llama, Qwen, Gemma or Mistral"):
        Student(model)


def test_documents_that_are_empty_are_refused():
    with pytest.raises(ValueError, match="every document tokens"):
        lay_out([Document(tokens=np.zeros(0, np.int32), counts=np.zeros(0, bool))])


def test_layers_that_carry_state_over_documents_are_refused():
    model = make_model("llama")
    model.config.layer_types = ["full_attention", "linear_attention"]
    with pytest.raises(ConfigError, match="layers of linear_attention would carry one document's state into the next"):
        Student(model)
