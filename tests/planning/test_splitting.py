"""Which split `moaa plan` chooses, and that the pool that runs gets the same."""

from pathlib import Path

import pytest

from moaa_ray.core.packing_gpus import Cluster, Node
from moaa_ray.errors import ConfigError
from moaa_ray.lines.mixture import plan_generate
from moaa_ray.loading import load_recipe
from moaa_ray.planning.cluster import parse_cluster
from moaa_ray.planning.planner import StagePlan
from moaa_ray.planning.text import render_plan
from moaa_ray.recipe import Recipe
from moaa_ray.settings.models import VllmModel

BIG = {"engine": "vllm", "model": "meta-llama/Llama-3.1-70B-Instruct", "context_window": 8192}
SMALL = {"engine": "vllm", "model": "meta-llama/Llama-3.1-8B-Instruct", "context_window": 8192}


def planned(model: dict, cluster: Cluster, rows: int = 10_000, **more) -> StagePlan:
    slot = {"model": "m", "max_tokens": 2048}
    recipe = Recipe.model_validate(
        {"name": "r", "prompts": {"sources": [{"path": "p.jsonl"}]}, "models": {"m": model}}
        | {"mixture": {"layers": [{"proposers": [slot]}], "aggregator": slot}}
        | more
    )
    return plan_generate(recipe, cluster, rows)


def split(plan: StagePlan, name: str = "m") -> tuple[int, int]:
    model = plan.models[name]
    assert isinstance(model, VllmModel)
    return model.split


@pytest.mark.parametrize(
    ("model", "cluster", "expected"),
    [
        (SMALL, "gpus=8,gpu=H100", (1, 1)),
        (BIG, "gpus=8,gpu=H100", (4, 1)),
        (BIG, "gpus=8,gpu=H200", (2, 1)),
        ({**BIG, "quantization": "fp8"}, "gpus=8,gpu=H200", (1, 1)),
        (BIG, "cpus=64", (1, 1)),
        ({**BIG, "device": "cpu"}, "gpus=8,gpu=H100", (1, 1)),
        ({"engine": "vllm", "model": "someone/mamba"}, "gpus=8,gpu=H100", (1, 1)),
        (BIG, "gpus=16,gpu=T4,nodes=4", (4, 3)),
        ({**BIG, "pipeline_parallel": 2}, "gpus=8,gpu=H100", (2, 2)),
    ],
)
def test_the_split_that_nobody_names_is_chosen(model, cluster, expected):
    """On T4s of 12.7 GB 143.8 GB take 12 GPUs: three nodes of 4."""
    assert split(planned(model, parse_cluster(cluster))) == expected


def test_an_explicit_number_is_obeyed():
    assert split(planned({**BIG, "tensor_parallel": 8}, parse_cluster("gpus=8,gpu=H100"))) == (8, 1)


def test_an_explicit_number_that_is_too_small_is_refused_with_the_one_that_fits():
    with pytest.raises(ConfigError, match=r"models.m: 141\.1 GB of weights .* set tensor_parallel: 4"):
        planned({**BIG, "tensor_parallel": 2}, parse_cluster("gpus=8,gpu=H100"))


@pytest.mark.parametrize(("degree", "cluster"), [(3, "gpus=3,gpu=H200"), (6, "cpus=64")])
def test_an_explicit_number_that_does_not_divide_the_heads_is_refused_with_those_that_do(degree, cluster):
    """64 heads, 8 KV heads, a width of 28,672 = 2^12 x 7."""
    with pytest.raises(ConfigError) as refused:
        planned({**BIG, "tensor_parallel": degree}, parse_cluster(cluster))
    text = str(refused.value)
    assert text.startswith(f"models.m.tensor_parallel = {degree}: every GPU gets as many of the 64 attention heads")
    assert f"which {degree} does not divide; take one of 1, 2, 4{', 8' * (degree == 6)}, or auto" in text


