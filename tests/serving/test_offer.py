"""What is offered of a run, and the settings that are refused before anything starts."""

import json
import shutil
from pathlib import Path

import pytest
from pydantic import ValidationError

from moaa_ray.data.store import open_store
from moaa_ray.errors import ConfigError
from moaa_ray.loading import load_preference
from moaa_ray.run_record import join_run
from moaa_ray.serving.keys import read_keys
from moaa_ray.serving.loading import load_to_serve
from moaa_ray.serving.offer import offer_of
from moaa_ray.settings.serving import ServeConfig
from tests.serving.local import offer, recipe

BASE = Path(__file__).parents[2] / "jobs" / "models" / "base"
KEY = "a-key-of-twenty-chars"


def test_by_default_the_mixture_and_its_models_are_offered(tmp_path):
    what = offer(tmp_path, recipe())
    assert what.names == ("mixture", "a", "b", "c", "agg")
    assert list(what.engines) == ["a", "b", "c", "agg"]


def test_the_mixture_alone_still_needs_its_engines(tmp_path):
    what = offer(tmp_path, recipe(serve={"models": ["mixture"]}))
    assert (what.names, len(what.engines)) == (("mixture",), 4)


def test_one_model_alone_needs_no_other_engine(tmp_path):
    what = offer(tmp_path, recipe(serve={"models": ["b"]}))
    assert (what.names, list(what.engines), what.mixture) == (("b",), ["b"], ())


def test_a_model_draws_alone_as_in_its_slot(tmp_path):
    assert offer(tmp_path, recipe()).alone["a"].sampling.max_tokens == 64


def test_a_name_that_is_not_there_is_refused_with_the_nearest(tmp_path):
    with pytest.raises(ConfigError, match=r"serve.models.0 = 'aggr': nothing to serve; did you mean 'agg'\?"):
        offer(tmp_path, recipe(serve={"models": ["aggr"]}))


def test_a_model_called_like_the_mixture_is_refused(tmp_path):
    data = recipe()
    data["models"]["mixture"] = {"engine": "fake"}
    data["serve"] = {"models": ["mixture"]}
    with pytest.raises(ConfigError, match=r"models\.mixture: this is the name of the mixture itself; rename the model"):
        offer(tmp_path, data)


def test_a_quorum_that_the_mixture_would_refuse_is_refused(tmp_path):
    data = recipe(serve={"quorum": 1}, mixture={"min_proposals": 2})
    with pytest.raises(ConfigError, match=r"serve.quorum = 1: below mixture.min_proposals = 2, .* set it to 2 or more"):
        offer(tmp_path, data)
    assert offer(tmp_path, recipe(serve={"quorum": 2}, mixture={"min_proposals": 2})).mixture
    assert offer(tmp_path, recipe(serve={"quorum": 1, "models": ["a"]}, mixture={"min_proposals": 2})).names == ("a",)


def test_the_aggregators_direct_answer_is_not_asked_for(tmp_path):
    assert [p.name for p in offer(tmp_path, recipe(mixture={"baselines": True})).mixture][-1] == "aggregate"
    assert len(offer(tmp_path, recipe(mixture={"baselines": True})).mixture) == 4


def test_the_newest_tuned_students_of_the_run_are_offered(tmp_path):
    for place in ("models/sft", "models/dpo", "rounds/2/models/dpo"):
        shutil.copytree(BASE, tmp_path / "run" / place)
    data = {**recipe(), "run": {"rounds": 3}}
    what = offer(tmp_path, data)
    assert what.names[-2:] == ("student/sft", "student/dpo")
    assert what.engines["student/sft"].model == str(tmp_path / "run/models/sft")
    assert what.engines["student/dpo"].model == str(tmp_path / "run/rounds/2/models/dpo")


