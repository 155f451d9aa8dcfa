"""Judges of completions: the rule itself, the rule with errors, a vote of such judges, and the models' own opinions."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch

from benchmarks.skills import models
from benchmarks.skills.specialists import aggregate_prompts
from benchmarks.skills.teaching import document
from moaa_ray.core.seeds import seed_for
from moaa_ray.data.documents import DocumentTokenizer
from moaa_ray.demo.tasks import Question, accuracy
from moaa_ray.training.microbatch import lay_out
from moaa_ray.training.step import document_logprobs
from moaa_ray.training.student import Student
from moaa_ray.types import Message

Judge = Callable[[Question, str], float]
"""The score of a completion; only its order among the completions of one question matters."""
_BATCH = 64


def rule(question: Question, text: str) -> float:
    """Always right."""
    return accuracy(question.prompt, text)


def erring(name: str, error_rate: float, *, seed: int) -> Judge:
    """The rule, wrong about this share of completions: which ones depends on the judge's name and the seed."""

    def judge(question: Question, text: str) -> float:
        errs = seed_for(seed, name, question.prompt, text) / 2**53 < error_rate
        return 1 - rule(question, text) if errs else rule(question, text)

    return judge


def vote(judges: Sequence[Judge]) -> Judge:
    """What most of these judges say."""
    return lambda question, text: float(sum(judge(question, text) for judge in judges) > len(judges) / 2)


def coin(*, seed: int) -> Judge:
    """Knows nothing: a control."""
    return lambda question, text: seed_for(seed, "coin", question.prompt, text) / 2**53


def opinion(folder: Path, asked: Sequence[Question], sampled: Sequence[Sequence[str]]) -> Judge:
    """How likely a model thinks each of these completions, asked the question alone."""
    return _likelihood(folder, [question.messages for question in asked], asked, sampled)


def mixture_opinion(
    folders: Mapping[str, Path],
    asked: Sequence[Question],
    proposals: Sequence[Sequence[str]],
    sampled: Sequence[Sequence[str]],
    *,
    seed: int,
) -> Judge:
    """How likely the aggregator thinks each completion once it has read what the specialists propose."""
    prompts = aggregate_prompts(asked, proposals, seed=seed_for(seed, "judge"))
    return _likelihood(folders["aggregator"], prompts, asked, sampled)


@torch.no_grad()
def _likelihood(
    folder: Path, prompts: Sequence[Sequence[Message]], asked: Sequence[Question], sampled: Sequence[Sequence[str]]
) -> Judge:
    model, tokenizer = models.load(folder)
    student, reader = Student(model).eval(), DocumentTokenizer(tokenizer)
    keys, documents = [], []
    for prompt, question, texts in zip(prompts, asked, sampled, strict=True):
        for text in dict.fromkeys(texts):
            keys.append((question.prompt, text))
            documents.append(document(reader, prompt, text))
    scores: dict[tuple[str, str], float] = {}
    for start in range(0, len(keys), _BATCH):
        batch = lay_out(documents[start : start + _BATCH])
        sums = document_logprobs(student(batch), batch, None).tolist()
        scores |= dict(zip(keys[start : start + _BATCH], sums, strict=True))
    return lambda question, text: scores[question.prompt, text]
