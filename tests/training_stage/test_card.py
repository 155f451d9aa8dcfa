"""The card of an exported model names what the model was really made from."""

import hashlib
import json
from pathlib import Path

import pyarrow as pa
import pytest
import yaml

from moaa_ray.data import commit, publish, schemas
from moaa_ray.data.store import open_store
from moaa_ray.data.student_files import digest_of_model
from moaa_ray.loading import load_training
from moaa_ray.training_stage.card import card_numbers, model_card
from moaa_ray.training_stage.datasets import find_datasets
from moaa_ray.training_stage.students import student_of
from tests.settings.test_checks import model_folder


def card(folder: Path, stage: str, *, fingerprint: str = "", **dpo) -> str:
    """Of a recipe whose SFT trains on its own run's data and whose DPO trains on pairs.jsonl."""
    pairs = {"prompt": "a", "chosen": "b", "rejected": "c"}
    (folder / "pairs.jsonl").write_text(json.dumps(pairs) + "\n")
    recipe = {"name": "r", "run_dir": str(folder / "run"), "student": {"model": "./student"}}
    recipe["dpo"] = {"data": [{"path": "pairs.jsonl"}], **dpo}
    (folder / "r.yaml").write_text(yaml.safe_dump(recipe))
    loaded = load_training(folder / "r.yaml")
    config = loaded.recipe.sft if stage == "sft" else loaded.recipe.dpo
    student = student_of(loaded, stage)
    store = open_store(loaded.run_dir)
    datasets = find_datasets(store, stage, config, student, seed=0, base_dir=loaded.base_dir)
    return model_card(loaded, stage, student, datasets, {"learning_rate": fingerprint})


def publish_sft(folder: Path) -> None:
    messages = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}]
    row = {"id": "a", "source": "s", "messages": messages, "proposals": [], "flags": []}
    store, table = open_store(str(folder / "run")), pa.Table.from_pylist([row], schema=schemas.SFT)
    publish.publish(store, commit.take_epoch(store, {}), "sft", [table], schemas.SFT, 10, {"made_with": "x"})


def test_a_card_of_sft_names_the_student_and_the_manifest_of_its_data(tmp_path):
    student = model_folder(tmp_path / "student")
    publish_sft(tmp_path)
    text = card(tmp_path, "sft")
    manifest = hashlib.sha256((tmp_path / "run/sft/_manifest.json").read_bytes()).hexdigest()
    assert f"* started from: `{student}`, hash of its files `{digest_of_model(str(student))}`\n" in text
    assert f"* data: `{tmp_path}/run/sft`, SHA-256 of its _manifest.json `{manifest}`\n" in text
    assert 'base_model: "./student"' in text


def test_a_card_of_dpo_names_the_model_that_sft_left_or_the_one_that_the_recipe_names(tmp_path):
    model_folder(tmp_path / "student")
    left = model_folder(tmp_path / "run/models/sft", config={"max_position_embeddings": 77})
    text = card(tmp_path, "dpo")
    assert f"* started from: `{left}`, hash of its files `{digest_of_model(str(left))}`\n" in text
    assert "* data: `pairs.jsonl`, hash of its files `" in text
    assert 'base_model: "./student"' in text

    other = model_folder(tmp_path / "other", config={"max_position_embeddings": 78})
    text = card(tmp_path, "dpo", student="./other")
    assert f"* started from: `{other}`, hash of its files `{digest_of_model(str(other))}`\n" in text
    assert 'base_model: "./other"' in text
    assert card(tmp_path, "dpo", fingerprint="1") != card(tmp_path, "dpo", fingerprint="2")


def test_a_card_says_what_was_taken_of_a_dataset(tmp_path):
    model_folder(tmp_path / "student")
    model_folder(tmp_path / "run/models/sft")
    data = [{"path": "pairs.jsonl", "rows": 1, "weight": 0.5}, {"path": "pairs.jsonl", "epochs": 2}]
    text = card(tmp_path, "dpo", data=data)
    assert "* data: `pairs.jsonl` (rows: 1, weight: 0.5), hash of its files `" in text
    assert "* data: `pairs.jsonl` (epochs: 2), hash of its files `" in text


def line(step: int, **more: float) -> dict:
    return {"step": step, "num_steps": 3, "time": 1.7e9, "loss": 0.5 + step, **more}


@pytest.mark.parametrize("export", ["last", "best"])
def test_a_card_ends_with_the_metrics_of_the_step_that_was_exported(export):
    lines = [line(0), line(1, validation_loss=0.25), line(2, validation_loss=0.75)]
    best = {"step": 1, "validation_loss": 0.25}
    text = card_numbers(lines, best, export=export, best_by="loss")
    last, chosen = "| loss | 2.5 |\n| validation_loss | 0.75 |\n", "| loss | 1.5 |\n| validation_loss | 0.25 |\n"
    head = "\n\n| metric | value |\n|---|---|\n"
    if export == "last":
        assert text.startswith(f"\n## Exported: the last, step 3 of 3{head}{last}")
        assert text.endswith(f"\n## Best validation, by validation_loss: step 2{head}| validation_loss | 0.25 |\n")
    else:
        assert text == f"\n## Exported: the best by validation_loss, step 2 of 3{head}{chosen}"
    assert "Best validation" not in card_numbers(lines[:1], {}, export="last", best_by="loss")
