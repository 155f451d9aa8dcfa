"""Everything in a recipe that names a model, also in a recipe that is wrong elsewhere."""

from collections.abc import Iterator, Mapping

from moaa_ray.settings.checks import choices, mapping, nearest, shown

STUDENT = "student"
"""The name under `models` that is sampled from, where sample.model names none."""


def name_problems(data: Mapping) -> list[str]:
    """Slots with models that are not defined, and a misspelt student; bears a recipe wrong elsewhere."""
    models = mapping(data, "models")
    problems = [
        f"{field} = {shown(name)}: no such model under `models`; {choices(name, models)}"
        for field, name in model_slots(data)
        if name not in models
    ]
    checked, judges = mapping(mapping(data, "evaluate"), "reward_bench").get("judges"), mapping(data, "judges")
    problems += [
        f"evaluate.reward_bench.judges.{i} = {shown(name)}: no such judge under `judges`; {choices(name, judges)}"
        for i, name in enumerate(checked if isinstance(checked, list) else ())
        if isinstance(name, str) and name not in judges
    ]
    if STUDENT not in models and not mapping(data, "sample").get("model"):
        problems += [
            f"models.{name}: nothing uses it; did you mean {STUDENT!r}?, or name it where it is to be used"
            for name in unused_models(data)
            if nearest(name, [STUDENT])
        ]
    return problems


def unused_models(data: Mapping) -> list[str]:
    """Models that nothing in the recipe names, sorted: usually others for a slot, to be swapped in by an override."""
    served = mapping(data, "serve").get("models")
    used = {name for _, name in model_slots(data)} | {STUDENT}
    used |= {name for name in served if isinstance(name, str)} if isinstance(served, list) else set()
    return sorted(set(mapping(data, "models")) - used)


def model_slots(data: Mapping) -> Iterator[tuple[str, str]]:
    """Field and model of everything in the recipe that names a model."""
    mixture = mapping(data, "mixture")
    slots = [("mixture.aggregator", mixture.get("aggregator")), *_listed(mixture, "mixture", "layers")]
    slots = [inner for path, slot in slots for inner in (_listed(slot, path, "proposers") or [(path, slot)])]
    for name, judge in mapping(data, "judges").items():
        path = f"judges.{name}"
        slots.append((path, judge))
        if isinstance(judge, dict):
            slots += [(f"{path}.aggregator", judge.get("aggregator"))]
            slots += [*_listed(judge, path, "proposers"), *_listed(judge, path, "members")]
    slots.append(("sample", mapping(data, "sample")))
    for path, slot in slots:
        if isinstance(slot, dict) and isinstance(slot.get("model"), str) and (slot["model"] or path != "sample"):
            yield f"{path}.model", slot["model"]
    yield from _evaluation_slots(mapping(data, "evaluate"))


def _evaluation_slots(section: Mapping) -> Iterator[tuple[str, str]]:
    """The judge of every benchmark, and the models that are evaluated; one with a slash is of this run."""
    for benchmark in (name for name in section if name != "models"):
        if isinstance(judge := mapping(section, benchmark).get("judge"), str):
            yield f"evaluate.{benchmark}.judge", judge
    for name, value in mapping(section, "models").items():
        if isinstance(value, str) and "/" not in value:
            yield f"evaluate.models.{name}", value


def _listed(section: object, path: str, key: str) -> list[tuple[str, object]]:
    entries = section.get(key) if isinstance(section, dict) else None
    return [(f"{path}.{key}.{i}", entry) for i, entry in enumerate(entries if isinstance(entries, list) else ())]
