"""Sampling and judging in an object store leave what they leave on a disk."""

from pathlib import Path

import pytest

from moaa_ray.data import publish
from moaa_ray.data.store import open_store
from moaa_ray.generation.stage import generate
from moaa_ray.loading import load_preference, load_recipe
from moaa_ray.preference.judge import judge
from moaa_ray.preference.sample import sample
from tests.generation import runs, servers

pytestmark = pytest.mark.slow

RECIPE = """
name: stored
prompts: {sources: [{path: prompts.jsonl}]}
models:
  a: {engine: fake}
  student: {engine: fake, completion_tokens: 12, length_sigma: 0.8}
  rule: {engine: rule, function: longest}
mixture: {layers: [{proposers: [{model: a}]}], aggregator: {model: a}}
sample: {rows: 20}
judges:
  rule: {kind: score, model: rule}
ray: {address: local}
"""


@pytest.mark.long
def test_candidates_and_pairs_on_s3_are_the_bytes_of_local_ones(tmp_path: Path):
    pytest.importorskip("moto.server", reason="moto serves S3 on this machine")
    runs.write_prompts(tmp_path / "prompts.jsonl", 30)
    path = tmp_path / "recipe.yaml"
    path.write_text(RECIPE, encoding="utf-8")
    places = [str(tmp_path / "run"), "s3://bucket/runs/one"]
    with servers.s3_bucket("bucket"):
        for place in places:
            where = [f"run_dir={place}"]
            generate(load_recipe(path, where))
            assert sample(load_preference(path, where)).statuses == {"ok": 20}
            assert judge(load_preference(path, where)).pairs.num_pairs == 20
        local, remote = map(open_store, places)
        for folder in ("candidates", "pairs"):
            bytes_of = [
                [store.read(f"{folder}/{shard.name}") for shard in publish.read_manifest(store, folder).shards]
                for store in (local, remote)
            ]
            assert bytes_of[0] == bytes_of[1], folder
        assert remote.exists("judges/rule/judgments/_manifest.json")
