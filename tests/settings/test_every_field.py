"""Whatever is wrong at whatever place of a recipe is told by its place, never by a traceback."""

import copy
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from moaa_ray.errors import ConfigError
from moaa_ray.loading import load_recipe, load_training

JOBS = Path(__file__).parents[2] / "jobs"
SECTIONS = {
    "models": {
        "v": {"engine": "vllm", "model": "org/m", "replicas": {"min": 1, "max": 2}, "node_labels": {"pool": "big"}},
        "o": {"engine": "openai", "model": "m", "base_url": "http://127.0.0.1:1/v1"},
        "c": {"engine": "classifier", "model": "org/m"},
        "r": {"engine": "rule", "function": "moaa_ray.demo.tasks:check"},
        "f": {"engine": "fake", "faults": {"boom": "hang"}},
    },
    "mixture": {
        "layers": [{"proposers": [{"model": "f", "stop": ["x"]}, {"model": "o"}], "repeat": 2}],
        "aggregator": {"model": "f"},
    },
    "judges": {
        "m": {"kind": "mixture", "proposers": [{"model": "f"}], "aggregator": {"model": "f"}},
        "l": {"kind": "llm", "model": "f", "schedule": "all_pairs"},
        "j": {"kind": "jury", "members": [{"model": "f"}, {"model": "o"}]},
        "s": {"kind": "score", "model": "r"},
        "a": {"kind": "aspects", "model": "f"},
    },
    "judge": {"use": "l", "min_margin": 0.1},
    "sft": {"data": [{"path": "d.jsonl", "weight": 2.0}], "lora": {"rank": 4}, "betas": [0.9, 0.95]},
    "dpo": {"data": [{"path": "d.jsonl", "rows": 3}], "loss": "ipo"},
    "sample": {"model": "f", "sources": [{"path": "p.jsonl", "columns": {"prompt": "prompt"}}], "num_candidates": 3},
    "filters": {"near_duplicates": 0.9, "decontaminate": ["e.jsonl"]},
    "serve": {"models": ["f"], "quorum": 1},
    "run": {"stages": ["generate"], "rounds": 2},
    "plan": {"prompt_tokens": 3, "measured": ["x"]},
    "ray": {"address": "local"},
    "generate": {"block_rows": 4},
    "evaluate": {
        "models": {"mine": "f", "stored": {"alpaca_eval": "a.jsonl"}},
        "alpaca_eval": {"questions": "q.jsonl", "baseline": "b.jsonl", "judge": "f"},
        "arena_hard": {"questions": "q.jsonl", "baseline": "b.jsonl", "judge": "f"},
        "mt_bench": {"questions": "q.jsonl", "judge": "f"},
        "reward_bench": {"pairs": "p.jsonl", "judges": ["l"]},
    },
    "student": {"model": "org/m"},
}
WHOLE = {"name": "all", "prompts": {"sources": [{"path": "p.jsonl", "columns": {"prompt": "prompt"}}]}, **SECTIONS}
NAMED_BY_USERS = {"models", "judges", "evaluate.models", "models.v.node_labels", "models.f.faults"}


def places(value: object, path: tuple = ()) -> Iterator[tuple]:
    """Every place in a value, the value itself first."""
    yield path
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, part in inside:
        yield from places(part, (*path, key))


def at(value, path: tuple):
    for part in path:
        value = value[part]
    return value


def told(folder: Path, recipe: dict, load=load_recipe) -> str:
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe), encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        load(path)
    return str(caught.value)


def test_the_recipe_with_every_section_has_nothing_wrong_but_files_that_are_not_there(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(WHOLE), encoding="utf-8")
    recipe = load_recipe(path).recipe
    assert (recipe.models.keys(), recipe.judges.keys()) == (WHOLE["models"].keys(), WHOLE["judges"].keys())
    assert set(recipe.evaluate.benchmarks) == {"alpaca_eval", "arena_hard", "mt_bench"}


@pytest.mark.parametrize("load", [load_recipe, load_training])
def test_an_unknown_key_is_told_with_its_place_wherever_it_stands(tmp_path, load):
    sections = [path for path in places(WHOLE) if isinstance(at(WHOLE, path), dict)]
    assert len(sections) > 40
    for path in sections:
        dotted = ".".join(map(str, path))
        if dotted in NAMED_BY_USERS:
            continue
        recipe = copy.deepcopy(WHOLE)
        at(recipe, path)["zzz"] = 1
        assert f"{'.'.join(filter(None, [dotted, 'zzz']))}: unknown key; valid keys: " in told(tmp_path, recipe, load)


def test_a_slot_that_names_no_model_is_told_as_one_that_names_an_unknown_one(tmp_path):
    slots = [path for path in places(WHOLE) if path[-1:] == ("model",) and path[0] in ("mixture", "judges")]
    assert len(slots) > 8
    for path in slots:
        recipe = copy.deepcopy(WHOLE)
        at(recipe, path[:-1])["model"] = ""
        assert f"{'.'.join(map(str, path))} = '': no such model under `models`;" in told(tmp_path, recipe)


@pytest.mark.parametrize("wrong", [{"zzz": 1}, [[]], None, -1e300], ids=repr)
def test_a_value_of_another_kind_is_refused_or_taken(tmp_path, wrong):
    path = tmp_path / "recipe.yaml"
    taken, refusals = [], []
    for place in list(places(WHOLE))[1:]:
        recipe = copy.deepcopy(WHOLE)
        at(recipe, place[:-1])[place[-1]] = wrong
        path.write_text(yaml.safe_dump(recipe), encoding="utf-8")
        try:
            load_recipe(path)
            taken.append(place)
        except ConfigError as error:
            refusals.append(str(error))
    assert len(refusals) > 5 * len(taken), taken
    sections = rf"({'|'.join(WHOLE)})\b"
    for refusal in refusals:
        head, *problems = refusal.split("\n  ")
        assert re.fullmatch(rf"{path}: \d+ problems?", head)
        assert all(re.match(rf"{sections}|\.\.\. and \d+ more$", problem) for problem in problems), refusal
