"""The `filters` section: nothing is filtered by default, and values that would drop every row are refused."""

import pytest
from pydantic import ValidationError

from moaa_ray.settings.filters import FiltersConfig


def test_by_default_nothing_is_filtered():
    assert FiltersConfig().model_dump(exclude_defaults=True) == {}
    assert not any(FiltersConfig().model_dump().values())


def test_a_completion_cannot_have_to_be_longer_than_it_may():
    with pytest.raises(ValidationError, match=r"min_chars = 20 is above max_chars = 10.*every row.*swap them"):
        FiltersConfig(min_chars=20, max_chars=10)
    assert FiltersConfig(min_chars=10, max_chars=10).max_chars == 10


@pytest.mark.parametrize("threshold", [0.29, 1.01, -1, float("nan")])
def test_near_duplicates_is_a_similarity_from_three_tenths_to_one(threshold):
    with pytest.raises(ValidationError, match="near_duplicates"):
        FiltersConfig(near_duplicates=threshold)


@pytest.mark.parametrize("field", ["min_chars", "max_chars"])
def test_lengths_are_at_least_one(field):
    with pytest.raises(ValidationError, match=field):
        FiltersConfig.model_validate({field: 0})


def test_an_evaluation_file_has_a_name_and_is_named_once():
    with pytest.raises(ValidationError, match=r"decontaminate\.1 is empty; name an evaluation file"):
        FiltersConfig(decontaminate=["a.jsonl", " "])
    with pytest.raises(ValidationError, match=r"decontaminate names 'a\.jsonl' twice; take one of them out"):
        FiltersConfig(decontaminate=["a.jsonl", "b.jsonl", "a.jsonl"])


def test_unknown_filters_are_refused():
    with pytest.raises(ValidationError, match="toxicity"):
        FiltersConfig.model_validate({"toxicity": True})
