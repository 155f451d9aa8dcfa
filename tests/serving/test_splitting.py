"""The engines of an offer on GPUs that are not there: only the arithmetic runs."""

from pathlib import Path

import pytest

from moaa_ray.errors import ConfigError
from moaa_ray.loading import load_preference
from moaa_ray.planning.cluster import parse_cluster
from moaa_ray.recipe import PlanConfig
from moaa_ray.serving.offer import Offer, offer_of
from moaa_ray.serving.splitting import check_gpus, split_offer

RECIPE = """
name: run
prompts: {sources: [{path: prompts.jsonl}]}
models:
  big: {engine: vllm, model: meta-llama/Llama-3.1-70B-Instruct, context_window: 8192}
  small: {engine: vllm, model: meta-llama/Llama-3.1-8B-Instruct, context_window: 8192}
mixture: {layers: [{proposers: [{model: small, max_tokens: 512}]}], aggregator: {model: big, max_tokens: 512}}
"""
ON_GPU = {"big": True, "small": True}


def offer(folder: Path) -> Offer:
    (folder / "recipe.yaml").write_text(RECIPE, encoding="utf-8")
    return offer_of(load_preference(folder / "recipe.yaml"))


def test_served_engines_are_split_as_the_planner_would(tmp_path):
    cluster = parse_cluster("gpus=8,gpu=H100")
    split = split_offer(offer(tmp_path), PlanConfig(), cluster)
    assert {name: model.num_gpus for name, model in split.engines.items()} == {"small": 1, "big": 4}
    check_gpus(split, ON_GPU, cluster)


def test_too_few_gpus_for_all_engines_are_told_with_the_sum(tmp_path):
    cluster = parse_cluster("gpus=4,gpu=H100")
    split = split_offer(offer(tmp_path), PlanConfig(), cluster)
    with pytest.raises(ConfigError, match=r"1 \(small\) \+ 4 \(big\) = 5 GPUs, and the cluster has 4"):
        check_gpus(split, ON_GPU, cluster)


def test_an_engine_larger_than_any_node_cannot_be_served(tmp_path):
    cluster = parse_cluster("gpus=8,gpu=H100,nodes=4")
    split = split_offer(offer(tmp_path), PlanConfig(), cluster)
    with pytest.raises(ConfigError, match="one engine of big takes 4 GPUs, and no node has more than 2"):
        check_gpus(split, ON_GPU, cluster)


def test_without_gpus_nothing_is_split(tmp_path):
    split = split_offer(offer(tmp_path), PlanConfig(), parse_cluster("cpus=8"))
    assert {model.num_gpus for model in split.engines.values()} == {1}
