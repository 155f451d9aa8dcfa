"""From a recipe's sources to prompt rows: normalised, checked, without duplicates, in the sources' order.

Columns that are not set are found by conversations.USUAL_NAMES, in a row of JSON Lines where they hold nothing once
more; one set to "" is not used. A message list (also
ShareGPT's from/value, also as JSON text) is taken as it is, assistant turns included; a list of texts
is user turns, a text one user turn. A row without an id gets one from its messages, the same in any source.

A row is dropped, and counted by the rule's name, when it is as follows. The rules down to bad_id are
prompts.bad_rows, the others have fields of their own; with a field set to error the first such row is a DataError.
    not_utf8, not_json, not_object, wrong_columns   a broken line
    wrong_type, unknown_role   no text, or no list of messages with role and content; roles are those of
        conversations.ROLES
    bad_order   a system message that is not first, or an assistant message not right after a user's
    bad_id      no integer or text of 1 to 512 characters, or with NULs or lone surrogates (null: as without id)
    empty       no user message, or one without text
    over_long   more than max_chars characters in all messages
    duplicate   same id and same messages as a row before; same id with other messages is a DataError
NULs and lone surrogates in messages become U+FFFD; the row is kept and counted as repaired.
`limit` takes the first rows as they are read; `sample` those usable ones with the smallest hash of
(seed, id), so neither order nor other sources change the choice. Memory: about 60 bytes per row for ids.
"""

import heapq
import itertools
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from moaa_ray.core.seeds import seed_for
from moaa_ray.data import schemas
from moaa_ray.data.conversations import (
    UNSTORABLE,
    Columns,
    TurnMode,
    UnusableError,
    check_messages,
    digest_of,
    find_columns,
    given_id,
    num_chars,
    to_messages,
)
from moaa_ray.data.conversations import (
    start_turns as start_turns,
)
from moaa_ray.data.locations import Place, SourceFiles, find_files, source_name
from moaa_ray.data.readers import BadRecord, column_names, read_records
from moaa_ray.data.seen import Seen
from moaa_ray.errors import ConfigError, DataError
from moaa_ray.settings.prompts import PromptsConfig, SourceConfig
from moaa_ray.types import Message

_PEEKED_ROWS, _BATCH_ROWS, _BATCH_CHARS, _SHOWN_CHARS = 100, 1000, 8_000_000, 500


@dataclass(frozen=True, kw_only=True)
class PromptRow:
    """One usable prompt."""

    id: str
    source: str
    messages: tuple[Message, ...]


@dataclass(kw_only=True)
class SourceCounts:
    """Rows of one source: read = kept + not_sampled + the dropped ones; repaired ones are among the first two."""

    read: int = 0
    kept: int = 0
    not_sampled: int = 0
    repaired: int = 0
    dropped: Counter[str] = field(default_factory=Counter)


@dataclass(frozen=True, kw_only=True)
class _Source:
    index: int
    name: str
    config: SourceConfig
    files: SourceFiles
    columns: Columns


def ingest(config: PromptsConfig, *, seed: int, base_dir: str, section: str = "prompts") -> "PromptSet":
    """Find the files and columns of every source; rows are read by the result's batches(). section: of the recipe.

    Raises ConfigError or DataError for what is missing, empty, unreadable, without the columns, or named twice.
    """
    sources = [_open_source(i, source, section=section, base_dir=base_dir) for i, source in enumerate(config.sources)]
    twice = [name for name, count in Counter(source.name for source in sources).items() if count > 1]
    if twice:
        raise ConfigError(f"{section}.sources: two are called {twice[0]!r}; give each its own `name`")
    return PromptSet(config, sources, seed=seed)


