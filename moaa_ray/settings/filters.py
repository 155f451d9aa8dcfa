"""The `filters` section of a recipe: which rows of a stage are left out when it is published.

Filters run at publishing, over all finished rows in the prompts' order. Nothing is deleted: a dropped
row is counted by its rule, and is back at the next publishing without that filter.
"""

from typing import Self

from pydantic import Field, field_validator, model_validator

from moaa_ray.settings.models import Config


class FiltersConfig(Config):
    """Which rows are left out; by default none. `completion` is the row's last answer, of a pair the chosen one."""

    truncated: bool = False
    """Drop rows whose completion ended at max_tokens, or by an endpoint's filter."""
    refusals: bool = False
    """Drop rows one of whose answers opens by declining the request, in English and nine other common languages."""
    min_chars: int | None = Field(default=None, ge=1)
    """Drop rows whose completion has fewer characters."""
    max_chars: int | None = Field(default=None, ge=1)
    """Drop rows whose completion has more characters."""
    exact_duplicates: bool = False
    """Drop rows with the prompt or the completion of an earlier row, but for case and blanks; the first one stays.
    Not for data whose completions are a word or a label."""
    near_duplicates: float | None = Field(default=None, ge=0.3, le=1)
    """Drop rows of which so large a part of the 5-word runs, prompt and completion together, is also an earlier
    row's (Jaccard similarity, e.g. 0.8); needs pip install "moaa_ray[filters]"."""
    decontaminate: list[str] = Field(default_factory=list)
    """Evaluation files, as under prompts.sources.path, whose prompts must not be in the training data. Drop rows
    that share 13 words in a row with one, or whose prompt is, word for word, one of fewer words than that."""
    leaks: bool = False
    """Drop rows one of whose answers mentions the other models' answers where the prompt does not; English only."""

    @model_validator(mode="after")
    def _some_length_is_left(self) -> Self:
        if self.min_chars is not None and self.max_chars is not None and self.min_chars > self.max_chars:
            raise ValueError(
                f"min_chars = {self.min_chars} is above max_chars = {self.max_chars}, so every row would be dropped; "
                "swap them, or leave one out"
            )
        return self

    @field_validator("decontaminate")
    @classmethod
    def _named_once(cls, paths: list[str]) -> list[str]:
        for i, path in enumerate(paths):
            if not path.strip():
                raise ValueError(f"decontaminate.{i} is empty; name an evaluation file, or take the entry out")
            if path in paths[:i]:
                raise ValueError(f"decontaminate names {path!r} twice; take one of them out")
        return paths
