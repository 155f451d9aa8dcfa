"""How many prompts a recipe has, counted in its own files before anything starts."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from moaa_ray.data.sources import ingest, start_turns
from moaa_ray.errors import ConfigError, DataError
from moaa_ray.settings.prompts import PromptsConfig, SourceConfig


@dataclass(frozen=True, kw_only=True)
class Counted:
    """Prompts of some sources."""

    num_rows: int | None
    """None: not counted."""
    mean_turns: float = 1.0
    """User turns to answer, of a prompt."""
    why_not: str = ""


def count_prompts(config: PromptsConfig, *, seed: int, base_dir: str | Path) -> Counted:
    """Reads the sources as the stage will, where all of them are files of this machine; nothing is fetched."""
    if away := [source.path for source in config.sources if "://" in source.path]:
        return Counted(num_rows=None, why_not=f"{away[0]} is not on this machine; say --rows to plan for its size")
    num_rows = num_turns = 0
    try:
        prompts = ingest(config, seed=seed, base_dir=str(base_dir))
        for row in prompts.rows():
            num_rows += 1
            num_turns += 1 + len(start_turns(row.messages, prompts.turn_modes[row.source])[1])
    except (ConfigError, DataError) as error:  # a plan may be made where the data is not
        return Counted(num_rows=None, why_not=str(error))
    return Counted(num_rows=num_rows, mean_turns=num_turns / max(1, num_rows))


def count_sources(sources: Sequence[SourceConfig], *, seed: int, base_dir: str | Path) -> Counted:
    """The same of sources without other rules, each prompt answered once."""
    found = count_prompts(PromptsConfig(sources=list(sources)), seed=seed, base_dir=base_dir)
    return Counted(num_rows=found.num_rows, why_not=found.why_not)
