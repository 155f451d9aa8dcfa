import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from moaa_ray.data import schemas
from moaa_ray.data.schema_check import check_schema
from moaa_ray.errors import DataError
from moaa_ray.types import Completion, Failure, Message, Proposal, Row

PROPOSAL = Proposal(
    turn=0,
    layer=1,
    proposer="qwen",
    model="Qwen/Qwen3-8B",
    revision="abc",
    completion="Berlin",
    finish_reason="stop",
    prompt_tokens=12,
    completion_tokens=1,
    used=True,
    error="",
)
ROW = Row(
    id="r1",
    source="demo",
    messages=(Message(role="user", content="Capital of Germany?"),),
    turn=1,
    later=("And of France?",),
    answers={
        "layer0.qwen": (
            Completion(text="Berlin", finish_reason="stop", prompt_tokens=12, completion_tokens=1, flags=("cut",)),
            Failure(reason="timeout", detail="600 s", retryable=True),
        ),
        "aggregator": (),
    },
    proposals=(PROPOSAL,),
    status="open",
    flags=("x",),
)
PASSES = ("layer0.qwen", "layer1.qwen", "aggregator")


def prompts_table() -> pa.Table:
    return pa.Table.from_pylist(
        [{"id": "a", "source": "s", "messages": [{"role": "user", "content": "hi"}]}], schema=schemas.PROMPTS
    )


@pytest.mark.parametrize(
    ("schema", "name"),
    [
        (schemas.PROMPTS, "prompts/1"),
        (schemas.SFT, "sft/1"),
        (schemas.FAILURES, "failures/1"),
        (schemas.work_schema(PASSES), "work/3"),
    ],
)
def test_every_schema_carries_its_name_and_version(schema, name):
    assert schema.metadata == {b"moaa_ray.schema": name.encode()}


def test_a_schema_survives_parquet_and_is_accepted_again(tmp_path):
    pq.write_table(prompts_table(), tmp_path / "p.parquet")
    check_schema(pq.read_table(tmp_path / "p.parquet"), schemas.PROMPTS)
    check_schema(pq.read_schema(tmp_path / "p.parquet"), schemas.PROMPTS)


def test_a_row_comes_back_from_parquet_as_it_was(tmp_path):
    schema = schemas.work_schema(PASSES)
    record = schemas.row_record(ROW, pass_names=PASSES)
    pq.write_table(pa.Table.from_pylist([record], schema=schema), tmp_path / "w.parquet")
    (read,) = pq.read_table(tmp_path / "w.parquet").to_pylist()
    assert read["a.layer1.qwen"] is None
    assert schemas.row_from(read) == ROW


def test_a_work_record_has_exactly_the_columns_of_its_schema():
    assert list(schemas.row_record(ROW, pass_names=PASSES)) == schemas.work_schema(PASSES).names


def test_an_answer_without_a_column_is_not_lost_silently():
    with pytest.raises(AssertionError, match="aggregator"):
        schemas.row_record(ROW, pass_names=PASSES[:1])


def test_a_completion_of_empty_text_stays_a_completion():
    empty = Completion(text="", finish_reason="stop", prompt_tokens=1, completion_tokens=0)
    assert schemas.answer_from(schemas.answer_record(empty)) == empty


def test_the_logprobs_of_a_completion_stay_with_it():
    judged = Completion(
        text="m",
        finish_reason="length",
        prompt_tokens=9,
        completion_tokens=1,
        first_logprobs=(("m", -0.1), ("M", -2.4)),
    )
    assert schemas.answer_from(schemas.answer_record(judged)) == judged


def test_a_failure_with_an_empty_reason_stays_a_failure():
    failure = Failure(reason="", retryable=False)
    assert schemas.answer_from(schemas.answer_record(failure)) == failure


def test_another_schema_is_refused_by_name():
    with pytest.raises(DataError, match=r"x\.parquet holds schema 'prompts/1', where 'sft/1' is expected"):
        check_schema(prompts_table(), schemas.SFT, where="x.parquet")


def test_another_version_is_refused_and_the_message_says_what_to_do():
    newer = prompts_table().replace_schema_metadata({schemas.SCHEMA_KEY: b"prompts/2"})
    with pytest.raises(DataError, match=r"'prompts/2'.*reads 'prompts/1'; go on with the version that wrote it"):
        check_schema(newer, schemas.PROMPTS)


@pytest.mark.parametrize("metadata", [None, {b"pandas": b"{}"}])
def test_a_file_of_another_program_is_refused(metadata):
    with pytest.raises(DataError, match="no moaa_ray schema in its metadata, where 'prompts/1' is expected"):
        check_schema(prompts_table().replace_schema_metadata(metadata), schemas.PROMPTS)


def test_a_schema_name_that_is_not_text_is_refused():
    odd = prompts_table().replace_schema_metadata({schemas.SCHEMA_KEY: b"\xff\xfe"})
    with pytest.raises(DataError, match="holds schema"):
        check_schema(odd, schemas.PROMPTS)


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        ({"id": pa.string(), "source": pa.string()}, r"missing \['messages'\]"),
        ({"id": pa.int64(), "source": pa.string(), "messages": schemas.MESSAGES}, "id is int64 instead of string"),
        ({"source": pa.string(), "id": pa.string(), "messages": schemas.MESSAGES}, r"the order is \['source', 'id'"),
    ],
)
def test_a_right_name_over_wrong_columns_is_refused_and_the_difference_said(columns, said):
    lying = pa.schema(list(columns.items()), metadata=schemas.PROMPTS.metadata)
    with pytest.raises(DataError, match=said):
        check_schema(lying, schemas.PROMPTS)


def test_a_work_file_of_a_run_with_other_passes_is_refused():
    with pytest.raises(DataError, match=r"missing \['a.two'\]; not expected \['a.one'\]"):
        check_schema(schemas.work_schema(["one"]), schemas.work_schema(["two"]))
