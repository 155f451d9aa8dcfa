"""The `prompts` section of a recipe: where prompts come from, and what is done with odd ones."""

from typing import Annotated, Literal

from pydantic import Field

from moaa_ray.settings.models import Config, Execution


class ColumnsConfig(Config):
    """Which columns of a source hold what. Unset columns are found by their usual names."""

    id: str | None = None
    """Column with a unique id; without one, ids are made from the content."""
    messages: str | None = None
    """Column with a list of {role, content}."""
    prompt: str | None = None
    """Column with one user prompt as text."""
    turns: str | None = None
    """Column with a list of user turns as text."""
    system: str | None = None
    """Column with a system prompt as text, beside prompt or turns."""


class SourceConfig(Config):
    """One place prompts come from."""

    path: Annotated[str, Execution]
    """A file, folder or glob pattern, local or any fsspec URI; local paths are relative to the recipe's folder."""
    name: str = ""
    """What the rows' `source` column says; empty: the file's or folder's name."""
    format: Annotated[Literal["auto", "jsonl", "csv", "parquet", "hf"], Execution] = "auto"
    """File format; auto goes by the suffix, and a folder written by `datasets` is hf."""
    columns: ColumnsConfig = ColumnsConfig()
    limit: Annotated[int | None, Execution] = Field(default=None, ge=1)
    """Take only the first so many rows."""
    sample: Annotated[int | None, Execution] = Field(default=None, ge=1)
    """Take so many rows at random, by the run's seed; after limit."""
    turns: Literal["all", "last"] = "all"
    """all: answer every user turn anew, one after the other; last: keep the dataset's history, answer the last turn."""


class PromptsConfig(Config):
    """Where prompts come from and what is done with odd ones; everything dropped is counted by rule."""

    sources: list[SourceConfig] = Field(min_length=1)
    max_chars: int = Field(default=100_000, ge=1)
    """Prompts with more characters than this, over all their messages, are over-long."""
    over_long: Annotated[Literal["drop", "error"], Execution] = "drop"
    empty: Annotated[Literal["drop", "error"], Execution] = "drop"
    duplicates: Annotated[Literal["drop", "error"], Execution] = "drop"
    """Rows with the same id and the same content; the same id with different content is always an error."""
    bad_rows: Annotated[Literal["drop", "error"], Execution] = "drop"
    """Rows that no prompt can be read from: broken lines, wrong types, roles or ids. error: the first one stops."""
