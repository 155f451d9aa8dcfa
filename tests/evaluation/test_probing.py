"""Before a run, one token of AlpacaEval's judge: only an endpoint that says so itself is refused."""

from pathlib import Path

import pytest

from moaa_ray.errors import ConfigError
from moaa_ray.evaluation.probing import probe_judge
from moaa_ray.evaluation.stages import judge_made_with
from moaa_ray.evaluation.summary import place_of
from moaa_ray.loading import LoadedPreference, load_preference
from moaa_ray.run_record import check_stage, join_run
from tests.evaluation.files import write_benchmarks
from tests.generation import servers

RECIPE = """
name: probed
run_dir: {folder}/run
models:
  m: {{engine: fake}}
  judge: {{engine: openai, model: judge, base_url: "{url}"}}
evaluate:
  models: {{new: m}}
  alpaca_eval: {{questions: alpaca.json, baseline: alpaca.json, judge: judge}}
"""


def loaded(folder: Path, url: str, *overrides: str) -> LoadedPreference:
    write_benchmarks(folder)
    (folder / "recipe.yaml").write_text(RECIPE.format(folder=folder, url=url), encoding="utf-8")
    return load_preference(folder / "recipe.yaml", overrides)


def test_a_judge_that_gives_logprobs_is_asked_for_one_token(tmp_path):
    with servers.chat_endpoint(models=("judge",), window=8192) as endpoint:
        probe_judge(loaded(tmp_path, endpoint.url))
        (body,) = endpoint.bodies
    assert (body["max_tokens"], body["top_logprobs"]) == (1, 20)


def test_an_endpoint_that_answers_without_logprobs_is_refused_before_anything_starts(tmp_path):
    with servers.chat_endpoint(models=("judge",), reply=lambda messages: "A") as endpoint:
        recipe = loaded(tmp_path, endpoint.url)
        with pytest.raises(ConfigError, match=r"judge = 'judge': its endpoint answers without logprobs.*=verdict"):
            probe_judge(recipe)


@pytest.mark.parametrize(
    ("trouble", "message"),
    [("400 logprobs are not supported", "it says http_4xx: HTTP 400: logprobs are not supported")],
)
def test_an_endpoint_that_refuses_logprobs_is_refused_with_its_own_words(tmp_path, trouble, message):
    with servers.chat_endpoint(models=("judge",), troubles=[trouble]) as endpoint:
        recipe = loaded(tmp_path, endpoint.url)
        with pytest.raises(ConfigError, match=message):
            probe_judge(recipe)


def test_an_endpoint_without_the_model_is_refused(tmp_path):
    with servers.chat_endpoint(models=("jugde",)) as endpoint:
        recipe = loaded(tmp_path, endpoint.url)
        with pytest.raises(ConfigError, match="has no model 'judge'; nearest of its 1: jugde"):
            probe_judge(recipe)


def test_an_endpoint_that_is_not_up_yet_or_overloaded_or_whose_key_is_elsewhere_is_not_refused(tmp_path):
    probe_judge(loaded(tmp_path, f"http://127.0.0.1:{servers.free_port()}/v1"))
    with servers.chat_endpoint(models=("judge",), troubles=["503"]) as endpoint:
        probe_judge(loaded(tmp_path, endpoint.url))
        assert len(endpoint.bodies) == 1
        probe_judge(loaded(tmp_path, endpoint.url, "models.judge.api_key=${MOAA_NO_SUCH_KEY}"))
        assert len(endpoint.bodies) == 1


def test_a_judge_that_has_judged_already_or_is_read_otherwise_is_not_asked(tmp_path):
    with servers.chat_endpoint(models=("judge",), reply=lambda messages: "A") as endpoint:
        probe_judge(loaded(tmp_path, endpoint.url, "evaluate.alpaca_eval.preference=verdict"))
        recipe = loaded(tmp_path, endpoint.url)
        store = place_of(recipe.run_dir, "judges/judge")
        join_run(store, recipe)
        check_stage(store, "evaluate", judge_made_with(recipe, "judge"), restart_command="x")
        probe_judge(recipe)
        assert endpoint.bodies == []
