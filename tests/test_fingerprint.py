"""Which changes of a recipe a run that has begun refuses, and which it takes."""

import copy

import pytest

from moaa_ray.fingerprint import compare, rows_fingerprint, section_fingerprint
from moaa_ray.recipe import Recipe
from moaa_ray.settings.training import SftConfig

RECIPE = {
    "name": "demo",
    "prompts": {"sources": [{"path": "a.jsonl"}, {"path": "b.jsonl", "columns": {"prompt": "q"}}]},
    "models": {
        "f": {"engine": "fake"},
        "v": {"engine": "vllm", "model": "org/m", "revision": "1", "replicas": {"min": 1, "max": 2}},
        "o": {"engine": "openai", "model": "gpt", "base_url": "http://h/v1", "api_key": "${KEY}"},
    },
    "mixture": {
        "layers": [{"proposers": [{"model": "f"}, {"model": "v"}]}],
        "aggregator": {"model": "o", "temperature": 0.7},
    },
}
EXTRA = {"templates.aggregate": "1"}


def changed(field: str, value: object) -> list[str]:
    """The lines for a recipe with one field set, given as a dotted path."""
    data = copy.deepcopy(RECIPE)
    *parents, last = field.split(".")
    at = data
    for key in parents:
        at = at[int(key)] if isinstance(at, list) else at.setdefault(key, {})
    at[int(last) if isinstance(at, list) else last] = value
    return compare(fingerprint(RECIPE), fingerprint(data))


def fingerprint(data: dict) -> dict[str, str]:
    return rows_fingerprint(Recipe.model_validate(data), EXTRA)


def with_sources(*sources: dict) -> dict[str, str]:
    return fingerprint(RECIPE | {"prompts": {"sources": list(sources)}})


def test_an_equal_recipe_has_no_changes():
    assert compare(fingerprint(RECIPE), fingerprint(copy.deepcopy(RECIPE))) == []


def test_a_change_is_told_with_both_values():
    assert changed("mixture.aggregator.temperature", 0.3) == ["mixture.aggregator.temperature was 0.7, is 0.3"]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("seed", 1),
        ("mixture.aggregator.model", "v"),
        ("mixture.aggregator.name", "x"),
        ("mixture.aggregator.max_tokens", 5),
        ("mixture.aggregator.top_p", 0.5),
        ("mixture.aggregator.top_k", 5),
        ("mixture.aggregator.min_p", 0.5),
        ("mixture.aggregator.repetition_penalty", 1.1),
        ("mixture.aggregator.stop", ["x"]),
        ("mixture.layers.0.repeat", 2),
        ("mixture.layers.0.proposers.0.num_samples", 2),
        ("mixture.layers.0.proposers.1.temperature", 0.1),
        ("mixture.min_proposals", 2),
        ("mixture.shuffle_proposals", True),
        ("mixture.proposal_dropout", 0.5),
        ("mixture.hide_sources", True),
        ("mixture.baselines", True),
        ("mixture.drop_truncated", True),
        ("models.v.model", "org/other"),
        ("models.v.revision", "2"),
        ("models.v.context_window", 512),
        ("models.v.dtype", "float32"),
        ("models.v.quantization", "fp8"),
        ("models.v.kv_cache_dtype", "fp8"),
        ("models.v.lora", "l"),
        ("models.v.chat_template", "t"),
        ("models.o.model", "gpt-2"),
        ("models.o.revision", "2"),
        ("models.o.system_role", False),
        ("models.f.completion_tokens", 5),
        ("models.f.length_sigma", 0.5),
        ("prompts.max_chars", 5),
        ("generate.shard_rows", 5),
    ],
)
def test_a_change_of_what_rows_hold_is_refused_with_its_field(field, value):
    lines = changed(field, value)
    assert len(lines) == 1
    assert lines[0].startswith(f"{field} was ")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("name", "other"),
        ("run_dir", "elsewhere"),
        ("models.v.replicas", 4),
        ("models.v.replicas.max", 9),
        ("models.v.concurrency", 1),
        ("models.v.request_timeout_s", 1),
        ("models.v.max_attempts", 1),
        ("models.v.tensor_parallel", 2),
        ("models.v.node_labels", {"pool": "big"}),
        ("models.v.pipeline_parallel", 2),
        ("models.v.device", "cpu"),
        ("models.v.gpu_memory_fraction", 0.5),
        ("models.v.engine_args", {"enforce_eager": True, "block_size": 32, "max_num_batched_tokens": 512}),
        ("models.o.base_url", "http://other/v1"),
        ("models.o.api_key", "${OTHER}"),
        ("models.o.requests_per_minute", 5),
        ("models.f.start_s", 1),
        ("models.f.faults", {"x": "hang"}),
        ("generate.block_rows", 5),
        ("generate.phases", 2),
        ("generate.max_failed_fraction", 0.5),
        ("generate.on_missing_proposer", "wait"),
        ("ray.address", "local"),
        ("ray.num_cpus", 3),
        ("plan.prompt_tokens", 5),
        ("prompts.over_long", "error"),
        ("prompts.empty", "error"),
        ("prompts.duplicates", "error"),
        ("prompts.bad_rows", "error"),
        ("prompts.sources.0.limit", 5),
        ("prompts.sources.0.sample", 5),
        ("prompts.sources.0.format", "jsonl"),
    ],
)
def test_a_change_of_how_rows_are_made_is_accepted(field, value):
    assert changed(field, value) == []


