"""Which rows of a stage are not published, and why: the recipe's `filters`, over the rows in prompt order.

A reason is "filter: ", the rule's name, and what else is known in brackets: "filter: near_duplicate (of a7)". In order:
    truncated, min_chars, max_chars   the completion
    refusal, leak     the completion, or an answer in an earlier turn
    contaminated      words of any message that are also an evaluation prompt's
    exact_duplicate   the prompt or the completion of a row before
    near_duplicate    nearly the text of a row before
Duplicates are compared with the rows that stay, so of a group of equal rows the first always stays. Memory per row
that stays: about 0.3 KB for exact duplicates, 7 KB for near ones. Near ones take about 2 ms per row, others less.
"""

import heapq
import importlib
import math
import zlib
from collections.abc import Iterator, Sequence
from types import ModuleType
from typing import TYPE_CHECKING

from moaa_ray.core.filters import Contamination, jaccard, normalised, shingles, words
from moaa_ray.core.phrases import is_refusal, source_leak
from moaa_ray.data.conversations import UnusableError, digest_of, find_columns, to_messages
from moaa_ray.data.locations import find_files, source_name
from moaa_ray.data.readers import BadRecord, column_names, read_records
from moaa_ray.errors import ConfigError, DataError
from moaa_ray.settings.filters import FiltersConfig
from moaa_ray.settings.prompts import ColumnsConfig
from moaa_ray.types import Message

if TYPE_CHECKING:
    from datasketch import LeanMinHash

_PEEKED_ROWS = 100
_NUM_HASHES = 128
_RECALL = 0.99
"""Chance with which a row exactly at the threshold of near_duplicates is compared at all; above it, more."""
_MOST_COMPARED = 100


class Filter:
    """The recipe's filters, for one publishing: it remembers the rows that stayed."""

    def __init__(self, config: FiltersConfig, base_dir: str):
        """Reads the evaluation files; local paths count from base_dir.

        Raises ConfigError for a file that is not there, has no column with prompts, or a library that is not
        installed; DataError for a file that cannot be read to its end or holds no prompt.
        """
        self._config = config
        self._evaluations = [
            (source_name(path), _evaluation(path, field=f"filters.decontaminate.{i}", base_dir=base_dir))
            for i, path in enumerate(config.decontaminate)
        ]
        self._exact = _ExactDuplicates() if config.exact_duplicates else None
        self._near = None if config.near_duplicates is None else _NearDuplicates(config.near_duplicates)

    def why_dropped(self, row_id: str, prompt: Sequence[Message], *, completion: str, is_truncated: bool) -> str:
        """Empty for a row that stays, else the reason why not. Rows come in prompt order, each once."""
        rule = self._unfit(prompt, completion, is_truncated=is_truncated)
        if not rule and self._exact:
            rule = self._exact.find(prompt, completion)
        if not rule and self._near:
            rule = self._near.find_or_add(row_id, prompt, completion)
        if rule:
            return f"filter: {rule}"
        if self._exact:
            self._exact.add(row_id, prompt, completion)
        return ""

    def _unfit(self, prompt: Sequence[Message], completion: str, *, is_truncated: bool) -> str:
        """The first rule that the row breaks by itself, or ""."""
        config, num_chars = self._config, len(completion)
        if config.truncated and is_truncated:
            return "truncated"
        if config.min_chars is not None and num_chars < config.min_chars:
            return f"min_chars ({num_chars} characters)"
        if config.max_chars is not None and num_chars > config.max_chars:
            return f"max_chars ({num_chars} characters)"
        answers = [*(m["content"] for m in prompt if m["role"] == "assistant"), completion]
        if config.refusals and any(map(is_refusal, answers)):
            return "refusal"
        asked = "\n".join(m["content"] for m in prompt if m["role"] != "assistant")
        leak = next(filter(None, (source_leak(asked, answer) for answer in answers)), "") if config.leaks else ""
        return f"leak ({leak!r})" if leak else self._contaminated(prompt, completion)

    def _contaminated(self, prompt: Sequence[Message], completion: str) -> str:
        for name, evaluation in self._evaluations:
            for message in (*prompt, Message(role="assistant", content=completion)):
                found = evaluation.hit(message["content"], is_prompt=message["role"] != "assistant")
                if found:
                    return f"contaminated ({found!r} is in {name})"
        return ""


