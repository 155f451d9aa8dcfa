"""What every teacher of a mixture has answered, out of the proposals that are stored with the rows of RUN/sft.

A teacher is a model that has answered the prompt itself: a proposer of the first layer, or the aggregator where the
recipe has stored its direct answer (mixture.baselines: true). Its name is the slot's, with .1, .2, ... where the slot
has several samples; the aggregator's is `direct`.

In a row of several turns a teacher has answered every turn, each on the history that the mixture wrote. Its own
conversation puts its answers in the places of the mixture's, so that no text of the mixture is trained on; a later
answer can then refer to an earlier one that is not there.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from moaa_ray.data import publish
from moaa_ray.data.manifest import MANIFEST
from moaa_ray.data.schema_check import check_schema
from moaa_ray.data.schemas import SFT, Record, messages_from
from moaa_ray.data.store import Store
from moaa_ray.errors import ConfigError, DataError
from moaa_ray.generation.todo import SEED_ROWS
from moaa_ray.lines.mixture import DIRECT
from moaa_ray.recipe import PreferenceRecipe
from moaa_ray.types import CUT_SHORT, Message


@dataclass(frozen=True, kw_only=True)
class Teacher:
    """Who has answered: its name here, and what the proposals call it."""

    name: str
    proposer: str


@dataclass(frozen=True, kw_only=True)
class Answered:
    """A row of RUN/sft, and what its teachers have answered."""

    record: Record
    places: tuple[int, ...]
    """Where in the messages the answers stand that the mixture wrote, turn by turn."""
    proposals: Mapping[str, tuple[Record, ...]]
    """By teacher, turn by turn; only of those who have answered every turn."""
    lacking: Mapping[str, str]
    """By teacher that has not, why."""

    @property
    def contexts(self) -> list[tuple[Message, ...]]:
        """What every turn was answered on."""
        messages = messages_from(self.record["messages"])
        return [messages[:place] for place in self.places]


def teachers_of(recipe: PreferenceRecipe) -> tuple[Teacher, ...]:
    """The teachers in the order of their proposals. Raises ConfigError where the recipe has none, or two of a name."""
    if recipe.mixture is None:
        raise ConfigError(
            "mixture: the recipe has none, so nothing says whose answers RUN/sft holds; take the recipe that `moaa "
            "generate` ran with"
        )
    teachers = []
    for slot in recipe.mixture.stacked()[0]:
        numbers = range(1, slot.num_samples + 1) if slot.num_samples > 1 else [0]
        teachers += [Teacher(name=f"{slot.label}.{n}" if n else slot.label, proposer=slot.label) for n in numbers]
    if recipe.mixture.baselines:
        teachers.append(Teacher(name=DIRECT, proposer=recipe.mixture.aggregator.label))
    twice = [name for name, count in Counter(teacher.name for teacher in teachers).items() if count > 1]
    if twice:
        raise ConfigError(f"two teachers would be called {twice[0]!r}; give their slots of the mixture other names")
    return tuple(teachers)


def check_rows(run: Store, teachers: Sequence[Teacher]) -> None:
    """Raises where there are no rows, or none of the first ones was made by the recipe's mixture."""
    if not run.exists(f"sft/{MANIFEST}"):
        raise ConfigError(f"{run.uri}/sft: no published rows there; run `moaa generate` first")
    first = [found for found, _ in zip(rows_of(run, teachers), range(SEED_ROWS), strict=False)]
    if first and not any(row for _, row in first):
        record = first[0][0]
        held = [p["proposer"] for p in record["proposals"] if p["layer"] == 0 and p["turn"] == 0]
        raise DataError(
            f"{run.uri}/sft: row {record['id']!r} holds answers of {', '.join(held) or 'nobody'}, and the recipe's "
            f"mixture has {', '.join(f'{t.proposer} ({t.name})' for t in teachers)}; take the recipe that the rows "
            "were made with"
        )


def rows_of(run: Store, teachers: Sequence[Teacher]) -> Iterator[tuple[Record, Answered | None]]:
    """Every row of RUN/sft, in order, with what its teachers have answered; see `answered`."""
    for table in publish.read_batches(run, "sft", batch_rows=SEED_ROWS):
        check_schema(table, SFT, where=f"{run.uri}/sft")
        yield from ((record, answered(record, teachers)) for record in table.to_pylist())


def answered(record: Record, teachers: Sequence[Teacher]) -> Answered | None:
    """The row with what its teachers have answered; None where another mixture has made it."""
    own = [p for p in record["proposals"] if p["layer"] == 0]
    num_turns = 1 + max((p["turn"] for p in own), default=-1)
    turns = [[p for p in own if p["turn"] == turn] for turn in range(num_turns)]
    wanted = [teacher.proposer for teacher in teachers]
    places = [i for i, message in enumerate(record["messages"]) if message["role"] == "assistant"]
    if not turns or len(places) < num_turns or any([p["proposer"] for p in turn] != wanted for turn in turns):
        return None
    proposals: dict[str, tuple[Record, ...]] = {}
    lacking: dict[str, str] = {}
    for number, teacher in enumerate(teachers):
        mine = tuple(turn[number] for turn in turns)
        reason = next((why for proposal in mine if (why := _unusable(proposal))), "")
        if reason:
            lacking[teacher.name] = reason
        else:
            proposals[teacher.name] = mine
    return Answered(record=record, places=tuple(places[-num_turns:]), proposals=proposals, lacking=lacking)


def _unusable(proposal: Record) -> str:
    return proposal["error"] or ("" if proposal["completion"].strip() else "empty")


def conversation(row: Answered, teacher: str, *, row_id: str) -> Record:
    """The SFT record of one teacher's own conversation.

    Flags speak of its answers alone: "truncated" of the last one, "truncated:<user turn>" of one before.
    """
    messages = [dict(message) for message in row.record["messages"]]
    flags = []
    for place, proposal in zip(row.places, row.proposals[teacher], strict=True):
        messages[place]["content"] = proposal["completion"]
        if proposal["finish_reason"] in CUT_SHORT:
            turn = sum(message["role"] == "user" for message in messages[:place]) - 1
            flags.append("truncated" if place == row.places[-1] else f"truncated:{turn}")
    return {
        "id": row_id,
        "source": row.record["source"],
        "messages": messages,
        "proposals": list(row.proposals[teacher]),
        "flags": flags,
    }
