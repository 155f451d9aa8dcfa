"""What rows are filtered by: duplicates, words shared with evaluation prompts. Pure; looks at one text or at two."""

import unicodedata
from collections.abc import Iterable, Sequence, Set

NGRAM_WORDS = 13
"""As Brown et al. 2020 (arXiv:2005.14165, appendix C) take it; fewer words occur in unrelated texts."""
SHINGLE_WORDS = 5

# Thai, Lao, Myanmar, Khmer, kana, Chinese characters and their extensions: scripts without blanks between words.
_UNSPACED = (
    (0x0E00, 0x0EFF), (0x1000, 0x109F), (0x1780, 0x17FF), (0x3005, 0x3007), (0x3040, 0x30FF), (0x31F0, 0x31FF),
    (0x3400, 0x4DBF), (0x4E00, 0x9FFF), (0xF900, 0xFAFF), (0x20000, 0x3FFFF),
)  # fmt: skip


class _Blanks(dict[int, str]):
    """For str.translate: what is no word character becomes a blank, a character that is a word by itself gets two."""

    def __missing__(self, code: int) -> str:
        char = chr(code)
        if unicodedata.category(char)[0] not in "LNM":  # letters, numbers, and the marks that belong to letters
            char = " "
        elif any(first <= code <= last for first, last in _UNSPACED):
            char = f" {char} "
        self[code] = char
        return char


_BLANKS = _Blanks()


def normalised(text: str) -> str:
    """The text with case and the kind and number of blanks taken out of account."""
    return " ".join(unicodedata.normalize("NFC", text).casefold().split())


def words(text: str) -> list[str]:
    """Runs of letters and digits in any script, case folded; in scripts without blanks every character is a word.

    Example: "Don't panic, 42!" gives don, t, panic, 42.
    """
    return unicodedata.normalize("NFKC", text).casefold().translate(_BLANKS).split()


def ngrams(of: Sequence[str], size: int) -> list[str]:
    """Every run of so many words, in order, joined by blanks; none where there are fewer words."""
    return [" ".join(of[i : i + size]) for i in range(len(of) - size + 1)]


def shingles(of: Sequence[str]) -> frozenset[str]:
    """The set of a text's 5-grams; a shorter text is one shingle, a text without words has none."""
    return frozenset(ngrams(of, SHINGLE_WORDS) or ([" ".join(of)] if of else []))


def jaccard(a: Set[str], b: Set[str]) -> float:
    """The part of all elements that both sets hold; 0 where there is none at all."""
    both = len(a & b)
    return both / (len(a) + len(b) - both) if both else 0.0


class Contamination:
    """The prompts of an evaluation, as far as training data must not hold them."""

    def __init__(self, runs: Iterable[str]):
        """runs: words joined by blanks, 13 of them, or all the words of a prompt that has fewer."""
        self._known = frozenset(runs)

    @classmethod
    def of(cls, prompts: Iterable[str]) -> "Contamination":
        """Every 13-gram of every prompt; of a prompt with fewer words, all its words."""
        return cls(run for prompt in prompts for run in _runs(words(prompt)))

    def __len__(self) -> int:
        return len(self._known)

    def hit(self, text: str, *, is_prompt: bool = True) -> str:
        """The first 13-gram that also stands in an evaluation prompt, or "".

        An evaluation prompt of fewer than 13 words is hit only by a text with exactly its words, and only
        by a prompt: that a short answer reads like a short question says nothing.
        """
        found = words(text)
        if len(found) < NGRAM_WORDS and not is_prompt:
            return ""
        return next((run for run in _runs(found) if run in self._known), "")


def _runs(found: Sequence[str]) -> list[str]:
    return ngrams(found, NGRAM_WORDS) or ([" ".join(found)] if found else [])
