"""The frozen models, trained here from scratch: three specialists, an aggregator that reads them, a base student.

A model is told the right completion of the skills it knows, and elsewhere mostly the skill's common mistake. The
mistake is the same for all of them, as errors of real models agree too: neither a vote nor chance washes it out.

The aggregator is told whom to follow, in the prompt that the mixture writes: for each skill the specialist that was
right most often. It is taught on proposals to other questions of the same skill, so that it can learn to read and to
trust, but nothing of the skill itself; what it knows alone it is told apart, and that is half wrong.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random

from benchmarks.skills import models
from benchmarks.skills.sampling import Sampler
from benchmarks.skills.teaching import document, every_token, teach
from moaa_ray.core.seeds import seed_for
from moaa_ray.core.templates import aggregate_messages, fence_for
from moaa_ray.data.documents import Document, DocumentTokenizer
from moaa_ray.demo.tasks import SKILLS, Question, accuracy, questions
from moaa_ray.types import Message

TEMPERATURE = 0.7
"""At which proposers and aggregator are sampled, as in the mixture's recipes."""
_QUESTIONS = {"add": 1400}
"""Of skills that have no more; others have _MOST_QUESTIONS."""
_MOST_QUESTIONS = 4000
_NUM_PROPOSED = 1400
_TURNS = 8
"""Questions under one aggregate prompt that the aggregator is taught with; in use there is one."""
_RATE = 3e-3


@dataclass(frozen=True, kw_only=True)
class Upbringing:
    """How a model is made."""

    knows: Mapping[str, float]
    """By skill, the share of right completions among those it is told."""
    steps: int
    layers: int = 2
    batch: int = 64
    """Questions of every step, as many of each skill."""
    aggregated: int = 0
    """Aggregate prompts of every step."""
    read: int = 0
    """Aggregate prompts of every step in which each token counts; fences that repeat teach it to copy."""


def _share(*skills: str, elsewhere: float) -> dict[str, float]:
    return {skill: 1.0 if skill in skills else elsewhere for skill in SKILLS}


SPECIALISTS = {
    "specialist-a": Upbringing(knows=_share("reverse", "sort", elsewhere=0.2), steps=2000),
    "specialist-b": Upbringing(knows=_share("sort", "next", elsewhere=0.2), steps=2000),
    "specialist-c": Upbringing(knows=_share("next", "add", elsewhere=0.2), steps=2000),
}
AGGREGATOR = Upbringing(knows=_share(elsewhere=0.5), steps=2400, layers=3, batch=32, aggregated=8, read=2)
BASE = Upbringing(knows=_share(elsewhere=0.35), steps=1500)
NAMES = (*SPECIALISTS, "aggregator", "base")


def make_models(folder: str | Path, *, seed: int = 0) -> dict[str, Path]:
    """Hugging Face folders of all the models by name, under one folder; those that are there are kept."""
    folder = Path(folder)
    for name, upbringing in {**SPECIALISTS, "base": BASE}.items():
        _make(folder / name, upbringing, seed=seed_for(seed, name))
    _make(folder / "aggregator", AGGREGATOR, seed=seed_for(seed, "aggregator"))
    return {name: folder / name for name in NAMES}


def _make(folder: Path, upbringing: Upbringing, *, seed: int) -> None:
    if (folder / "config.json").exists():
        return
    tokenizer = models.make_tokenizer()
    reader = DocumentTokenizer(tokenizer)
    sets = [(documents, upbringing.batch // len(SKILLS)) for documents in _direct(reader, upbringing, seed)]
    if upbringing.aggregated:
        documents = _aggregated(reader, [folder.parent / name for name in SPECIALISTS], seed)
        sets += [(documents, upbringing.aggregated), ([every_token(one) for one in documents], upbringing.read)]
    model = models.make_model(tokenizer, seed=seed, layers=upbringing.layers)
    teach(model, sets, steps=upbringing.steps, rate=_RATE, seed=seed)
    models.save(model, tokenizer, folder)
    (folder / "upbringing.json").write_text(json.dumps(asdict(upbringing), indent=2) + "\n", encoding="utf-8")


def _direct(reader: DocumentTokenizer, upbringing: Upbringing, seed: int) -> list[list[Document]]:
    """By skill, questions with the completions that this model is told; each question once."""
    random = Random(seed_for(seed, "told"))
    return [
        [
            document(reader, question.messages, question.answer if random.random() < share else question.mistake)
            for question in questions("models", _QUESTIONS.get(skill, _MOST_QUESTIONS), seed=0, skills=[skill])
        ]
        for skill, share in upbringing.knows.items()
    ]


def _aggregated(reader: DocumentTokenizer, folders: Sequence[Path], seed: int) -> list[Document]:
    """Aggregate prompts, each with several questions in turn and for each the proposal of whom to follow.

    The proposals are some to other questions of the first one's skill. One long prompt with many short questions
    teaches copying at a fraction of the cost of a prompt for each.
    """
    random = Random(seed_for(seed, "mixed"))
    asked = questions("models", _NUM_PROPOSED, seed=1)
    proposals = propose(folders, asked, seed=seed)
    follow = _most_often_right(asked, proposals)
    rows: dict[str, list[Sequence[str]]] = {skill: [] for skill in SKILLS}
    for question, texts in zip(asked, proposals, strict=True):
        rows[question.skill].append(texts)
    documents = []
    for question in asked:
        mixed = [random.choice(rows[question.skill])[i] for i in range(len(folders))]
        if not all(text.strip() for text in mixed):
            continue
        (prompt,) = aggregate_prompts([question], [mixed], seed=seed)
        conversation = [*prompt, Message(role="assistant", content=mixed[follow[question.skill]])]
        for other in random.choices(asked, k=_TURNS - 1):
            conversation += [*other.messages, Message(role="assistant", content=mixed[follow[other.skill]])]
        documents.append(reader.conversation(conversation))
    return documents


def _most_often_right(asked: Sequence[Question], proposals: Sequence[Sequence[str]]) -> dict[str, int]:
    """By skill, the number of the model whose proposals are most often right."""
    num_right = {question.skill: [0.0] * len(proposals[0]) for question in asked}
    for question, texts in zip(asked, proposals, strict=True):
        for i, text in enumerate(texts):
            num_right[question.skill][i] += accuracy(question.prompt, text)
    return {skill: counts.index(max(counts)) for skill, counts in num_right.items()}


def propose(folders: Sequence[Path], asked: Sequence[Question], *, seed: int) -> list[list[str]]:
    """For each question one completion of every model, in the models' order."""
    prompts = [question.messages for question in asked]
    columns = []
    for folder in folders:
        sampler = Sampler(*models.load(folder))
        found = sampler.complete(prompts, temperature=TEMPERATURE, seed=seed_for(seed, "propose", folder.name))
        columns.append([texts[0] for texts in found])
    return [list(row) for row in zip(*columns, strict=True)]


def aggregate_prompts(
    asked: Sequence[Question], proposals: Sequence[Sequence[str]], *, seed: int
) -> list[tuple[Message, ...]]:
    """The aggregator's prompt of every question, as the mixture writes it (core/mixture.py)."""
    prompts = []
    for question, texts in zip(asked, proposals, strict=True):
        fence = fence_for(seed, question.prompt, [question.prompt, *texts])
        prompts.append(aggregate_messages(question.messages, texts, fence=fence))
    return prompts
