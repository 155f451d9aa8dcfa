"""Whether a recipe names the same file to train on and to evaluate with, however the two are written."""

import glob
import os
from collections.abc import Iterator
from os.path import normpath
from pathlib import Path

from moaa_ray.model_folders import resolve_path
from moaa_ray.recipe import PreferenceRecipe, Recipe, Run
from moaa_ray.settings import checks


def leakage_problems(recipe: Run, base_dir: Path, *, own: str) -> list[str]:
    """A line for every dataset that shares a file with an evaluation. Object stores are compared by their URIs alone.

    own: how the path of a folder begins that the run makes itself.
    """
    evaluated = [(field, _files(path, base_dir)) for field, path in _evaluation_files(recipe)]
    problems = []
    for field, path in _training_files(recipe, own):
        files = _files(path, base_dir)
        also = next((other for other, others in evaluated if files & others), "")
        if also:
            problems.append(
                f"{field} = {checks.shown(path)} is also an evaluation file ({also}): training on it would spoil the "
                "evaluation; take it out of one of the two"
            )
    return problems


def unchecked(recipe: Run, base_dir: Path) -> list[str]:
    """The benchmarks whose questions filters.decontaminate does not look for in the rows of the run."""
    compared = {file for path in recipe.filters.decontaminate for file in _files(path, base_dir)}
    named = recipe.evaluate.benchmarks.items()
    return [name for name, each in named if not _files(each.questions, base_dir) <= compared]


def _training_files(recipe: Run, own: str) -> Iterator[tuple[str, str]]:
    if isinstance(recipe, Recipe | PreferenceRecipe) and recipe.prompts is not None:
        yield from ((f"prompts.sources.{i}.path", source.path) for i, source in enumerate(recipe.prompts.sources))
    yield from ((f"sample.sources.{i}.path", source.path) for i, source in enumerate(recipe.sample.sources))
    for stage, config in (("sft", recipe.sft), ("dpo", recipe.dpo)):
        paths = ((f"{stage}.data.{i}.path", part.path) for i, part in enumerate(config.data))
        yield from ((field, path) for field, path in paths if not path.startswith(own))


def _evaluation_files(recipe: Run) -> Iterator[tuple[str, str]]:
    yield from ((f"evaluate.{name}.questions", each.questions) for name, each in recipe.evaluate.benchmarks.items())
    yield from ((f"filters.decontaminate.{i}", path) for i, path in enumerate(recipe.filters.decontaminate))


def _files(path: str, base_dir: Path) -> set[str]:
    """The files that a path, folder or pattern names here, links followed; of a URI itself."""
    place = resolve_path(base_dir, path)
    if "://" in place:
        return {place.rstrip("/")}
    found = [place] if os.path.exists(place) else glob.glob(place, recursive=True)
    inner = [os.path.join(folder, name) for one in found for folder, _, names in os.walk(one) for name in names]
    return {os.path.realpath(one) for one in [*found, *inner] if os.path.isfile(one)} or {normpath(place)}