def test_layers_that_are_split_between_nodes_are_said_to_wait_for_the_network():
    one_a_node = planned({**BIG, "tensor_parallel": 16}, parse_cluster("gpus=16,gpu=H100,nodes=16"))
    (note,) = (note for note in one_a_node.notes if "network" in note)
    assert note.startswith("m: tensor_parallel 16 is more than a node's 1 GPU, so every layer waits")
    assert "pipeline_parallel over the nodes, with tensor_parallel of at most 1" in note
    on_one = planned({**BIG, "tensor_parallel": 8}, parse_cluster("gpus=16,gpu=H100"))
    assert not any("network" in note for note in on_one.notes)


def test_a_number_that_is_too_small_for_a_cluster_that_has_no_more_says_what_it_lacks():
    with pytest.raises(ConfigError, match="8 of them would hold it, and there is 1: add nodes"):
        planned({**BIG, "tensor_parallel": 4}, parse_cluster("gpus=1,gpu=L4"))


def test_where_nodes_cannot_be_told_apart_every_engine_must_fit_on_the_weakest_type():
    mixed = Cluster(
        nodes=tuple(Node(num_gpus=8, num_cpus=64, gpu=gpu, labels=frozenset()) for gpu in ("H200", "A100-80G"))
    )
    assert split(planned(BIG, mixed)) == (4, 1)
    with pytest.raises(ConfigError) as refused:
        planned({**BIG, "tensor_parallel": 2}, mixed)
    assert "but 2 x A100-80G have 143.2 GB" in str(refused.value)
    assert (
        "The smallest of several GPU types (A100-80G, H200) counts; give the nodes with others a label, and name"
        in (str(refused.value))
    )


def test_the_smallest_split_is_taken_where_the_faster_one_does_not_fit_with_the_others():
    """The 110B in FP8 fits on 2 H100s and is faster per GPU on 4; two engines on 4 GPUs have 2 each."""
    model = {
        "engine": "vllm", "model": "Qwen/Qwen1.5-110B-Chat", "quantization": "fp8", "concurrency": 256,
        "context_window": 32768,
    }  # fmt: skip
    assert split(planned({**model, "replicas": 1}, parse_cluster("gpus=4,gpu=H100"))) == (4, 1)
    assert split(planned({**model, "replicas": 2}, parse_cluster("gpus=4,gpu=H100"))) == (2, 1)


def test_a_model_too_big_for_the_cluster_is_refused_with_the_sum():
    with pytest.raises(ConfigError, match=r"models.m: 141\.1 GB .* the 4 x T4 of the largest nodes have 50\.9 GB"):
        planned(BIG, parse_cluster("gpus=4,gpu=T4"))


def test_an_unknown_size_is_one_gpu_and_said():
    notes = planned({"engine": "vllm", "model": "someone/mamba"}, parse_cluster("gpus=8,gpu=H100")).notes
    assert any("m: tensor_parallel is 1, as its size is not known" in note for note in notes)


def test_the_text_says_what_was_chosen_and_what_the_recipe_names():
    text = render_plan(planned(BIG, parse_cluster("gpus=8,gpu=H100")))
    assert "  l0.m+aggregate: tensor_parallel 4 (chosen); speed: 45% of the roofline" in text
    text = render_plan(planned({**BIG, "tensor_parallel": 8}, parse_cluster("gpus=8,gpu=H100")))
    assert "  l0.m+aggregate: tensor_parallel 8; speed" in text


def test_the_papers_recipe_would_be_split_as_its_author_did():
    """Without its numbers, on its own cluster: 4 GPUs for the 110B, on which 2 would hold few prompts at once."""
    path = Path(__file__).parents[2] / "jobs" / "paper_stage1_64gpu.yaml"
    plain = load_recipe(path).recipe
    auto = {
        name: model.model_copy(update={"tensor_parallel": "auto"})
        for name, model in plain.models.items()
        if isinstance(model, VllmModel)
    }
    plan = plan_generate(plain.model_copy(update={"models": auto}), parse_cluster("gpus=64,gpu=H100"), 66_135)
    assert split(plan, "qwen1.5-110b") == (4, 1)
    assert split(plan, "gemma-2-27b") == (1, 1)
