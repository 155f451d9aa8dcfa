"""From a file and overrides to a recipe, and back to YAML; every message names field, value and way out."""

import copy
import json
import os
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from moaa_ray.errors import ConfigError
from moaa_ray.loading import load_recipe
from moaa_ray.model_folders import resolve_model, resolve_path
from moaa_ray.settings.models import OpenaiModel
from moaa_ray.settings.yaml_text import resolved_yaml

RECIPE = {
    "name": "demo",
    "prompts": {"sources": [{"path": "prompts.jsonl"}]},
    "models": {
        "strong": {"engine": "fake"},
        "qwen2.5": {"engine": "fake", "replicas": {"min": 1, "max": 2}},
        "remote": {"engine": "openai", "model": "m", "base_url": "http://h:1/v1", "api_key": "${KEY}"},
    },
    "mixture": {
        "layers": [{"proposers": [{"model": "strong", "stop": ["a"]}, {"model": "qwen2.5"}, {"model": "remote"}]}],
        "aggregator": {"model": "strong"},
    },
}


def write(folder: Path, data: object) -> Path:
    path = folder / "recipe.yaml"
    path.write_text(data if isinstance(data, str) else yaml.safe_dump(data), encoding="utf-8")
    return path


def message(folder: Path, data: object, *overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load_recipe(write(folder, data), overrides)
    return str(caught.value)


def test_a_recipe_is_loaded_with_its_folder(tmp_path, monkeypatch):
    monkeypatch.chdir("/")
    loaded = load_recipe(write(tmp_path, RECIPE))
    assert loaded.recipe.mixture.layers[0].proposers[0].stop == ("a",)
    assert loaded.base_dir == tmp_path
    assert loaded.run_dir == "/runs/demo"


def test_a_run_dir_counts_from_the_current_directory_and_a_uri_stays(tmp_path, monkeypatch):
    monkeypatch.chdir("/")
    path = write(tmp_path, RECIPE)
    assert load_recipe(path, ["run_dir=out/x"]).run_dir == "/out/x"
    assert load_recipe(path, ["run_dir=s3://b/x"]).run_dir == "s3://b/x"
    assert load_recipe(path, ["run_dir=file:///out/x"]).run_dir == "/out/x"
    assert load_recipe(path, ["run_dir=file://out/x"]).run_dir == "/out/x"


@pytest.mark.parametrize(
    ("override", "read"),
    [
        ("mixture.aggregator.temperature=0.3", lambda r: r.mixture.aggregator.temperature == 0.3),
        ("mixture.aggregator.temperature=3e-1", lambda r: r.mixture.aggregator.temperature == 0.3),
        ("mixture.layers.0.proposers.1.temperature=0", lambda r: r.mixture.layers[0].proposers[1].temperature == 0),
        ("mixture.aggregator.stop=[a, 'b c']", lambda r: r.mixture.aggregator.stop == ("a", "b c")),
        ("models.qwen2.5.context_window=4096", lambda r: r.models["qwen2.5"].context_window == 4096),
        ("models.qwen2.5.replicas.max=7", lambda r: r.models["qwen2.5"].replicas.max == 7),
        ("generate.block_rows=8", lambda r: r.generate.block_rows == 8),
        ("mixture.hide_sources=true", lambda r: r.mixture.hide_sources is True),
        ("models.remote.base_url=http://127.0.0.1:8000/v1", lambda r: r.models["remote"].base_url.endswith(":8000/v1")),
        ("models.strong.context_window=null", lambda r: r.models["strong"].context_window is None),
        ("prompts.sources.0.path=s3://bucket/*.jsonl", lambda r: r.prompts.sources[0].path == "s3://bucket/*.jsonl"),
    ],
)
def test_an_override_sets_one_field(tmp_path, override, read):
    assert read(load_recipe(write(tmp_path, RECIPE), [override]).recipe)


def test_the_last_of_two_overrides_of_one_field_wins(tmp_path):
    assert load_recipe(write(tmp_path, RECIPE), ["seed=1", "seed=2"]).recipe.seed == 2


@pytest.mark.parametrize(
    ("override", "parts"),
    [
        ("mixture.agregator.temperature=0.3", ["mixture.agregator: unknown key", "did you mean 'aggregator'?"]),
        ("mixture.aggregator.temprature=0.3", ["mixture.aggregator.temprature", "did you mean 'temperature'?"]),
        ("sed=1", ["sed: unknown key", "did you mean 'seed'?", "valid keys: name, run_dir, seed"]),
        ("mixture.layers.3.repeat=2", ["mixture.layers.3.repeat: no entry '3' in a list of 1", "count from 0 to 0"]),
        ("mixture.layers.x.repeat=2", ["no entry 'x' in a list of 1"]),
        ("name.x=1", ["override name.x: x would lie inside 'demo'", "set the field above it"]),
        ("seed", ["override 1: is not of the form field=value", "mixture.aggregator.temperature=0.3"]),
        ("=5", ["override 1: is not of the form field=value"]),
        ("seed=[1", ["override seed, line 1", "not valid YAML"]),
        ("seed=*a", ["override seed", "put it in quotes"]),
        ("[key]=1", ["[key]: unknown key", "valid keys: name"]),
        ("models.strong.[key]=1", ["models.strong.[key]: unknown key", "valid keys: replicas"]),
        ("models.[key].context_window=1", ["models.[key].engine: missing", "valid engines: vllm"]),
        ("models.remote.base_url=http://h:80000/v1", ["models.remote.base_url: its port is no number", "write it as"]),
        ("seed=one", ["seed = 'one': must be a whole number", "in digits"]),
    ],
)
def test_a_bad_override_is_refused(tmp_path, override, parts):
    text = message(tmp_path, RECIPE, override)
    assert [part for part in parts if part not in text] == [], text


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("", ["the file is empty", "write a recipe"]),
        ("# only a comment\n", ["the file is empty"]),
        ("- a\n- b\n", ["must hold a mapping, not a list", "name: my-run"]),
        ("just text", ["must hold a mapping, not 'just text'"]),
        ("name: a\nseed: 1\nname: b\n", ["line 3, column 1", "'name' stands here a second time, first on line 1"]),
        ("name: !!python/object/apply:os.system [x]\n", ["line 1", "! (a tag) is not read here"]),
        ("name: &a x\nseed: *a\n", ["line 1", "write the value out"]),
        ("name: [1, 2\n", ["line 2", "not valid YAML"]),
        ("1: a\n", ["line 1", "this key is not text; put it in quotes"]),
        ("? [a]\n: b\n", ["this key is not text"]),
        ("a: b\n---\nc: d\n", ["not valid YAML"]),
        ("a: " + "[" * 5000, ["nested deeper than 32 levels"]),
        ("a: \x01", ["characters that YAML does not allow"]),
        ('a: "\\U00110000"', ["not YAML"]),
        ("a: " + "x" * 200_000, ["larger than 131072 bytes"]),
    ],
)
def test_a_file_that_is_no_recipe_is_refused_with_its_line(tmp_path, text, parts):
    found = message(tmp_path, text)
    assert [part for part in [str(tmp_path), *parts] if part not in found] == [], found


