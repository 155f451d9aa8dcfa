"""Training from scratch on right and wrong completions: how a model gets good at some skills and poor at others."""

from collections.abc import Sequence
from random import Random
from typing import cast

import numpy as np
import torch

from moaa_ray.core.seeds import seed_for
from moaa_ray.data.documents import Document, DocumentTokenizer
from moaa_ray.training.microbatch import lay_out
from moaa_ray.training.schedule import learning_rate
from moaa_ray.training.step import sft_step
from moaa_ray.training.strategies.base import Numerics, Strategy, World
from moaa_ray.training.strategies.single import Single
from moaa_ray.training.student import Student
from moaa_ray.types import Message


def document(tokenizer: DocumentTokenizer, prompt: Sequence[Message], completion: str) -> Document:
    """A prompt with its completion, which alone counts."""
    return tokenizer.conversation((*prompt, Message(role="assistant", content=completion)))


def every_token(of: Document) -> Document:
    """The same tokens, each of which counts."""
    return Document(tokens=of.tokens, counts=np.ones(len(of.tokens), dtype=bool))


def teach(model, sets: Sequence[tuple[Sequence[Document], int]], *, steps: int, rate: float, seed: int) -> float:
    """Train a model in place: every step takes so many documents of each set, drawn anew. Returns the last loss."""
    torch.manual_seed(seed_for(seed, "teach"))
    random = Random(seed_for(seed, "documents"))
    strategy = cast(Strategy, Single(Student(model), World(), Numerics()))
    loss = float("nan")
    for step in range(steps):
        batches = [lay_out(random.choices(documents, k=num)) for documents, num in sets]
        num_targets = sum(batch.num_targets for batch in batches)
        now = learning_rate(step, steps, peak=rate, kind="cosine", warmup_ratio=0.05)
        loss = sft_step(strategy, batches, num_targets=num_targets, rate=now).loss
    return loss
