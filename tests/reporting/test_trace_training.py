"""One prompt in a training stage. Units are written by the package; which step takes which is asked of its plan."""

import json

import numpy as np
import pyarrow as pa
import pytest

from moaa_ray.core.batches import BatchPlan, Source
from moaa_ray.data import schemas
from moaa_ray.data.documents import Document
from moaa_ray.data.store import Store, open_store
from moaa_ray.data.unit_store import finish, write_chunk
from moaa_ray.data.units import Unit
from moaa_ray.errors import DataError
from moaa_ray.generation.results import write_failures
from moaa_ray.reporting.layout import Layout
from moaa_ray.reporting.trace_training import read_training, training_part
from tests.reporting.runs import failure, put, user

FINGERPRINT = {"epochs": "2", "batch": "2", "seed": "7", "data.0": "aaaa", "data.0.taken": "weight 1.0, epochs None",
               "student": "ab" * 20}  # fmt: skip
PLAN = BatchPlan(sources=(Source(5),), batch=2, epochs=2, seed=7)


def pack(*ids: str) -> Unit:
    document = Document(tokens=np.arange(4, dtype=np.int32), counts=np.ones(4, bool))
    return Unit(ids=ids, documents=(document,) * len(ids))


@pytest.fixture
def store(tmp_path) -> Store:
    """Six rows of RUN/sft: five packs in two chunks, one row held out, one refused, and the metrics of five steps."""
    store = open_store(str(tmp_path))
    rows = [{"id": f"r{n}", "source": "s", "messages": [*user("?"), {"role": "assistant", "content": "!"}],
             "proposals": [], "flags": []} for n in range(9)]  # fmt: skip
    put(store, "sft", schemas.SFT, rows)
    folder = "work/sft/units/aaaa"
    write_chunk(store, folder, "0000000000", [pack("r1", "r0"), pack("r2"), pack("r3")])
    write_chunk(store, folder, "0000000004", [pack("r4"), pack("r6", "r5")])
    write_chunk(store, f"{folder}-validation", "0000000000", [])
    write_chunk(store, f"{folder}-validation", "0000000004", [pack("r7")])
    for name in (folder, f"{folder}-validation"):
        finish(store, name, {"path": f"{store.uri}/sft", "rows": 9, "dropped": {"over_long": 1}})
    refused = failure("r8", status="dropped", reason="over_long", detail="900 tokens, max_tokens is 400", messages=[])
    write_failures(store, "sft-aaaa", pa.Table.from_pylist([refused], schema=schemas.FAILURES))
    return store


def train(store: Store, *, steps: int, checkpoints: tuple[int, ...] = ()) -> None:
    record = {"summary": {"last": {"step": steps - 1}, "best_validation": {"step": 1}}, "fingerprint": FINGERPRINT}
    store.put("metrics/sft.json", json.dumps(record).encode())
    store.put("models/sft/config.json", b"{}")
    for step in checkpoints:
        save(store, step)


def save(store: Store, step: int) -> None:
    store.put(f"checkpoints/sft/step-{step:08d}/complete.json", json.dumps({"fingerprint": FINGERPRINT}).encode())


def told(store: Store, row_id: str, *, stage: str = "sft") -> str:
    out = Layout(is_full=False)
    training_part(store, stage, row_id, out)
    return out.text()


@pytest.mark.parametrize(("row_id", "unit"), [("r0", 0), ("r3", 2), ("r5", 4)])
def test_the_steps_are_those_of_the_batch_plan_and_checkpoints_say_how_often_they_saw_it(store, row_id, unit):
    train(store, steps=5, checkpoints=(2, 5))
    steps = [step + 1 for step in range(5) if unit in PLAN.units_of(step)]
    text = told(store, row_id)
    assert f"in the training part: pack {unit} of 5" in text
    assert f"trained on in step {', '.join(map(str, steps))}, counted from 1" in text
    for step in (2, 5):
        seen = sum(one <= step for one in steps)
        expected = f"saw it {seen} x" if seen else "had not seen it yet"
        assert f"checkpoints/sft/step-{step:08d}: {expected}" in text
    assert "models/sft is there; 5 steps done, best validation after step 2" in text
    assert "student abababababab, data.0 aaaa, batch 2, epochs 2, seed 7" in text


def test_a_pack_names_how_many_rows_are_with_it(store):
    train(store, steps=5)
    assert "pack 0 of 5 with 1 other rows; dataset aaaa" in told(store, "r1")


def test_a_prompt_that_is_held_out_is_in_no_step(store):
    train(store, steps=5)
    text = told(store, "r7")
    assert "held out for validation: pack 0 of 1" in text
    assert "trained on" not in text


def test_a_row_that_training_refused_has_its_reason(store):
    train(store, steps=5)
    assert "dropped: over_long: 900 tokens, max_tokens is 400; dataset aaaa" in told(store, "r8")


@pytest.mark.parametrize("path", ["metrics/sft.json", "work/sft/units/aaaa/0000000000.arrow"])
def test_a_damaged_file_of_the_stage_is_named(store, path):
    train(store, steps=5)
    assert store.exists(path)
    store.put(path, b"")
    with pytest.raises(DataError, match=f"{path}: damaged .*; restore it, or run the stage again"):
        told(store, "r3")


def test_before_the_end_the_newest_checkpoint_says_what_was_done(store):
    save(store, 1)
    save(store, 3)
    assert read_training(store, "sft").num_done == 3
    text = told(store, "r3")
    assert "TRAINING sft   3 steps done, not finished" in text
    assert "models/sft" not in text


def test_before_the_first_checkpoint_the_prepared_data_is_known(store):
    text = told(store, "r3")
    assert "TRAINING sft   data prepared, not begun" in text
    assert "in the training part: pack 2 of 5" in text


def test_what_training_never_had_is_said_and_a_stage_that_was_not_run_is_left_out(store):
    train(store, steps=5)
    assert told(store, "r99") == "TRAINING sft   it did not have this prompt"
    assert told(store, "r3", stage="dpo") == ""
    assert not training_part(store, "sft", "r99", Layout(is_full=False))


def test_data_from_elsewhere_is_searched_as_a_whole(store):
    for name in ("work/sft/units/aaaa", "work/sft/units/aaaa-validation"):
        finish(store, name, {"path": "/other/data", "rows": 9, "dropped": {}})
    train(store, steps=5)
    assert "pack 4 of 5" in told(store, "r6")


def test_a_model_that_was_removed_is_said_to_be(store):
    train(store, steps=5)
    store.delete_folder("models/sft")
    assert "models/sft is no longer there" in told(store, "r3")