def test_a_missing_file_a_folder_and_bytes_are_refused(tmp_path):
    (tmp_path / "latin1.yaml").write_bytes("name: é".encode("latin-1"))
    for name, part in [("no.yaml", "No such file"), (".", "Is a directory"), ("a\0b", "not a path")]:
        with pytest.raises(ConfigError, match=part):
            load_recipe(os.path.join(tmp_path, name))
    with pytest.raises(ConfigError, match="byte 6 is not UTF-8; save the file as UTF-8"):
        load_recipe(tmp_path / "latin1.yaml")


def test_yes_stays_text_as_in_yaml_1_2(tmp_path):
    assert "mixture.hide_sources = 'yes': must be true or false" in message(
        tmp_path, RECIPE, "mixture.hide_sources=yes"
    )


def test_all_problems_are_told_at_once_one_per_line(tmp_path):
    wrong = copy.deepcopy(RECIPE)
    wrong["sead"] = 1
    wrong["models"]["strong"]["engine"] = "faek"
    wrong["mixture"]["aggregator"] = {"model": "strnog", "temperature": 3}
    wrong["mixture"]["layers"][0]["proposers"][1]["max_tokens"] = "many"
    header, *lines = message(tmp_path, wrong).splitlines()
    assert header.endswith("recipe.yaml: 5 problems")
    fields = [
        "sead",
        "models.strong.engine",
        "mixture.aggregator.temperature",
        "mixture.layers.0.proposers.1.max_tokens",
    ]
    for field in [*fields, "mixture.aggregator.model"]:
        assert sum(line.startswith(f"  {field}") for line in lines) == 1
    assert len(lines) == 5


