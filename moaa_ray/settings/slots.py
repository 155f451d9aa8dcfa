"""Everything in a recipe that names a model, also in a recipe that is wrong elsewhere."""

from collections.abc import Iterator, Mapping

from moaa_ray.settings.checks import choices, mapping, nearest, shown

STUDENT = "student"
"""The name under `models` that is sampled from, where sample.model names none."""


def name_problems(data: Mapping) -> list[str]:
    """Slots with models that are not defined, and models that no slot uses; bears a recipe wrong elsewhere."""
    models, slots, meant, problems = mapping(data, "models"), list(model_slots(data)), set(), []
    for field, name in slots:
        if name not in models:
            meant.add(nearest(name, models))
            problems.append(f"{field} = {shown(name)}: no such model under `models`; {choices(name, models)}")
    served = mapping(data, "serve").get("models")
    used = {name for _, name in slots} | {STUDENT}
    used |= {name for name in served if isinstance(name, str)} if isinstance(served, list) else set()
    for name in sorted(set(models) - used - meant if slots else ()):
        problems.append(f"models.{name}: no slot of the mixture uses it, and no judge; take it out, or add one with it")
    return problems


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
        if isinstance(slot, dict) and isinstance(slot.get("model"), str) and slot["model"]:
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
