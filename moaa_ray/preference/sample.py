"""The sample stage: several completions of every prompt from the student itself; RUN/candidates.

On-policy candidates are what the preferences are about: MoAA section 4.1 takes five per prompt from the SFT model at
temperature 0.8, and finds candidates of the mixture itself worse (appendix J).
"""

import random
from collections.abc import Iterator

import pyarrow as pa
import pyarrow.compute as pc
from rich.console import Console

from moaa_ray.core.candidates import CANDIDATES
from moaa_ray.core.seeds import seed_for
from moaa_ray.data import publish, schemas
from moaa_ray.data.manifest import MANIFEST
from moaa_ray.data.sources import ingest
from moaa_ray.data.store import Store, open_store
from moaa_ray.errors import ConfigError, DataError
from moaa_ray.fingerprint import section_fingerprint
from moaa_ray.generation import todo
from moaa_ray.generation.summary import Summary
from moaa_ray.lines.sample import STAGE, plan_input, sample_work
from moaa_ray.loading import Loaded
from moaa_ray.preference.stage import RowStage, put_through
from moaa_ray.recipe import PreferenceRecipe
from moaa_ray.run_folders import student_digest, with_student
from moaa_ray.run_record import join_run
from moaa_ray.settings.prompts import PromptsConfig
from moaa_ray.types import Completion, Failure, Row


def sample(
    loaded: Loaded[PreferenceRecipe],
    *,
    student: str = "",
    prompts_from: str = "",
    round_number: int = 1,
    restart: bool = False,
    console: Console | None = None,
) -> Summary:
    """Run, or go on with, the sample stage.

    Args: student, the folder of the model to sample from, instead of the recipe's; prompts_from, the run directory
    whose sft/ holds the prompts, instead of this one; round_number, which part of the prompts is drawn; restart
    forgets what was sampled before. Raises as `generate` does.
    """
    loaded = with_student(loaded, student)
    digest = student_digest(loaded)
    store = open_store(loaded.run_dir)
    join_run(store, loaded)
    rows, rejected = rows_to_sample(loaded, prompts_from or loaded.run_dir, round_number)
    if not rows:
        raise DataError(f"{STAGE}: no prompt to sample for; look at sample.sources, or at {loaded.run_dir}/sft")
    stage = RowStage(
        work=sample_work(loaded.recipe),
        plan=plan_input(loaded.recipe, base_dir=loaded.base_dir),
        made_with=_fingerprint(loaded, digest),
        restart=restart,
        restart_command="moaa sample --restart",
        folder=CANDIDATES,
        schema=schemas.CANDIDATES,
        usable=_usable,
        rejected=rejected,
        facts={"student": digest},
    )
    return put_through(stage, store, rows, console=console)


def rows_to_sample(loaded: Loaded[PreferenceRecipe], run_dir: str, round_number: int) -> tuple[list[Row], pa.Table]:
    """The prompts of this round, in order: all, or so many drawn by the seed, others in every round.

    Also returns the rows of the sources that no prompt can be read from, in the FAILURES schema.
    """
    config, seed = loaded.recipe.sample, loaded.recipe.seed
    rejected = schemas.FAILURES.empty_table()
    if config.sources:
        rows, rejected = _rows_of_sources(loaded)
    else:
        rows = list(_rows_of_sft(open_store(run_dir)))
    if config.from_sources:
        known = sorted({row.source for row in rows})
        if unknown := sorted(set(config.from_sources) - set(known)):
            raise ConfigError(
                f"sample.from_sources = {unknown[0]!r}: no row of that source; there are {', '.join(known)}"
            )
        rows = [row for row in rows if row.source in config.from_sources]
        rejected = rejected.filter(pc.field("source").isin(config.from_sources))
    if config.rows is None or config.rows >= len(rows):
        return rows, rejected
    order = list(range(len(rows)))
    random.Random(seed_for(seed, "sample rows")).shuffle(order)
    first = (round_number - 1) * config.rows
    drawn = {order[i % len(order)] for i in range(first, first + config.rows)}
    return [row for i, row in enumerate(rows) if i in drawn], rejected


def _rows_of_sft(store: Store) -> Iterator[Row]:
    """The conversations that the student was tuned on, each without its last answer."""
    if not store.exists(f"sft/{MANIFEST}"):
        raise ConfigError(
            f"{store.uri}/sft: no published rows there to take prompts from; run `moaa generate` first, or set "
            "sample.sources"
        )
    for table in publish.read_batches(store, "sft", batch_rows=todo.SEED_ROWS):
        for record in table.select(["id", "source", "messages"]).to_pylist():
            *context, _ = schemas.messages_from(record["messages"])
            yield Row(id=record["id"], source=record["source"], messages=tuple(context))


def _rows_of_sources(loaded: Loaded[PreferenceRecipe]) -> tuple[list[Row], pa.Table]:
    """The last user turn of every prompt of sample.sources, with the history that the dataset has; and what is none."""
    config = PromptsConfig(sources=loaded.recipe.sample.sources)
    read = ingest(config, seed=loaded.recipe.seed, base_dir=str(loaded.base_dir), section="sample")
    modes = dict.fromkeys(read.turn_modes, "last")
    rows = list(todo.first_rows(read.batches(), modes))  # pyright: ignore[reportArgumentType]: "last" is a TurnMode
    return rows, read.rejected()


def _usable(table: pa.Table) -> tuple[pa.Table, dict[int, str]]:
    records = [candidate_record(schemas.row_from(record)) for record in table.to_pylist()]
    return pa.Table.from_pylist(records, schema=schemas.CANDIDATES), {}


def candidate_record(row: Row) -> schemas.Record:
    """The CANDIDATES record of a row with candidates."""
    return {
        "id": row.id,
        "source": row.source,
        "messages": [dict(message) for message in row.messages],
        "candidates": [
            {
                "completion": answer.text,
                "finish_reason": answer.finish_reason,
                "prompt_tokens": answer.prompt_tokens,
                "completion_tokens": answer.completion_tokens,
                "error": "",
            }
            if isinstance(answer, Completion)
            else {**dict.fromkeys(("completion", "finish_reason"), ""), "error": answer.reason}
            for answer in row.answers[CANDIDATES]
        ],
        "flags": list(row.flags),
    }


def row_of_candidates(record: schemas.Record) -> Row:
    """The row that judging begins with, of a CANDIDATES record."""
    answers = tuple(
        Failure(reason=one["error"], retryable=False)
        if one["error"]
        else Completion(
            text=one["completion"],
            finish_reason=one["finish_reason"],
            prompt_tokens=one["prompt_tokens"] or 0,
            completion_tokens=one["completion_tokens"] or 0,
        )
        for one in record["candidates"]
    )
    return Row(
        id=record["id"],
        source=record["source"],
        messages=schemas.messages_from(record["messages"]),
        answers={CANDIDATES: answers},
        flags=tuple(record["flags"]),
    )


def _fingerprint(loaded: Loaded[PreferenceRecipe], digest: str) -> dict[str, str]:
    recipe = loaded.recipe
    model = section_fingerprint(recipe.models[recipe.sample.model], without=("model",))
    return {
        **{f"sample.{name}": text for name, text in section_fingerprint(recipe.sample, without=("sources",)).items()},
        **{f"models.{recipe.sample.model}.{name}": text for name, text in model.items()},
        "student": digest,
        "seed": str(recipe.seed),
    }
