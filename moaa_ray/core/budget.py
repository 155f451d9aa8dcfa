"""How proposals are shortened when they do not all fit into the next model's context window.

The rule: system text, conversation and max_tokens are never touched. What is left of the window is
shared by the proposals so that short ones stay whole and all long ones get the same number of
tokens. A shortened proposal says so at its end. Below MIN_PROPOSAL_TOKENS each, the row fails.
"""

from collections.abc import Callable, Sequence

MIN_PROPOSAL_TOKENS = 64
_MARK = "\n[... {num_chars} characters left out to fit the context window]"
_MARK_TOKENS = 24
_MAX_ROUNDS = 12


class DoesNotFitError(Exception):
    """Even MIN_PROPOSAL_TOKENS of every proposal do not fit."""


def fit_proposals(
    texts: Sequence[str], *, room_tokens: int, count_text: Callable[[str], int], fits: Callable[[Sequence[str]], bool]
) -> tuple[list[str], bool]:
    """The proposals, shortened by the rule above until `fits` says yes, and whether any was shortened.

    Args: room_tokens is what the window leaves for the proposals' text, count_text the tokens of one
    text, fits the exact test on the whole prompt. Raises DoesNotFitError.
    """
    if fits(texts):
        return list(texts), False
    sizes = [max(1, count_text(text)) for text in texts]
    room = room_tokens
    for _ in range(_MAX_ROUNDS):
        cap = fair_cap(sizes, room)
        if cap < MIN_PROPOSAL_TOKENS:
            break
        shortened = [_cut(text, size, cap) for text, size in zip(texts, sizes, strict=True)]
        if fits(shortened):
            return shortened, True
        room = int(room * 0.9) - 1
    raise DoesNotFitError(
        f"{len(texts)} proposals of {sum(sizes)} tokens have room for {room_tokens}, "
        f"which is less than {MIN_PROPOSAL_TOKENS} tokens each"
    )


def fair_cap(sizes: Sequence[int], room: int) -> int:
    """The largest cap c with sum(min(size, c)) <= room; 0 when there is none.

    Example: sizes 10, 50, 90 in a room of 100 give 45: 10 stays whole, the others get 45 each.
    """
    left, remaining = room, len(sizes)
    for size in sorted(sizes):
        share = left // remaining
        if size > share:
            return max(0, share)
        left -= size
        remaining -= 1
    return max(sizes, default=0)


def _cut(text: str, size: int, cap: int) -> str:
    if size <= cap:
        return text
    num_chars = max(1, len(text) * max(1, cap - _MARK_TOKENS) // size)
    kept = text[:num_chars]
    at_space = kept.rfind(" ", num_chars - 80)
    if at_space > 0:
        kept = kept[:at_space]
    return kept.rstrip() + _MARK.format(num_chars=len(text) - len(kept.rstrip()))
