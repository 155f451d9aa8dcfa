"""How many prompts a recipe has, and rows to train on, counted in its own files before anything starts."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from moaa_ray.data.chunks import find_chunks
from moaa_ray.data.locations import find_files
from moaa_ray.data.sources import ingest, start_turns
from moaa_ray.errors import ConfigError, DataError
from moaa_ray.loading import RUN
from moaa_ray.settings.prompts import PromptsConfig, SourceConfig
from moaa_ray.settings.training import DpoConfig, SftConfig, TrainingData

_CHUNK_ROWS = 1_000_000


@dataclass(frozen=True, kw_only=True)
class Counted:
    """Prompts of some sources."""

    num_rows: int | None
    """None: not counted."""
    mean_turns: float = 1.0
    """User turns to answer, of a prompt."""
    why_not: str = ""


def count_prompts(config: PromptsConfig, *, seed: int, base_dir: str | Path, section: str = "prompts") -> Counted:
    """Reads the sources as the stage will, where all of them are files of this machine; nothing is fetched.

    Raises ConfigError or DataError as the stage will, where one is not there or cannot be read.
    """
    if away := [source.path for source in config.sources if "://" in source.path]:
        return Counted(num_rows=None, why_not=f"{away[0]} is not on this machine; say --rows to plan for its size")
    num_rows = num_turns = 0
    prompts = ingest(config, seed=seed, base_dir=str(base_dir), section=section)
    for row in prompts.rows():
        num_rows += 1
        num_turns += 1 + len(start_turns(row.messages, prompts.turn_modes[row.source])[1])
    return Counted(num_rows=num_rows, mean_turns=num_turns / max(1, num_rows))


def count_sources(sources: Sequence[SourceConfig], *, seed: int, base_dir: str | Path) -> Counted:
    """The same of sample.sources, which have no other rules, each prompt answered once."""
    found = count_prompts(PromptsConfig(sources=list(sources)), seed=seed, base_dir=base_dir, section="sample")
    return Counted(num_rows=found.num_rows, why_not=found.why_not)


def count_training(
    config: SftConfig | DpoConfig, *, section: str, num_of_run: int | None, base_dir: str | Path
) -> Counted:
    """Rows that an epoch of a training stage takes in the mean, of all its datasets.

    num_of_run: how many the stages before leave in the run, as far as known; it stands for each dataset RUN/... too.
    """
    total = 0.0
    for i, part in enumerate(config.data):
        counted = _rows_in(part, field=f"{section}.data.{i}.path", num_of_run=num_of_run, base_dir=base_dir)
        if counted.num_rows is None:
            return counted
        num = counted.num_rows if part.rows is None else min(part.rows, counted.num_rows)
        total += num * part_of_epoch(part, config.epochs)
    return Counted(num_rows=max(1, round(total)))


def part_of_epoch(part: TrainingData, num_epochs: int) -> float:
    """What part of a dataset an epoch takes, in the mean over all epochs; above 1 where it takes rows again."""
    return part.weight * min(1.0, (part.epochs or num_epochs) / num_epochs)


def _rows_in(part: TrainingData, *, field: str, num_of_run: int | None, base_dir: str | Path) -> Counted:
    if part.path.startswith(RUN):
        return Counted(num_rows=num_of_run)
    if "://" in part.path:
        return Counted(num_rows=None, why_not=f"{part.path} is not on this machine")
    try:
        files = find_files(part.path, field=field, base_dir=str(base_dir))
        chunks = find_chunks(files, chunk_rows=_CHUNK_ROWS)
    except (ConfigError, DataError) as error:  # a plan may be made where the data is not
        return Counted(num_rows=None, why_not=str(error))
    return Counted(num_rows=sum(chunk.stop - chunk.start for chunk in chunks))