def test_a_student_that_is_not_trained_yet_is_no_name(tmp_path):
    with pytest.raises(ConfigError, match="'student/sft': nothing to serve"):
        offer(tmp_path, recipe(serve={"models": ["student/sft"]}))


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.1", "models.example.org"])
def test_an_address_that_others_reach_needs_keys(host):
    with pytest.raises(ValidationError, match=f"host = '{host}' without api_keys: other machines could use"):
        ServeConfig(host=host)
    assert ServeConfig(host=host, api_keys="${KEYS}").has_keys


@pytest.mark.parametrize("origin", ["*", "localhost:3000", "https://chat.example.org/", "file:///x"])
def test_an_origin_is_that_of_a_page_and_all_of_them_need_keys(origin):
    with pytest.raises(ValidationError, match=r"is no origin|every page that a browser on this machine opens"):
        ServeConfig(allow_origins=[origin])
    assert ServeConfig(allow_origins=["*"], api_keys="${KEYS}").allow_origins == ["*"]


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "localhost", "127.1.2.3"])
def test_loopback_needs_none(host):
    assert ServeConfig(host=host).is_loopback


def test_a_key_in_the_recipe_is_refused():
    with pytest.raises(ValidationError, match="a secret stands in the recipe"):
        ServeConfig(api_keys=KEY)


def test_keys_come_from_the_environment_or_a_file(tmp_path, monkeypatch):
    monkeypatch.setenv("SERVE_TEST_KEYS", f" {KEY} ,another-key-of-24-chars")
    (tmp_path / "keys").write_text(f"{KEY}\n\n")
    for config in (ServeConfig(api_keys="${SERVE_TEST_KEYS}"), ServeConfig(api_keys_file="keys")):
        keys = read_keys(config, str(tmp_path))
        assert keys.admits(f"Bearer {KEY}")
        assert not keys.admits(f"Bearer {KEY}x")
        assert not keys.admits(KEY)
        assert not keys.admits("")


def test_keys_that_are_missing_or_too_short_are_refused_and_not_shown(tmp_path, monkeypatch):
    config = ServeConfig(api_keys="${SERVE_TEST_KEYS}")
    monkeypatch.delenv("SERVE_TEST_KEYS", raising=False)
    with pytest.raises(ConfigError, match=r"serve.api_keys = \$\{SERVE_TEST_KEYS\}: holds no key; set SERVE_TEST_KEYS"):
        read_keys(config, str(tmp_path))
    monkeypatch.setenv("SERVE_TEST_KEYS", "hunter2")
    with pytest.raises(ConfigError, match="a key has fewer than 16 characters") as caught:
        read_keys(config, str(tmp_path))
    assert "hunter2" not in str(caught.value)
    with pytest.raises(ConfigError, match=r"serve.api_keys_file = .*none': No such file or directory; write one key"):
        read_keys(ServeConfig(api_keys_file="none"), str(tmp_path))


def test_without_keys_in_the_recipe_everybody_is_let_in(tmp_path):
    assert read_keys(ServeConfig(), str(tmp_path)).admits("")


def test_a_runs_directory_is_served_by_the_recipe_that_made_it(tmp_path):
    shutil.copytree(BASE, tmp_path / "jobs/models/base")
    data = recipe()
    data["models"]["a"] = {"engine": "vllm", "model": "models/base"}  # relative to the recipe's folder
    path = tmp_path / "jobs" / "recipe.yaml"
    path.write_text(json.dumps(data), encoding="utf-8")
    place = str(tmp_path / "run")
    join_run(open_store(place), load_preference(path, [f"run_dir={json.dumps(place)}"]))
    loaded = load_to_serve(place, ["serve.port=9000"])
    assert (loaded.run_dir, loaded.recipe.serve.port) == (place, 9000)
    assert offer_of(loaded).engines["a"].model == str(tmp_path / "jobs/models/base")


def test_a_run_that_does_not_say_where_its_recipe_lay_wants_the_recipe(tmp_path):
    (tmp_path / "run.json").write_text('{"sessions": [{}]}')
    with pytest.raises(ConfigError, match="does not say where its recipe lay; give the recipe itself instead"):
        load_to_serve(str(tmp_path), [])