def test_thousands_of_problems_are_cut_to_fifty(tmp_path):
    text = message(tmp_path, RECIPE | {f"k{i}": 1 for i in range(1000)})
    assert text.count("\n") == 51
    assert text.endswith("... and 950 more")


@pytest.mark.parametrize("field", ["name", "run_dir", "models.remote.model", "prompts.sources.0.path", "run_dir=s3://"])
def test_a_reference_to_a_secret_is_refused_where_none_belongs(tmp_path, field):
    key, _, start = field.partition("=")
    text = message(tmp_path, RECIPE, f"{key}={start}${{TOKEN}}")
    assert f"{key}: ${{NAME}} is only read in models.*.api_key and serve.api_keys; write the value itself" in text


CANARY = "sk-canary0123"


@pytest.mark.parametrize(
    "override",
    [
        f"models.remote.api_key={CANARY}",
        f"models.remote.api_key=[{CANARY}]",
        f"models.remote.api_kye={CANARY}",
        f"models.remote.base_url=http://me:{CANARY}@host/v1",
        f"models.remote.base_url=http://host/v1?key={CANARY}",
        f"models.remote.base_url={CANARY}",
        f"prompts.sources.0.path=s3://key:{CANARY}@bucket/x",
        f"run_dir=s3://key:{CANARY}@bucket/x",
        f"models.strong={{engine: vllm, model: org/m, engine_args: {{hf_token: {CANARY}}}}}",
        f"models.remote.api_key: {CANARY}",
        f"models.remote.api_key=*{CANARY}",
        f"models.remote.concurrency={CANARY}",
        f"models.remote.api_key.x={CANARY}",
        f"models.remote.api_key={{key: {CANARY}}}",
        f"models.remote.{CANARY}=1",
        f"{CANARY}=1",
        f"models.remote={CANARY}",
        f"models={CANARY}",
    ],
)
def test_no_message_shows_a_secret(tmp_path, override):
    assert CANARY not in message(tmp_path, RECIPE, override)


def test_a_secret_on_a_broken_line_of_yaml_is_not_shown(tmp_path):
    assert CANARY not in message(tmp_path, f"models: {{a: {{api_key: {CANARY}: x]")


@pytest.mark.parametrize(
    "fields", [{"api_key": [CANARY]}, {"api_key": CANARY}, {"base_url": f"http://u:{CANARY}@h/v1"}, {"api_kye": CANARY}]
)
def test_an_error_of_pydantic_itself_holds_no_value_of_the_recipe(fields):
    with pytest.raises(ValidationError) as caught:
        OpenaiModel.model_validate({"engine": "openai", "model": "m", "base_url": "http://h/v1"} | fields)
    assert CANARY not in str(caught.value) + repr(caught.value)


@pytest.mark.parametrize("override", ["{key}=1", "models.{key}.engine=x", "models.strong.{key}=1", "seed={key}"])
def test_a_message_about_a_very_long_key_or_value_is_short(tmp_path, override):
    assert len(message(tmp_path, RECIPE, override.format(key="k" * 400))) < 4000
    long = "k" * 100_000
    assert len(message(tmp_path, RECIPE | {long: 1, "models": {long: {"engine": long}}, "seed": long})) < 8000


def test_secrets_stay_references_and_are_never_resolved(tmp_path, monkeypatch):
    monkeypatch.setenv("KEY", CANARY)
    recipe = load_recipe(write(tmp_path, RECIPE)).recipe
    assert "${KEY}" in resolved_yaml(recipe)
    assert CANARY not in resolved_yaml(recipe)