class PromptSet:
    """The prompts of a recipe. counts and rejected() are complete once rows() or batches() has been read to its end."""

    def __init__(self, config: PromptsConfig, sources: Sequence[_Source], *, seed: int):
        self._config, self._sources, self._seed = config, sources, seed
        self.turn_modes: dict[str, TurnMode] = {source.name: source.config.turns for source in sources}
        self._begin()

    def _begin(self) -> None:
        self.counts = {source.name: SourceCounts() for source in self._sources}
        self._rejected = [schemas.FAILURES.empty_table()]
        self._rejected_records: list[schemas.Record] = []

    def batches(self) -> Iterator[pa.Table]:
        """Tables of the PROMPTS schema; each call reads the sources anew."""
        batch: list[schemas.Record] = []
        total = 0
        for row in self.rows():
            batch.append({"id": row.id, "source": row.source, "messages": row.messages})
            total += num_chars(row.messages)
            if len(batch) == _BATCH_ROWS or total > _BATCH_CHARS:
                yield pa.Table.from_pylist(batch, schema=schemas.PROMPTS)
                batch, total = [], 0
        if batch:
            yield pa.Table.from_pylist(batch, schema=schemas.PROMPTS)

    def rejected(self) -> pa.Table:
        """The dropped rows in the FAILURES schema, long text cut; their ids say source, file and line."""
        self._flush_rejected()
        return pa.concat_tables(self._rejected)

    def rows(self) -> Iterator[PromptRow]:
        """The usable rows; each call reads the sources anew. Raises DataError."""
        self._begin()
        seen = Seen()
        for source in self._sources:
            counts = self.counts[source.name]
            picks = self._picks(source, seen) if source.config.sample else None
            for _, row in self._usable(source, seen, only=picks):
                counts.kept += 1
                yield row
            if picks is not None and counts.kept != len(picks):
                raise DataError(f"source {source.name!r}: changed while it was read; start again when it is complete")
            if not counts.kept + counts.dropped["duplicate"]:
                rejected = self.rejected().select(["source", "detail"]).to_pylist()
                first = next((one["detail"] for one in rejected if one["source"] == source.name), "")
                raise DataError(
                    f"source {source.name!r}: no row can be used; dropped by rule: {dict(counts.dropped)}; the first "
                    f"is {first}; mend the rows, or set `columns` to other ones"
                )

    def _picks(self, source: _Source, seen: Seen) -> set[Place]:
        """Where the sampled rows stand. The rows that are not picked do not count as seen."""
        usable = self._usable(source, Seen(before=seen))
        keys = ((seed_for(self._seed, "sample", row.id), place) for place, row in usable)
        picks = {place for _, place in heapq.nsmallest(source.config.sample or 0, keys)}
        counts = self.counts[source.name]
        counts.not_sampled = counts.read - counts.dropped.total() - len(picks)
        return picks

    def _usable(
        self, source: _Source, seen: Seen, *, only: set[Place] | None = None
    ) -> Iterator[tuple[Place, PromptRow]]:
        """Rows that pass every rule, with their places; with `only`, those places, counted before."""
        counts = self.counts[source.name]
        records = read_records(source.files, columns=source.columns.names)
        for place, record in itertools.islice(records, source.config.limit):
            if only is not None and place not in only:
                continue
            counts.read += only is None
            try:
                row, is_repaired = self._row(source, place, record, seen)
            except UnusableError as error:
                self._drop(source, place, error)
            else:
                counts.repaired += is_repaired and only is None
                yield place, row

    def _row(
        self, source: _Source, place: Place, record: dict[str, Any] | BadRecord, seen: Seen
    ) -> tuple[PromptRow, bool]:
        """The row of a record and whether it was repaired. Raises UnusableError."""
        if isinstance(record, BadRecord):
            raise UnusableError(record.rule, record.detail)
        columns = source.columns.of(record)
        given = to_messages(record, columns)
        messages = tuple(Message(role=m["role"], content=UNSTORABLE.sub("\ufffd", m["content"])) for m in given)
        check_messages(messages, max_chars=self._config.max_chars, column=columns.content)
        digest = digest_of(*(part for message in messages for part in (message["role"], message["content"])))
        row_id = given_id(record, columns) or digest.hex()[:20]
        before = seen.find(row_id)
        if before:
            first = self._sources[before.source].files.place(before.place)
            if before.digest != digest:
                raise DataError(
                    f"{source.files.place(place)}: id {row_id!r} has other messages than at {first}; make ids unique, "
                    'or set `columns.id: ""` to make ids from the messages'
                )
            raise UnusableError("duplicate", f"same id and messages as {first}")
        seen.add(row_id, digest, place, source=source.index)
        return PromptRow(id=row_id, source=source.name, messages=messages), messages != given

    def _drop(self, source: _Source, place: Place, error: UnusableError) -> None:
        """Count a dropped row and keep what it held, or stop if the recipe says so."""
        rules = {"duplicate": "duplicates", "over_long": "over_long", "empty": "empty"}
        field = rules.get(error.rule, "bad_rows")
        where = f"{source.files.place(place)}: {error}"
        if getattr(self._config, field) == "error":
            raise DataError(f"{where} ({error.rule}); mend the row, or set prompts.{field} to drop")
        self.counts[source.name].dropped[error.rule] += 1
        messages = [{**m, "content": m["content"][:_SHOWN_CHARS]} for m in error.messages[:20]]
        record = {"id": f"{source.name}:{place[0]}:{place[1]}", "source": source.name, "status": "dropped"}
        record |= {"reason": error.rule, "detail": where, "messages": messages, "proposals": []}
        self._rejected_records.append(record)
        if len(self._rejected_records) == _BATCH_ROWS:
            self._flush_rejected()

    def _flush_rejected(self) -> None:
        self._rejected.append(pa.Table.from_pylist(self._rejected_records, schema=schemas.FAILURES))
        self._rejected_records = []


def _open_source(index: int, config: SourceConfig, *, section: str, base_dir: str) -> _Source:
    where = f"{section}.sources.{index}"
    files = find_files(config.path, field=f"{where}.path", file_format=config.format, base_dir=base_dir)
    names = column_names(files, num_rows=_PEEKED_ROWS)
    columns = find_columns(config.columns, names, where=f"{where}.columns", file=files.paths[0])
    if columns.content == "instruction" and not config.columns.prompt and "input" in names:
        raise ConfigError(
            f"{where}.columns: {files.paths[0]} has `input` beside `instruction`, as Alpaca's data, where the two make "
            "one prompt; put both into one column, or set columns.prompt: instruction to leave `input` out"
        )
    return _Source(
        index=index, name=config.name or source_name(config.path), config=config, files=files, columns=columns
    )
