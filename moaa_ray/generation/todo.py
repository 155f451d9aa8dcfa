"""What is left to do: which rows stand where, by the committed files, and the blocks they go through next.

A part of the work folder is called "<turn>.<passes done>", so a row's place does not depend on how
the line was cut into phases when it was committed.
"""

from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import pyarrow as pa
import pyarrow.compute as pc

from moaa_ray.core.admission import WorkBlock
from moaa_ray.core.passes import StageWork
from moaa_ray.core.row_refs import RowRef, RowRefs
from moaa_ray.data import commit, schemas
from moaa_ray.data.conversations import TurnMode, digest_of, start_turns
from moaa_ray.data.seen import Seen
from moaa_ray.data.store import Store
from moaa_ray.errors import DataError
from moaa_ray.types import Completion, Row

SEED_ROWS = 2048
"""Rows per file of new prompts."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Step:
    """What a row needs next: where its newest record lies, the turn it is at, and the first pass with work for it."""

    ref: RowRef
    turn: int
    first_pass: int


@dataclass(frozen=True, kw_only=True)
class Prompts:
    """The prompts of a run: ids in order, how many have a user turn t (from 1 on), and those dropped while reading."""

    order: pa.LargeStringArray
    later_turns: dict[int, int]
    rejected: pa.Table = field(default_factory=schemas.FAILURES.empty_table)


def seed_rows(
    store: Store, epoch: commit.Epoch, work: StageWork, rows: Iterable[Row], *, known: commit.Statuses
) -> Prompts:
    """Go through the rows as they are when nothing is asked yet; those without a record are committed as open ones."""
    is_known = set(known)
    order = [pa.array([], pa.large_string())]
    ids: list[str] = []
    later_turns: Counter[int] = Counter()
    new: list[schemas.Record] = []
    num_new = 0

    def commit_new() -> None:
        block = pa.Table.from_pylist(new, schema=schemas.work_schema(work.columns))
        commit.commit_block(store, work.stage, "0.0", epoch.number, f"new-{num_new:09d}", block)

    for row in rows:
        ids.append(row.id)
        if len(ids) == SEED_ROWS:
            order, ids = [*order, pa.array(ids, pa.large_string())], []
        later_turns.update(range(1, len(row.later) + 1))
        if row.id not in is_known:
            new.append(schemas.row_record(row, pass_names=work.columns))
        if len(new) == SEED_ROWS:
            commit_new()
            num_new, new = num_new + len(new), []
    if new:
        commit_new()
    order.append(pa.array(ids, pa.large_string()))
    return Prompts(order=pa.concat_arrays(order), later_turns=dict(later_turns))


def first_rows(tables: Iterable[pa.Table], modes: Mapping[str, TurnMode]) -> Iterator[Row]:
    """The rows of published prompts, at the beginning of their first turn."""
    return (_first_row(record, modes) for table in tables for record in table.to_pylist())


def unchanged(
    batches: Iterable[pa.Table], store: Store, files: Iterable[commit.BlockFile], modes: Mapping[str, TurnMode]
) -> Iterator[pa.Table]:
    """The prompts as they are. Raises DataError at one whose id this run knows with other messages.

    A row is what was made of one prompt, so an id stands for one text as long as the run lives, also when
    the prompt is taken away and comes back. Args: files, all committed blocks.
    """
    begun = digests_at_begin(store, files)
    is_new = len(begun) == 0
    for table in batches:
        for record in () if is_new else table.to_pylist():
            row = _first_row(record, modes)
            if (before := begun.find(row.id)) and before.digest != digest_of_row(row):
                text = " ".join(row.messages[-1]["content"].split())[:80]
                raise DataError(
                    f"prompt {row.id!r} of source {row.source!r} has other messages than when this run began with it, "
                    f"now {text!r}; a row stays what it was asked: give the new text an id of its own (columns.id: "
                    '"" makes ids from the messages), put the old text back, or give another run_dir'
                )
        yield table


def same_rows(
    store: Store, epoch: commit.Epoch, work: StageWork, rows: Iterable[Row], *, restart_command: str
) -> Iterator[Row]:
    """Rows of an earlier stage as they are. Raises DataError at one that this stage has begun with in another form."""
    begun = digests_at_begin(store, commit.committed(store, work.stage, epoch), inputs=work.inputs)
    for row in rows:
        if (before := begun.find(row.id)) and before.digest != digest_of_row(row):
            raise DataError(
                f"row {row.id!r} has other messages or candidates than when the stage {work.stage} began with it: the "
                f"stage before has been run again; begin this one anew too, with `{restart_command}`"
            )
        yield row


def digests_at_begin(store: Store, files: Iterable[commit.BlockFile], *, inputs: Sequence[str] = ()) -> Seen:
    """digest_of_row of every row when it was new, by id; inputs: the answers that rows brought along."""
    columns = ["id", "messages", "later", *(schemas.ANSWER_PREFIX + name for name in inputs)]
    digests = Seen()
    for file in files:
        if (file.round, file.phase) == (0, 0):
            for record in commit.read_block(store, file.path, columns=columns).to_pylist():
                begun = Row(
                    id=record["id"],
                    source="",
                    messages=schemas.messages_from(record["messages"]),
                    later=tuple(record["later"]),
                    answers={
                        name: tuple(schemas.answer_from(one) for one in record[schemas.ANSWER_PREFIX + name] or ())
                        for name in inputs
                    },
                )
                digests.add(begun.id, digest_of_row(begun))
    return digests


def digest_of_row(row: Row) -> bytes:
    """What a row is to be asked: its conversation, the turns to come, and the answers that it brings along."""
    said = (part for message in row.messages for part in (message["role"], message["content"]))
    brought = (
        part
        for name, answers in row.answers.items()
        for answer in answers
        for part in (name, answer.text if isinstance(answer, Completion) else "")
    )
    return digest_of(*said, "later", *row.later, *brought)


def _first_row(record: dict, modes: Mapping[str, TurnMode]) -> Row:
    context, later = start_turns(schemas.messages_from(record["messages"]), modes.get(record["source"], "all"))
    return Row(id=record["id"], source=record["source"], messages=context, later=later)


def restart_turns(store: Store, epoch: commit.Epoch, statuses: commit.Statuses, work: StageWork) -> None:
    """Commit every row that is under way anew, at the beginning of its turn, with what the passes have answered so far.

    For a run that goes on with another mixture: how many passes a row has been through says nothing there.
    """
    schema = schemas.work_schema(work.columns)
    refs = RowRefs((file.path, row) for _, (file, row, status) in statuses.items() if status == "open" and file.phase)
    for i, table in enumerate(commit.read_rows(store, refs, batch_rows=SEED_ROWS, schema=schema)):
        for turn in sorted(set(table.column("turn").to_pylist())):
            rows = table.filter(pc.field("turn") == turn)
            commit.commit_block(store, work.stage, f"{turn}.0", epoch.number, f"again-{i:06d}", rows)


class Steps:
    """What rows need next, 16 bytes a row."""

    def __init__(self) -> None:
        self.refs = RowRefs()
        self._turns, self._first_passes = array("i"), array("i")

    def append(self, step: Step) -> None:
        """Add what the next row needs."""
        self.refs.append(step.ref)
        self._turns.append(step.turn)
        self._first_passes.append(step.first_pass)

    def move(self, place: int, *, turn: int, first_pass: int) -> None:
        """The row at this place goes on elsewhere."""
        self._turns[place], self._first_passes[place] = turn, first_pass

    def __len__(self) -> int:
        return len(self.refs)

    def __iter__(self) -> Iterator[Step]:
        columns = zip(self.refs, self._turns, self._first_passes, strict=True)
        return (Step(ref=ref, turn=turn, first_pass=first_pass) for ref, turn, first_pass in columns)


def next_steps(store: Store, statuses: commit.Statuses, order: Sequence[str] | pa.Array, work: StageWork) -> Steps:
    """For every row that is not finished what it needs next, in the order given.

    A failed row starts at the first pass that still has something to ask of it, so that completions
    which are there are not asked for again.
    """
    steps, failed, places = Steps(), RowRefs(), array("i")
    for newest in statuses.newest(order):
        if newest is None or newest[2] not in ("open", "failed"):
            continue
        file, row, status = newest
        is_closed = status == "open" and file.phase == len(work.passes)
        turn, first_pass = (file.round + 1, 0) if is_closed else (file.round, file.phase)
        if status == "failed":
            failed.append((file.path, row))
            places.append(len(steps))
        steps.append(Step(ref=(file.path, row), turn=turn, first_pass=first_pass))
    records = (record for table in commit.read_rows(store, failed, batch_rows=1024) for record in table.to_pylist())
    for place, record in zip(places, records, strict=True):
        row = work.reopen(schemas.row_from(record))
        steps.move(place, turn=row.turn, first_pass=min(work.first_open_pass(row), len(work.passes) - 1))
    return steps


def blocks_for(steps: Iterable[Step], *, block_rows: int) -> list[WorkBlock]:
    """Blocks of rows of one turn each, in the order given."""
    by_turn: dict[int, RowRefs] = {}
    for step in steps:
        by_turn.setdefault(step.turn, RowRefs()).append(step.ref)
    blocks: list[WorkBlock] = []
    for turn, refs in sorted(by_turn.items()):
        for start in range(0, len(refs), block_rows):
            key = f"b{len(blocks):06d}"
            blocks.append(WorkBlock(key=key, turn=turn, refs=refs[start : start + block_rows]))
    return blocks
