"""The fingerprint of a recipe: what decides rows, field by field.

A run keeps it, and a later start of the same run is told by it whether it would make other rows. How
the recipe is written as text stands in settings/yaml_text.py.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence

from moaa_ray.recipe import Recipe
from moaa_ray.settings.models import Config, Execution, ExecutionKeys, Model
from moaa_ray.settings.prompts import SourceConfig

_SOURCES = "prompts.sources["


def rows_fingerprint(recipe: Recipe, extra: Mapping[str, str]) -> dict[str, str]:
    """Dotted field -> JSON text, for every field that decides what is in a row, plus `extra` (prompt versions).

    Left out is what is marked Execution or ExecutionKeys. Prompts may be added, taken away and reordered
    between runs, as each row depends on its own prompt alone: so sources stand under their path, not their
    position, and compare() lets whole ones come and go. How a source is read (columns, turns, name) decides rows and
    may not change. Sources of one path that are read in several ways give the sorted list of the ways.
    """
    ways: dict[str, set[str]] = {}
    for source in recipe.prompts.sources:
        for field, text in _fields(source, f"{_SOURCES}{source.path}]"):
            ways.setdefault(field, set()).add(text)
    fields = {
        **dict(_fields(recipe.model_copy(update={"models": mixture_models(recipe)}), "")),
        **{field: texts.pop() if len(texts) == 1 else f"[{', '.join(sorted(texts))}]" for field, texts in ways.items()},
    }
    if clash := fields.keys() & extra.keys():
        raise ValueError(f"extra names a field of the recipe: {sorted(clash)}; call it something else")
    return fields | {name: _json(text) for name, text in extra.items()}


def mixture_models(recipe: Recipe) -> dict[str, Model]:
    """The models of the mixture; others (judges, the student, those evaluated or unused) make no rows."""
    slots = [*(slot for layer in recipe.mixture.stacked() for slot in layer), recipe.mixture.aggregator]
    names = {slot.model for slot in slots}
    return {name: model for name, model in recipe.models.items() if name in names}


def section_fingerprint(section: Config, *, without: Sequence[str] = ()) -> dict[str, str]:
    """Dotted field -> JSON text of one section, without what is marked Execution and without the fields named."""
    return {path: text for path, text in _fields(section, "") if path.split(".")[0] not in without}


def compare(old: Mapping[str, str], new: Mapping[str, str]) -> list[str]:
    """What changed, one line per field; empty when a run with fingerprint `old` may go on with `new`."""
    lines = []
    come_and_gone = _sources(old) ^ _sources(new)
    models = tuple(_models(old) ^ _models(new))
    for field in [*old, *(field for field in new if field not in old)]:
        if _source_of(field) in come_and_gone or old.get(field) == new.get(field):
            continue
        if field.startswith(models) and (field in old) != (field in new):
            continue  # the slot that now names another model is told
        if field not in new:
            lines.append(f"{field} was {_short(old[field])}, is no longer there")
        elif field not in old:
            lines.append(f"{field} was not there, is {_short(new[field])}")
        else:
            lines.append(f"{field} was {_short(old[field])}, is {_short(new[field])}")
    return lines


def _fields(section: Config, path: str) -> Iterator[tuple[str, str]]:
    for name, field in type(section).model_fields.items():
        if Execution not in field.metadata:
            value = getattr(section, name)
            for keys in (mark.keys for mark in field.metadata if isinstance(mark, ExecutionKeys)):
                value = {key: entry for key, entry in value.items() if key not in keys}
            yield from _leaves(value, f"{path}.{name}".lstrip("."))


def _leaves(value: object, path: str) -> Iterator[tuple[str, str]]:
    if isinstance(value, Config):
        yield from _fields(value, path)
    elif isinstance(value, dict):
        for key, entry in value.items():
            yield from _leaves(entry, f"{path}.{key}")
    elif isinstance(value, list) and any(isinstance(entry, SourceConfig) for entry in value):
        return  # by path, see rows_fingerprint
    elif isinstance(value, list):
        for i, entry in enumerate(value):
            yield from _leaves(entry, f"{path}.{i}")
    else:
        yield path, _json(value)


def _sources(fields: Mapping[str, str]) -> set[str]:
    return {_source_of(field) for field in fields} - {""}


def _models(fields: Mapping[str, str]) -> set[str]:
    """How the fields of each model begin."""
    return {field.removesuffix("engine") for field in fields if re.fullmatch(r"models\..*\.engine", field)}


def _source_of(field: str) -> str:
    return field[: field.rindex("].")] if field.startswith(_SOURCES) else ""


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, sort_keys=True)


def _short(text: str) -> str:
    return text if len(text) <= 120 else f"{text[:116]}..."
