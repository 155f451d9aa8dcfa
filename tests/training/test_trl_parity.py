"""The same messages give the same tokens, loss and gradients as TRL's own trainers do.

Both sides start from messages and from copies of one small random Llama in float32; TRL's side is its trainer's own
dataset, collator and compute_loss.
"""

import copy
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("trl", reason="parity is measured against TRL, which is not installed")

import numpy as np  # noqa: E402

from moaa_ray.data.documents import Document, DocumentTokenizer  # noqa: E402
from moaa_ray.demo.tiny import LLAMA3, make_tiny_model  # noqa: E402
from moaa_ray.training.losses import LossSettings  # noqa: E402
from moaa_ray.training.microbatch import lay_out  # noqa: E402
from moaa_ray.training.step import PreferenceSettings, document_logprobs, preference_step, sft_step  # noqa: E402
from moaa_ray.training.strategies.base import Numerics, World  # noqa: E402
from moaa_ray.training.strategies.single import Single  # noqa: E402
from moaa_ray.training.student import Student  # noqa: E402

pytestmark = pytest.mark.slow

MARKED = LLAMA3.replace(
    "{{ m.content | trim }}<|eot_id|>",
    "{% if m.role == 'assistant' %}{% generation %}{{ m.content | trim }}<|eot_id|>{% endgeneration %}"
    "{% else %}{{ m.content | trim }}<|eot_id|>{% endif %}",
)
"""The same text, with what TRL needs to know which tokens an assistant wrote."""

CONVERSATIONS = [
    [("user", "Where does the river go?"), ("assistant", "To the sea, by many turns.")],
    [
        ("system", "Be brief."),
        ("user", "Name a color."),
        ("assistant", "Green."),
        ("user", "Two!"),
        ("assistant", "Red."),
    ],
    [("user", "Count."), ("assistant", "One, two, three, four, five, six, seven, eight, nine, ten.")],
    [("user", "A longer question about the weather of next week, and the one after it?"), ("assistant", "Rain.")],
    [("user", "Hi"), ("assistant", "Hello! What would you like to know about bread, salt and water?")],
]
PAIRS = [
    ("Where does the river go?", "To the sea, by many turns.", "Home."),
    ("Count.", "One, two, three.", "One, two, three, four, five, six, seven, eight, nine, ten, and so on."),
    ("Name a color.", "Green.", "Seven."),
    ("Write a line about bread.", "Bread, salt and water.", "A line about bread, salt and water, and then some more."),
]


def turns(said) -> list[dict[str, str]]:
    return [{"role": role, "content": content} for role, content in said]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory) -> Any:
    from transformers import AutoTokenizer

    folder = make_tiny_model(tmp_path_factory.mktemp("tiny"), seed=0, template="llama3")
    return AutoTokenizer.from_pretrained(folder)


@pytest.fixture
def model(tokenizer) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        attn_implementation="sdpa",
    )
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3.0)
    return model


def for_trl(tokenizer: Any) -> Any:
    marked = copy.deepcopy(tokenizer)
    marked.chat_template = MARKED
    return marked


def settings(folder, **more: Any) -> dict[str, Any]:
    return {
        "output_dir": str(folder),
        "per_device_train_batch_size": 8,
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "report_to": "none",
        "dataloader_pin_memory": False,
        "max_length": 128,
        **more,
    }


def loss_and_gradients(trainer: Any) -> tuple[dict[str, Any], float, dict[str, Any]]:
    """The trainer's first batch, its loss, and its gradients by name."""
    batch = next(iter(trainer.get_train_dataloader()))
    trainer.model.zero_grad()
    loss = trainer.compute_loss(trainer.model, dict(batch))
    loss.backward()
    return batch, float(loss.detach()), {name: p.grad for name, p in trainer.model.named_parameters()}


class Recorded(Single):
    """A strategy whose update keeps the gradients instead of taking the step."""

    def update(self, rate: float) -> float:
        self.gradients = {name: p.grad for name, p in self.student.model.named_parameters()}
        return 1.0


def assert_equal_gradients(got: dict[str, Any], wanted: dict[str, Any]) -> None:
    assert got.keys() == wanted.keys()
    for name, grad in wanted.items():
        assert (got[name] - grad).norm() <= 1e-5 * grad.norm(), name
        assert grad.norm() > 0


