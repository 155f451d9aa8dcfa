"""Completions of tiny models, many at once: prompts of one length go through the model together, without padding.

Each completion's draws come from its own seed, so neither batches nor order change what is drawn.
"""

from collections import defaultdict
from collections.abc import Sequence

import numpy as np
import torch

from moaa_ray.core.seeds import seed_for
from moaa_ray.engines.chat_tokens import ChatTokenizer
from moaa_ray.types import Message

MAX_TOKENS = 12
"""Of a completion; the longest right one has six and the token that ends it."""
_BATCH_TOKENS = 40_000


class Sampler:
    """A model of a folder that answers conversations."""

    def __init__(self, model, tokenizer):
        self._model = model.eval()
        self._tokenizer = tokenizer
        self._chat = ChatTokenizer(tokenizer)

    def complete(
        self, prompts: Sequence[Sequence[Message]], *, temperature: float, seed: int, num_samples: int = 1
    ) -> list[list[str]]:
        """num_samples completions of each prompt. Temperature 0: the likeliest token at every place."""
        encoded = [self._chat.encode(prompt)[0] for prompt in prompts]
        by_length: dict[int, list[tuple[int, int]]] = defaultdict(list)
        for i, ids in enumerate(encoded):
            by_length[len(ids)] += [(i, sample) for sample in range(num_samples)]
        found = [[""] * num_samples for _ in prompts]
        for length, wanted in by_length.items():
            batch = max(1, _BATCH_TOKENS // length)
            for start in range(0, len(wanted), batch):
                part = wanted[start : start + batch]
                draws = np.stack([_draws(seed, i, sample) for i, sample in part])
                ids = torch.tensor([encoded[i] for i, _ in part])
                for (i, sample), text in zip(part, self._texts(ids, draws, temperature), strict=True):
                    found[i][sample] = text
        return found

    @torch.no_grad()
    def _texts(self, ids_BT: torch.Tensor, draws_BN: np.ndarray, temperature: float) -> list[str]:
        """What follows each row of ids, up to the token that ends a turn."""
        end = self._tokenizer.eos_token_id
        output = self._model(input_ids=ids_BT, use_cache=True, logits_to_keep=1)
        is_over_B = torch.zeros(len(ids_BT), dtype=torch.bool)
        tokens_BN = torch.full((len(ids_BT), MAX_TOKENS), end)
        for place in range(MAX_TOKENS):
            drawn_B = _pick(output.logits[:, -1], torch.from_numpy(draws_BN[:, place]), temperature)
            tokens_BN[:, place] = torch.where(is_over_B, end, drawn_B)
            is_over_B |= drawn_B == end
            if is_over_B.all() or place == MAX_TOKENS - 1:
                break
            output = self._model(input_ids=drawn_B[:, None], past_key_values=output.past_key_values, use_cache=True)
        rows = [row[: row.index(end)] if end in row else row for row in tokens_BN.tolist()]
        return self._tokenizer.batch_decode(rows)


def _draws(seed: int, row: int, sample: int) -> np.ndarray:
    return np.random.default_rng(seed_for(seed, "draws", row, sample)).random(MAX_TOKENS)


def _pick(logits_BV: torch.Tensor, draw_B: torch.Tensor, temperature: float) -> torch.Tensor:
    """The token at which the summed probability passes the draw."""
    if temperature == 0:
        return logits_BV.argmax(dim=-1)
    sums_BV = torch.softmax(logits_BV.double() / temperature, dim=-1).cumsum(dim=-1)
    return torch.searchsorted(sums_BV, draw_B[:, None] * sums_BV[:, -1:], right=True)[:, 0].clamp(
        max=sums_BV.shape[1] - 1
    )