def test_the_resolved_yaml_loads_to_an_equal_recipe(tmp_path):
    recipe = load_recipe(write(tmp_path, RECIPE), ["mixture.min_proposals=2"]).recipe
    text = resolved_yaml(recipe)
    assert "warn_after_s: 60.0" in text
    assert load_recipe(write(tmp_path, text)).recipe == recipe


@example("\x85 \u2028", 1e-7)
@given(
    st.text(st.characters(blacklist_characters="\0", blacklist_categories=["Cs"]), min_size=1, max_size=12),
    st.floats(0, 2),
)
@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_text_and_number_survive_the_resolved_yaml(tmp_path, text, number):
    recipe = load_recipe(write(tmp_path, RECIPE)).recipe
    slot = recipe.mixture.aggregator.model_copy(
        update={"stop": (text, "1e-3", "yes", "0o7", "~"), "temperature": number}
    )
    changed = recipe.model_copy(update={"mixture": recipe.mixture.model_copy(update={"aggregator": slot})})
    assert load_recipe(write(tmp_path, resolved_yaml(changed))).recipe == changed


def test_paths_are_resolved_against_the_recipes_folder_and_uris_stay(tmp_path):
    (tmp_path / "weights").mkdir()
    assert resolve_path(tmp_path, "../a/./b") == str(tmp_path.parent / "a" / "b")
    assert resolve_path(tmp_path, "/abs") == "/abs"
    assert resolve_path(tmp_path, "s3://b/../x") == "s3://b/../x"
    assert resolve_path(tmp_path, "~/x") == os.path.expanduser("~/x")
    assert resolve_model(tmp_path, "weights") == str(tmp_path / "weights")
    assert resolve_model(tmp_path, "org/name") == "org/name"
    assert resolve_model(tmp_path, "a/b/c") == str(tmp_path / "a/b/c")
    assert resolve_model(tmp_path, "s3://b/m") == "s3://b/m"
    assert resolve_model(tmp_path, "file:///w/m") == "/w/m"
    assert resolve_path(tmp_path, "file:///w/m") == "/w/m"


def places(value: object, at: tuple = ()) -> list[tuple]:
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [at, *(place for key, child in inner for place in places(child, (*at, key)))]


JUNK = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(10**30), 10**30),
    st.floats(),
    st.text(max_size=20),
    st.sampled_from(["", "..", "/", "./x", "${A}", "\0", "a/b/c", "~", "x" * 5000, "/" + "y" * 5000, "auto", "strong"]),
    st.recursive(st.just([]), lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner)),
)


def is_loaded_or_refused(path, *overrides) -> bool:
    """A recipe, or a ConfigError that says something; any other exception fails the test by itself."""
    try:
        return load_recipe(path, list(overrides)).recipe is not None
    except ConfigError as error:
        return len(str(error)) > 10


@given(st.data())
@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_mutated_recipe_raises_nothing_but_a_config_error(tmp_path, data):
    mutated = copy.deepcopy(RECIPE)
    mutated["models"]["local"] = {
        "engine": "vllm",
        "model": "./m",
        "lora": "l",
        "chat_template": "t",
        "engine_args": {},
    }
    for _ in range(data.draw(st.integers(1, 3))):
        *parents, last = data.draw(st.sampled_from(places(mutated)[1:]))
        at = mutated
        for key in parents:
            at = at[key]
        if data.draw(st.booleans()):
            at[last] = data.draw(JUNK)
        elif isinstance(at, dict):
            at[data.draw(st.text(max_size=5))] = at.pop(last)
        if not places(mutated)[1:]:
            break
    assert is_loaded_or_refused(write(tmp_path, json.dumps(mutated)))


@given(st.text(max_size=40), st.text(max_size=40))
@settings(max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_override_raises_nothing_but_a_config_error(tmp_path, key, value):
    path = write(tmp_path, RECIPE)
    for override in (key, f"{key}={value}", f"mixture.layers.{key}={value}", f"models.local={{model: {value}}}"):
        assert is_loaded_or_refused(path, override)
