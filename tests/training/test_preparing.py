"""One chunk of a dataset becomes units: every row is counted, and one that is refused can be found."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

from moaa_ray.data.chunks import find_chunks
from moaa_ray.data.locations import find_files
from moaa_ray.data.units import UnitSettings
from moaa_ray.training.preparing import ChunkResult, ChunkTask, prepare_chunk
from tests.training.jobs import make_student


def talk(answer):
    return [{"role": "user", "content": "Hi?"}, {"role": "assistant", "content": answer}]


@pytest.mark.parametrize(("kind", "columns"), [("sft", ["finish_reason"]), ("dpo", ["chosen_finish_reason"])])
def test_columns_that_a_dataset_need_not_have_are_read_where_it_has_them(tmp_path, kind, columns):
    """A completion that was cut ends its document: without <|im_end|> and the newline."""
    make_student(tmp_path / "student")
    row = {"messages": talk("Yes."), "prompt": "Hi?", "chosen": "Yes.", "rejected": "No."}
    num_tokens = []
    for reason in ("stop", "length"):
        table = pa.Table.from_pylist([row | dict.fromkeys(columns, reason)])
        pq.write_table(table, tmp_path / f"{reason}.parquet")
        files = find_files(f"{reason}.parquet", field="data.0.path", base_dir=str(tmp_path))
        num_tokens.append(prepare_chunk(task_of(tmp_path, kind, files, find_chunks(files, chunk_rows=2)[0])).num_tokens)
    assert num_tokens[0] - num_tokens[1] == 2


@pytest.mark.parametrize("kind", ["sft", "dpo"])
def test_tools_that_a_parquet_file_offers_are_read_and_refused(tmp_path, kind):
    make_student(tmp_path / "student")
    row = {"messages": talk("Yes."), "prompt": "Hi?", "chosen": "Yes.", "rejected": "No.", "tools": '[{"name": "f"}]'}
    pq.write_table(pa.Table.from_pylist([row]), tmp_path / "rows.parquet")
    files = find_files("rows.parquet", field="data.0.path", base_dir=str(tmp_path))
    found = prepare_chunk(task_of(tmp_path, kind, files, find_chunks(files, chunk_rows=2)[0]))
    assert (found.num_units, found.dropped) == (0, {"tools": 1})


def task_of(folder, stage, files, chunk) -> ChunkTask:
    return ChunkTask(
        stage=stage, run_uri=str(folder / "run"), folder="units", files=files, chunk=chunk, rows=None,
        tokenizer=str(folder / "student"), revision="", chat_template="",
        settings=UnitSettings(max_tokens=64, document_tokens=64, over_long="drop", validation_fraction=0.0),
    )  # fmt: skip


def test_a_refused_row_is_told_by_its_id_or_by_file_and_row(tmp_path):
    make_student(tmp_path / "student")
    rows = [{"messages": talk("Yes.")}, {"messages": talk(" ")}, "no object", {"id": 7, "messages": talk(None)}]
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    files = find_files("rows.jsonl", field="data.0.path", base_dir=str(tmp_path))
    found = []
    for chunk in find_chunks(files, chunk_rows=2):
        found.append(ChunkResult.from_json(prepare_chunk(task_of(tmp_path, "sft", files, chunk)).to_json()))
    assert [(one.num_rows, one.num_units, one.dropped.total()) for one in found] == [(2, 1, 1), (2, 0, 2)]
    refused = [(place, rule) for one in found for place, rule, _ in one.bad]
    assert refused == [(f"{path}:2", "empty_completion"), (f"{path}:3", "not_object"), ("7", "wrong_type")]
