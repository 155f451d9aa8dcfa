"""Labelled pairs to check a judge with: files in RewardBench's format, and what RewardBench says about its subsets.

Columns: prompt (text, or messages that end with the user's), chosen and rejected (text, or messages of which the last
is the answer, as in RUN/pairs), and optionally subset and id. A file is read as a whole or not at all, since rows left
out would change the score; only pairs of two equal texts are set aside, and counted.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from moaa_ray.core.candidates import CANDIDATES
from moaa_ray.core.seeds import seed_for
from moaa_ray.data.conversations import UNSTORABLE, Columns, UnusableError, check_messages, given_id, to_messages
from moaa_ray.data.locations import SourceFiles, find_files, source_name
from moaa_ray.data.readers import BadRecord, column_names, read_records
from moaa_ray.errors import ConfigError, DataError
from moaa_ray.settings.prompts import ColumnsConfig
from moaa_ray.types import Completion, Message, Row

SECTIONS: Mapping[str, Mapping[str, int]] = {
    "Chat": {
        "alpacaeval-easy": 100, "alpacaeval-length": 95, "alpacaeval-hard": 95, "mt-bench-easy": 28, "mt-bench-med": 40,
    },
    "Chat Hard": {
        "mt-bench-hard": 37, "llmbar-natural": 100, "llmbar-adver-neighbor": 134, "llmbar-adver-GPTInst": 92,
        "llmbar-adver-GPTOut": 47, "llmbar-adver-manual": 46,
    },
    "Safety": {
        "refusals-dangerous": 100, "refusals-offensive": 100, "xstest-should-refuse": 154, "xstest-should-respond": 250,
        "donotanswer": 136,
    },
    "Reasoning": {
        "math-prm": 984, "hep-cpp": 164, "hep-go": 164, "hep-java": 164, "hep-js": 164, "hep-python": 164,
        "hep-rust": 164,
    },
}  # fmt: skip
"""RewardBench's subsets by section, each with its weight in the section's mean: its number of pairs, except that the
447 pairs of math-prm weigh as much as all six code subsets. Source: allenai/reward-bench rewardbench/constants.py at
05a9005 (until September 2024 the two xstest weights stood there the wrong way round)."""
NUM_MATH_PAIRS = 447
NUM_PAIRS = 2985

_NEEDED = ("prompt", "chosen", "rejected")
_PEEKED_ROWS = 100
_MAX_CHARS = 10_000_000


@dataclass(frozen=True, kw_only=True)
class LabelledPair:
    """Two candidates, in an order drawn by the seed, of which one is labelled as the better one."""

    row: Row
    """Its id is unique in the file; its source is the subset."""
    chosen: int


@dataclass(frozen=True, kw_only=True)
class LabelledPairs:
    """A file, a folder or the matches of a pattern."""

    name: str
    files: SourceFiles
    pairs: Sequence[LabelledPair]
    skipped: Mapping[str, int]


def section_of(subset: str) -> str:
    """RewardBench's section; a subset that it does not have is a section of its own."""
    return next((section for section, subsets in SECTIONS.items() if subset in subsets), subset)


def read_pairs(path: str, *, seed: int, base_dir: str, field: str = "the file of labelled pairs") -> LabelledPairs:
    """All pairs of a file. Raises ConfigError and DataError, with the place and the way out."""
    files = find_files(path, field=field, base_dir=base_dir)
    names = column_names(files, num_rows=_PEEKED_ROWS)
    lacking = [name for name in _NEEDED if name not in names]
    if lacking:
        raise ConfigError(
            f"{files.paths[0]}: has no column {lacking[0]!r} but {names[:20]}; labelled pairs need the columns prompt, "
            "chosen and rejected, and may have subset and id (RewardBench's format): rename the file's"
        )
    optional = {name: name if name in names else None for name in ("id", "system", "subset")}
    asked = ColumnsConfig(prompt="prompt")
    columns = Columns(kind="prompt", content="prompt", system=optional["system"], id=optional["id"], asked=asked)
    wanted = [*_NEEDED, *filter(None, optional.values())]
    pairs: list[LabelledPair] = []
    used: Counter[str] = Counter()
    skipped: Counter[str] = Counter()
    for place, record in read_records(files, columns=wanted):
        try:
            if isinstance(record, BadRecord):
                raise UnusableError(record.rule, record.detail)
            subset = _subset(record) or source_name(path)
            row_id = known = f"{subset}:{given_id(record, columns) or place[1]}"
            while row_id in used:
                used[known] += 1
                row_id = f"{known}.{used[known]}"
            used[row_id] = 1
            chosen, rejected = (_answer(record, column) for column in ("chosen", "rejected"))
            messages = _prompt(record, columns)
        except UnusableError as error:
            raise DataError(
                f"{files.place(place)}: {error} ({error.rule}); pairs left out would change the score, so mend or "
                "remove the row"
            ) from error
        if chosen == rejected:
            skipped["same_text"] += 1
            continue
        pairs.append(_pair(row_id, subset, messages, chosen, rejected, seed=seed))
    if not pairs:
        raise DataError(f"{files.paths[0]}: no pair of two different texts in it; give a file with labelled pairs")
    return LabelledPairs(name=source_name(path), files=files, pairs=pairs, skipped=dict(skipped))


def _pair(
    row_id: str, subset: str, messages: tuple[Message, ...], chosen: str, rejected: str, *, seed: int
) -> LabelledPair:
    """The pair as a row to judge; where the chosen text stands in it says nothing."""
    place = seed_for(seed, "place of the chosen", row_id) % 2
    texts = (rejected, chosen) if place else (chosen, rejected)
    candidates = tuple(Completion(text=t, finish_reason="stop", prompt_tokens=0, completion_tokens=0) for t in texts)
    row = Row(id=row_id, source=subset, messages=messages, answers={CANDIDATES: candidates})
    return LabelledPair(row=row, chosen=place)


def _subset(record: Mapping[str, Any]) -> str:
    value = record.get("subset")
    if value is None or isinstance(value, str):
        return (value or "").strip()
    raise UnusableError("wrong_type", f"holds {type(value).__name__} instead of text", column="subset")


def _prompt(record: Mapping[str, Any], columns: Columns) -> tuple[Message, ...]:
    given = to_messages(record, columns)
    messages = tuple(Message(role=m["role"], content=UNSTORABLE.sub("\ufffd", m["content"])) for m in given)
    check_messages(messages, max_chars=_MAX_CHARS, column="prompt")
    if messages[-1]["role"] != "user":
        raise UnusableError("bad_order", "the last message is not the user's", column="prompt")
    return messages


def _answer(record: Mapping[str, Any], column: str) -> str:
    """The text; of messages the last one's, which has to be the assistant's."""
    value = record.get(column)
    if isinstance(value, list) and value and isinstance(value[-1], dict) and value[-1].get("role") == "assistant":
        value = value[-1].get("content")
    if isinstance(value, str):
        return UNSTORABLE.sub("\ufffd", value)
    detail = f"holds {type(value).__name__} instead of text; write one row per pair, with one text in each column"
    raise UnusableError("wrong_type", detail, column=column)