def as_sets(documents: list[Document]) -> set[tuple[tuple[int, ...], tuple[bool, ...]]]:
    return {(tuple(map(int, d.tokens)), tuple(map(bool, d.counts))) for d in documents}


def unpadded(batch: dict[str, Any]) -> list[Document]:
    """The documents of an SFT batch of TRL's, padded or packed."""
    labels, tokens = batch["labels"].numpy(), batch["input_ids"].numpy()
    if "attention_mask" in batch:
        lengths = batch["attention_mask"].sum(1).tolist()
        rows = [(tokens[i, :n], labels[i, :n]) for i, n in enumerate(lengths)]
    else:
        starts = np.flatnonzero(batch["position_ids"][0].numpy() == 0)
        cut = lambda row: np.split(row[0], starts[1:])  # noqa: E731
        rows = list(zip(cut(tokens), cut(labels), strict=True))
    return [Document(tokens=row.astype(np.int32), counts=label != -100) for row, label in rows]


@pytest.mark.parametrize("packing", [False, True], ids=["padded", "packed"])
def test_sft_equals_trl_on_what_the_assistant_said(tokenizer, model, tmp_path, packing):
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    conversations = [turns(said) for said in CONVERSATIONS]
    trainer = SFTTrainer(
        model=copy.deepcopy(model),
        args=SFTConfig(**settings(tmp_path, assistant_only_loss=True, packing=packing, packing_strategy="bfd")),
        train_dataset=Dataset.from_list([{"messages": messages} for messages in conversations]),
        processing_class=for_trl(tokenizer),
    )
    batch, wanted, gradients = loss_and_gradients(trainer)

    ours = DocumentTokenizer(tokenizer)
    documents = [ours.conversation(messages) for messages in conversations]
    assert as_sets(documents) == as_sets(unpadded(batch))
    strategy = Recorded(Student(model), World(), Numerics())
    micro = [lay_out(documents[:2]), lay_out(documents[2:])]
    result = sft_step(strategy, micro, num_targets=sum(d.num_targets for d in documents), rate=0.0)
    assert result.loss == pytest.approx(wanted, rel=1e-5)
    assert_equal_gradients(strategy.gradients, gradients)


def preference_rows() -> list[dict[str, Any]]:
    return [
        {
            "prompt": turns([("user", prompt)]),
            "chosen": turns([("assistant", chosen)]),
            "rejected": turns([("assistant", rejected)]),
        }
        for prompt, chosen, rejected in PAIRS
    ]


def pair_documents(tokenizer: Any) -> list[Document]:
    """Chosen, rejected, chosen, rejected, ..."""
    ours = DocumentTokenizer(tokenizer)
    return [ours.completion(row["prompt"], row[side]) for row in preference_rows() for side in ("chosen", "rejected")]


def our_loss_and_gradients(
    model: Any, ref_model: Any, documents: list[Document], settings: PreferenceSettings
) -> tuple[float, dict[str, Any]]:
    """Our step on the pairs in two microbatches, against sums computed beforehand by the reference."""
    micro = [lay_out(documents[:2]), lay_out(documents[2:])]
    with torch.no_grad():
        ref = Student(copy.deepcopy(ref_model))
        refs = [document_logprobs(ref(batch), batch, settings.ld_alpha) for batch in micro]
    strategy = Recorded(Student(copy.deepcopy(model)), World(), Numerics())
    chosen = sum(document.num_targets for document in documents[::2])
    num_pairs = len(documents) // 2
    result = preference_step(strategy, micro, refs, settings, num_pairs=num_pairs, num_chosen_targets=chosen, rate=0.0)
    return result.loss, strategy.gradients


@pytest.fixture
def ref_model(model) -> Any:
    """Near the policy, as in training: log-ratios are small differences of large sums."""
    torch.manual_seed(1)
    ref_model = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in ref_model.parameters():
            parameter.add_(0.1 * parameter.std().nan_to_num() * torch.randn_like(parameter))
    return ref_model