class _ExactDuplicates:
    """Digests of prompts and completions, each with the first row that had it."""

    def __init__(self) -> None:
        self._prompts: dict[bytes, str] = {}
        self._completions: dict[bytes, str] = {}

    def find(self, prompt: Sequence[Message], completion: str) -> str:
        asked, answered = self._digests(prompt, completion)
        if asked in self._prompts:
            return f"exact_duplicate (prompt of {self._prompts[asked]})"
        if answered in self._completions:
            return f"exact_duplicate (completion of {self._completions[answered]})"
        return ""

    def add(self, row_id: str, prompt: Sequence[Message], completion: str) -> None:
        asked, answered = self._digests(prompt, completion)
        self._prompts[asked] = self._completions[answered] = row_id

    @staticmethod
    def _digests(prompt: Sequence[Message], completion: str) -> tuple[bytes, bytes]:
        parts = (part for message in prompt for part in (message["role"], normalised(message["content"])))
        return digest_of(*parts), digest_of(normalised(completion))


class _NearDuplicates:
    """MinHash signatures of rows in an LSH index that finds candidates; the texts of these are then compared."""

    def __init__(self, threshold: float):
        self._lib = _datasketch()
        rows = _rows_per_band(threshold)
        self._index = self._lib.MinHashLSH(num_perm=_NUM_HASHES, params=(_NUM_HASHES // rows, rows))
        self._threshold = threshold
        # Rows made by one template are candidates for each other. Not compared are those whose similarity as estimated
        # from the hashes is 3 standard deviations below the threshold, and all but the likeliest.
        self._hopeless = threshold - 3 * math.sqrt(threshold * (1 - threshold) / _NUM_HASHES)
        self._kept: list[tuple[str, LeanMinHash, bytes]] = []

    def find_or_add(self, row_id: str, prompt: Sequence[Message], completion: str) -> str:
        """The first near duplicate that was added before; without one the row is added, and "" comes back."""
        text = words("\n".join([*(message["content"] for message in prompt), completion]))
        mine = shingles(text)
        if not mine:
            return ""
        sketch = self._lib.MinHash(num_perm=_NUM_HASHES)
        sketch.update_batch([shingle.encode() for shingle in mine])
        signature = self._lib.LeanMinHash(sketch)
        estimates = ((signature.jaccard(self._kept[number][1]), number) for number in self._index.query(signature))
        likely = ((-estimate, number) for estimate, number in estimates if estimate >= self._hopeless)
        for number in sorted(number for _, number in heapq.nsmallest(_MOST_COMPARED, likely)):
            other_id, _, packed = self._kept[number]
            similarity = jaccard(mine, shingles(zlib.decompress(packed).decode().split(" ")))
            if similarity >= self._threshold:
                return f"near_duplicate (of {other_id}, similarity {similarity:.2f})"
        self._index.insert(len(self._kept), signature)
        self._kept.append((row_id, signature, zlib.compress(" ".join(text).encode(), 1)))
        return ""


def _rows_per_band(threshold: float) -> int:
    """How many hashes must agree in one band, as many as leave a pair at the threshold its chance of being found."""
    return max(
        rows for rows in range(1, _NUM_HASHES // 2 + 1) if 1 - (1 - threshold**rows) ** (_NUM_HASHES // rows) >= _RECALL
    )


def _datasketch() -> ModuleType:
    try:
        return importlib.import_module("datasketch")
    except ImportError as error:
        raise ConfigError(
            f"filters.near_duplicates needs the library datasketch, which cannot be imported ({error}); "
            'pip install "moaa_ray[filters]", or take near_duplicates out'
        ) from error


def _evaluation(path: str, *, field: str, base_dir: str) -> Contamination:
    """What the prompts of one evaluation file forbid; of a conversation the user's turns."""
    evaluation = Contamination.of(_prompts(path, field=field, base_dir=base_dir))
    if not evaluation:
        raise DataError(f"{field} = {path!r}: none of its prompts holds a word; name another file, or take it out")
    return evaluation


def _prompts(path: str, *, field: str, base_dir: str) -> Iterator[str]:
    """Every user turn. A row that cannot be read is an error here: its prompt would not be looked for."""
    files = find_files(path, field=field, base_dir=base_dir)
    names = column_names(files, num_rows=_PEEKED_ROWS)
    try:
        columns = find_columns(ColumnsConfig(), names, where=field, file=files.paths[0])
    except ConfigError as error:
        raise ConfigError(f"{error}, by renaming it to 'prompt'") from error
    for place, record in read_records(files, columns=[columns.content]):
        try:
            if isinstance(record, BadRecord):
                raise UnusableError(record.rule, record.detail)
            messages = to_messages(record, columns.of(record))
        except UnusableError as error:
            said = f"{files.place(place)}: {error} ({error.rule})"
            raise DataError(f"{said}; {field} must be readable as a whole: mend or remove the row") from error
        yield from (message["content"] for message in messages if message["role"] == "user")