@pytest.mark.parametrize(
    ("field", "value", "line"),
    [
        ("prompts.sources.0.columns", {"prompt": "x"}, 'prompts.sources[a.jsonl].columns.prompt was null, is "x"'),
        ("prompts.sources.1.columns.prompt", "x", 'prompts.sources[b.jsonl].columns.prompt was "q", is "x"'),
        ("prompts.sources.0.turns", "last", 'prompts.sources[a.jsonl].turns was "all", is "last"'),
        ("prompts.sources.0.name", "n", 'prompts.sources[a.jsonl].name was "", is "n"'),
    ],
)
def test_another_way_of_reading_the_same_source_is_refused(field, value, line):
    assert changed(field, value) == [line]


@pytest.mark.parametrize(
    ("args", "line"),
    [
        ({"rope_scaling": "yarn"}, 'models.v.engine_args.rope_scaling was not there, is "yarn"'),
        ({"enforce_eager": True, "seed": 3}, "models.v.engine_args.seed was not there, is 3"),
        ({"tokenizer": "./other"}, 'models.v.engine_args.tokenizer was not there, is "./other"'),
        (
            {"an_argument_of_a_later_vllm": None},
            "models.v.engine_args.an_argument_of_a_later_vllm was not there, is null",
        ),
    ],
)
def test_an_engine_argument_that_is_not_known_to_leave_rows_alone_is_refused(args, line):
    assert changed("models.v.engine_args", args) == [line]


def test_sources_may_come_go_and_change_places():
    a, b, c = {"path": "a"}, {"path": "b", "turns": "last"}, {"path": "c].columns"}
    assert compare(with_sources(a, b), with_sources(b, a)) == []
    assert compare(with_sources(a), with_sources(c, b, a)) == []
    assert compare(with_sources(a, b, c), with_sources(b)) == []


def test_one_path_read_in_two_ways_is_the_same_in_either_order():
    all_turns, last_turn = {"path": "a"}, {"path": "a", "turns": "last"}
    assert compare(with_sources(all_turns, last_turn), with_sources(last_turn, all_turns)) == []
    lines = compare(with_sources(all_turns), with_sources(all_turns, last_turn))
    assert lines == ['prompts.sources[a].turns was "all", is ["all", "last"]']


def test_the_order_of_models_does_not_matter_but_that_of_proposers_does():
    turned = copy.deepcopy(RECIPE)
    turned["models"] = dict(reversed(turned["models"].items()))
    assert compare(fingerprint(RECIPE), fingerprint(turned)) == []
    turned["mixture"]["layers"][0]["proposers"].reverse()
    assert compare(fingerprint(RECIPE), fingerprint(turned))[0].startswith("mixture.layers.0.proposers.0.model was")


def test_added_and_removed_fields_are_told():
    old, new = {"a": "1", "b": "2"}, {"b": "2", "c": '"x"'}
    assert compare(old, new) == ["a was 1, is no longer there", 'c was not there, is "x"']


def test_an_added_proposer_and_another_engine_are_refused():
    assert 'mixture.layers.0.proposers.2.model was not there, is "f"' in compare(
        fingerprint(RECIPE),
        fingerprint(
            RECIPE
            | {
                "mixture": {
                    "layers": [{"proposers": [{"model": "f"}, {"model": "v"}, {"model": "f", "name": "g"}]}],
                    "aggregator": {"model": "o"},
                }
            }
        ),
    )
    assert 'models.v.engine was "vllm", is "fake"' in changed("models.v", {"engine": "fake"})


def test_prompt_versions_are_part_of_it_and_cannot_hide_a_field():
    recipe = Recipe.model_validate(RECIPE)
    lines = compare(rows_fingerprint(recipe, EXTRA), rows_fingerprint(recipe, {"templates.aggregate": "2"}))
    assert lines == ['templates.aggregate was "1", is "2"']
    with pytest.raises(ValueError, match="seed"):
        rows_fingerprint(recipe, {"seed": "1"})


def test_no_secret_and_no_address_is_in_it():
    text = str(fingerprint(RECIPE))
    assert "KEY" not in text
    assert "http" not in text


def test_adapters_decide_the_model_and_trackers_do_not():
    lora = {"rank": 8, "alpha": 16.0, "dropout": 0.1, "targets": ["q_proj"]}
    fields = section_fingerprint(SftConfig.model_validate({"lora": lora, "track": ["wandb"]}))
    assert {field: text for field, text in fields.items() if field.startswith("lora")} == {
        "lora.rank": "8",
        "lora.alpha": "16.0",
        "lora.dropout": "0.1",
        "lora.targets.0": '"q_proj"',
    }
    assert not any(field.startswith("track") for field in fields)


def test_models_that_are_in_no_slot_of_the_mixture_come_and_go():
    spare = {"engine": "fake"}
    assert changed("models.spare", spare) == []
    one, other = (
        fingerprint(RECIPE | {"models": RECIPE["models"] | {"spare": {**spare, "completion_tokens": n}}})
        for n in (1, 2)
    )
    assert compare(one, other) == []
