"""What every stage that asks models has: blocks, limits, phases."""

from typing import Annotated, Literal

from pydantic import Field

from moaa_ray.settings.models import Config, Execution


class InferenceConfig(Config):
    """How a stage that asks models runs."""

    block_rows: Annotated[Annotated[int, Field(ge=1)] | Literal["auto"], Execution] = "auto"
    """Rows that are scheduled, committed and lost together; auto: from the expected seconds per row."""
    max_failed_fraction: Annotated[float, Execution] = Field(default=0.05, ge=0, le=1)
    """The run stops with an error when a larger part of its rows has failed."""
    phases: Annotated[Annotated[int, Field(ge=1)] | Literal["auto"], Execution] = "auto"
    """Into how many phases the line of pools is cut; auto: as few as fit on the cluster."""
    shard_rows: int = Field(default=10_000, ge=1)
    """Rows per published Parquet file."""
    warn_after_s: Annotated[float, Execution] = Field(default=60.0, gt=0)
    """Say which pool waits on what when nothing has moved for this long."""
    hang_after_s: Annotated[float, Execution] = Field(default=60.0, gt=0)
    """An engine with open requests that answers none for this long (or 3 x its 99th percentile) is restarted."""
    restart_after_s: Annotated[float, Execution] = Field(default=600.0, gt=0)
    """A line in which nothing moves for this long, with no engine starting, is started again from what is committed."""