DPO_CASES = {
    "sigmoid": ({"loss_type": "sigmoid"}, PreferenceSettings()),
    "sigmoid, reference precomputed": (
        {"loss_type": "sigmoid", "precompute_ref_log_probs": True},
        PreferenceSettings(),
    ),
    "ipo": ({"loss_type": "ipo"}, PreferenceSettings(kind="ipo")),
    "hinge": ({"loss_type": "hinge"}, PreferenceSettings(kind="hinge")),
    "robust": (
        {"loss_type": "robust", "label_smoothing": 0.1},
        PreferenceSettings(kind="robust", loss=LossSettings(label_smoothing=0.1)),
    ),
    "length-normalised": (
        {"loss_type": "sigmoid_norm"},
        PreferenceSettings(loss=LossSettings(length_normalized=True)),
    ),
    "length-desensitised": ({"loss_type": "sigmoid", "ld_alpha": 0.5}, PreferenceSettings(ld_alpha=0.5)),
    "with an SFT term": (
        {"loss_type": ["sigmoid", "sft"], "loss_weights": [1.0, 0.2]},
        PreferenceSettings(sft_weight=0.2),
    ),
}


@pytest.mark.parametrize("case", DPO_CASES)
def test_dpo_equals_trl(tokenizer, model, ref_model, tmp_path, case):
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer

    theirs, ours = DPO_CASES[case]
    trainer = DPOTrainer(
        model=copy.deepcopy(model),
        ref_model=copy.deepcopy(ref_model),
        args=DPOConfig(**settings(tmp_path, beta=0.01, **theirs)),
        train_dataset=Dataset.from_list(preference_rows()),
        processing_class=tokenizer,
    )
    batch, wanted, gradients = loss_and_gradients(trainer)

    documents = pair_documents(tokenizer)
    lengths = batch["attention_mask"].sum(1).tolist()
    shown = zip(batch["input_ids"].numpy(), batch["completion_mask"].numpy(), lengths, strict=True)
    assert as_sets(documents) == as_sets(
        [Document(tokens=row[:n].astype(np.int32), counts=mask[:n].astype(bool)) for row, mask, n in shown]
    )
    loss, got = our_loss_and_gradients(model, ref_model, documents, ours)
    assert loss == pytest.approx(wanted, rel=1e-5)
    assert_equal_gradients(got, gradients)


def test_simpo_equals_trl(tokenizer, model, tmp_path):
    from datasets import Dataset
    from trl.experimental.cpo import CPOConfig, CPOTrainer

    trainer = CPOTrainer(
        model=copy.deepcopy(model),
        args=CPOConfig(**settings(tmp_path, loss_type="simpo", beta=2.0, simpo_gamma=0.5, cpo_alpha=0.0)),
        train_dataset=Dataset.from_list(preference_rows()),
        processing_class=tokenizer,
    )
    _, wanted, gradients = loss_and_gradients(trainer)
    ours = PreferenceSettings(kind="simpo", loss=LossSettings(beta=2.0, gamma=0.5))
    loss, got = our_loss_and_gradients(model, model, pair_documents(tokenizer), ours)
    assert loss == pytest.approx(wanted, rel=1e-5)
    assert_equal_gradients(got, gradients)


def test_orpo_s_odds_ratio_equals_trl(tokenizer, model, tmp_path):
    """Its other term differs on purpose (TRL's counts the prompt too), and cancels in the difference of two betas."""
    from datasets import Dataset
    from trl.experimental.orpo import ORPOConfig, ORPOTrainer

    losses, grads = [], []
    for beta in (1.0, 101.0):
        trainer = ORPOTrainer(
            model=copy.deepcopy(model),
            args=ORPOConfig(**settings(tmp_path, beta=beta)),
            train_dataset=Dataset.from_list(preference_rows()),
            processing_class=tokenizer,
        )
        _, wanted, gradients = loss_and_gradients(trainer)
        ours = PreferenceSettings(kind="orpo", loss=LossSettings(beta=beta))
        loss, got = our_loss_and_gradients(model, model, pair_documents(tokenizer), ours)
        losses.append((loss, wanted))
        grads.append((got, gradients))
    assert losses[1][0] - losses[0][0] == pytest.approx(losses[1][1] - losses[0][1], rel=1e-5)
    ours_by_beta, theirs_by_beta = ([{n: b[i][n] for n in b[i]} for b in grads] for i in (0, 1))
    assert_equal_gradients(difference(*ours_by_beta), difference(*theirs_by_beta))


def difference(low: dict[str, Any], high: dict[str, Any]) -> dict[str, Any]:
    return {name: high[name] - grad for name, grad in low.items()}
