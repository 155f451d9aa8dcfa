"""From sources to prompt rows: columns, messages, every rule, ids, limit and sample, and real files."""

import hashlib
import json
import re
import unicodedata
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moaa_ray.data import schemas
from moaa_ray.data.schema_check import check_schema
from moaa_ray.data.sources import ingest, start_turns
from moaa_ray.errors import ConfigError, DataError
from moaa_ray.settings.prompts import PromptsConfig

ROOT = Path(__file__).parents[2]
REAL = ROOT.parent / "shared" / "data"


def user(text):
    return {"role": "user", "content": text}


def assistant(text):
    return {"role": "assistant", "content": text}


def system(text):
    return {"role": "system", "content": text}


def open_set(folder, *sources, seed=0, **rules):
    config = PromptsConfig.model_validate({"sources": list(sources), **rules})
    return ingest(config, seed=seed, base_dir=str(folder))


def read(folder, *sources, seed=0, **rules):
    """The set and its rows, read to the end."""
    found = open_set(folder, *sources, seed=seed, **rules)
    return found, [row for table in found.batches() for row in table.to_pylist()]


def write(folder, records, name="p.jsonl"):
    """A JSON Lines file; a record that is bytes is a line as it stands."""
    lines = [r if isinstance(r, bytes) else json.dumps(r).encode() for r in records]
    (folder / name).write_bytes(b"".join(line + b"\n" for line in lines))
    return {"path": name}


def messages_of(folder, record, **source):
    (row,) = read(folder, write(folder, [record]) | source)[1]
    return row["messages"]


# ---------------------------------------------------------------- messages and columns


@pytest.mark.parametrize(
    ("record", "messages"),
    [
        ({"prompt": "hi"}, [user("hi")]),
        ({"instruction": "hi"}, [user("hi")]),
        ({"question": "hi", "answer": "no"}, [user("hi")]),
        ({"text": " hi\n"}, [user(" hi\n")]),
        ({"prompt": "hi", "system": "be kind"}, [system("be kind"), user("hi")]),
        ({"prompt": "hi", "system_prompt": "be kind"}, [system("be kind"), user("hi")]),
        ({"prompt": "hi", "system": None}, [user("hi")]),
        ({"prompt": "hi", "system": " "}, [user("hi")]),
        ({"turns": ["one", "two"]}, [user("one"), user("two")]),
        ({"turns": ["one", "two"], "system": "s"}, [system("s"), user("one"), user("two")]),
        ({"turns": '["one", "two"]'}, [user("one"), user("two")]),
        ({"messages": [system("s"), user("q"), assistant("a"), user("r")]},) * 2,
        ({"conversation": [user("q")], "prompt": "other"}, [user("q")]),
        ({"messages": json.dumps([user("q")])}, [user("q")]),
        ({"prompt": [user("q")]}, [user("q")]),
        ({"messages": [{"role": "user", "content": "q", "weight": 1, "name": None}]}, [user("q")]),
        (
            {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]},
            [user("q"), assistant("a")],
        ),
        ({"messages": [{"from": "human", "value": "q", "role": None, "content": None}]}, [user("q")]),
    ],
)
def test_every_usual_form_becomes_messages(tmp_path, record, messages):
    expected = messages["messages"] if isinstance(messages, dict) else messages
    assert messages_of(tmp_path, record) == expected


def test_columns_of_the_recipe_come_before_usual_names(tmp_path):
    record = {"prompt": "no", "q": "yes", "sys": "s", "key": 7, "id": "no"}
    columns = {"prompt": "q", "system": "sys", "id": "key"}
    (row,) = read(tmp_path, write(tmp_path, [record]) | {"columns": columns})[1]
    assert row == {"id": "7", "source": "p", "messages": [system("s"), user("yes")]}


def test_a_column_set_to_nothing_is_not_used(tmp_path):
    source = write(tmp_path, [{"id": "x", "prompt": "q", "system": "s"}]) | {"columns": {"id": "", "system": ""}}
    (row,) = read(tmp_path, source)[1]
    assert row["messages"] == [user("q")]
    assert re.fullmatch("[0-9a-f]{20}", row["id"])


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        ({"prompt": "promt"}, r"sources.0.columns.prompt: has no column 'promt'; did you mean 'prompt'\? it has 'id'"),
        ({"id": "zzz"}, "sources.0.columns.id: has no column 'zzz'; it has 'id', 'prompt', 'turns', 'messages'"),
        ({"prompt": "prompt", "turns": "turns"}, "prompt, turns are set; set one of messages, turns, prompt"),
        ({"messages": "messages", "system": "id"}, "system not beside messages"),
    ],
)
def test_wrong_columns_are_refused_before_any_row_is_read(tmp_path, columns, said):
    source = write(tmp_path, [{"id": "a", "prompt": "q", "turns": [], "messages": []}]) | {"columns": columns}
    with pytest.raises(ConfigError, match=said):
        open_set(tmp_path, source)


def test_a_file_without_any_usual_column_is_refused_with_what_it_has(tmp_path):
    with pytest.raises(ConfigError, match=r"\['a', 'b'\] of .*/p.jsonl is called messages, conversation"):
        open_set(tmp_path, write(tmp_path, [{"a": 1, "b": 2}]))


def test_half_a_prompt_is_never_taken_for_the_whole(tmp_path):
    """Alpaca's instruction and input are one prompt; which of them is wanted alone has to be said."""
    told = {"instruction": "Sum up:", "input": "A long text.", "output": "Short."}
    write(tmp_path, [told])
    with pytest.raises(ConfigError, match=r"^prompts\.sources\.0\.columns: .*`input` beside `instruction`"):
        open_set(tmp_path, {"path": "p.jsonl"})
    assert messages_of(tmp_path, told, columns={"prompt": "instruction"}) == [user("Sum up:")]


def test_rows_of_several_forms_in_one_file_are_each_read_by_their_own(tmp_path):
    records = [{"prompt_id": i, "prompt": f"q{i}", "system": "s"} for i in range(150)]
    records[0] = {"id": "a", "messages": [user("first")]}
    records[1] |= {"messages": None}
    records[149] = {"question": "last"}
    found, rows = read(tmp_path, write(tmp_path, [*records, {"prompt": 5}, {"text": [5]}]))
    assert [row["messages"] for row in rows[:2]] == [[user("first")], [system("s"), user("q1")]]
    assert [row["id"] for row in rows[:3]] == ["a", "1", "2"]
    assert (len(rows), rows[149]["messages"]) == (150, [user("last")])
    assert found.counts["p"].dropped == {"wrong_type": 2}
    assert "column 'prompt': holds int" in found.rejected().to_pylist()[0]["detail"]


def test_a_column_that_the_recipe_names_is_the_only_one_that_is_read(tmp_path):
    source = write(tmp_path, [{"messages": [user("q")]}, {"prompt": "q2"}]) | {"columns": {"messages": "messages"}}
    found, rows = read(tmp_path, source)
    assert [row["messages"] for row in rows] == [[user("q")]]
    assert found.counts["p"].dropped == {"empty": 1}


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_csv_and_parquet_give_the_same_rows_as_json_lines(tmp_path, suffix):
    records = [{"id": "a", "prompt": "eins, zwei"}, {"id": "b", "prompt": "日本\n語"}]
    if suffix == "csv":
        (tmp_path / "q.csv").write_text('id,prompt\na,"eins, zwei"\nb,"日本\n語"\n', encoding="utf-8")
    else:
        pq.write_table(pa.Table.from_pylist(records), tmp_path / "q.parquet")
    jsonl = read(tmp_path, write(tmp_path, records) | {"name": "s"})[1]
    assert read(tmp_path, {"path": f"q.{suffix}", "name": "s"})[1] == jsonl


def test_parquet_conversations_keep_roles_and_ignore_other_fields(tmp_path):
    talk = [{"content": "q", "role": "user", "at": 1.5}, {"content": "a", "role": "assistant", "at": None}]
    pq.write_table(pa.Table.from_pylist([{"conversation": talk, "n": 1}]), tmp_path / "q.parquet")
    (row,) = read(tmp_path, {"path": "q.parquet"})[1]
    assert row["messages"] == [user("q"), assistant("a")]


# ---------------------------------------------------------------- rules for single rows

GOOD = {"id": "good", "messages": [user("q")]}


@pytest.mark.parametrize(
    ("bad", "rule"),
    [
        (b'{"prompt": "\xff"}', "not_utf8"),
        (b"{", "not_json"),
        (b"[1]", "not_object"),
        ({"messages": 5}, "wrong_type"),
        ({"messages": {"role": "user"}}, "wrong_type"),
        ({"messages": "no JSON"}, "wrong_type"),
        ({"messages": "[" * 100_000}, "wrong_type"),
        ({"messages": [[user("q")]]}, "wrong_type"),
        ({"messages": [{"role": "user"}]}, "wrong_type"),
        ({"messages": [{"role": "user", "content": [{"type": "image"}]}]}, "wrong_type"),
        ({"messages": [{"role": ["user"], "content": "x"}]}, "wrong_type"),
        ({"messages": [user("q"), {"role": "tool", "content": "x"}]}, "unknown_role"),
        ({"messages": [user("q"), system("s")]}, "bad_order"),
        ({"messages": [system("s"), system("s"), user("q")]}, "bad_order"),
        ({"messages": [assistant("a"), user("q")]}, "bad_order"),
        ({"messages": [user("q"), assistant("a"), assistant("a")]}, "bad_order"),
        ({"messages": []}, "empty"),
        ({"messages": None}, "empty"),
        ({"other": 1}, "empty"),
        ({"messages": [system("s")]}, "empty"),
        ({"messages": [user(" \n\u3000")]}, "empty"),
        ({"messages": [user("q"), user("")]}, "empty"),
        ({"messages": [user("x" * 1001)]}, "over_long"),
        ({"messages": [user("x" * 500), assistant("x" * 501)]}, "over_long"),
        ({"id": "", "messages": [user("q")]}, "bad_id"),
        ({"id": " ", "messages": [user("q")]}, "bad_id"),
        ({"id": "x" * 513, "messages": [user("q")]}, "bad_id"),
        ({"id": "a\0", "messages": [user("q")]}, "bad_id"),
        ({"id": "\ud800", "messages": [user("q")]}, "bad_id"),
        ({"id": 1.5, "messages": [user("q")]}, "bad_id"),
        ({"id": True, "messages": [user("q")]}, "bad_id"),
        ({"id": 10**50, "messages": [user("q")]}, "bad_id"),
        ({"id": ["x"], "messages": [user("q")]}, "bad_id"),
        (GOOD, "duplicate"),
    ],
)
def test_a_bad_row_is_dropped_counted_and_kept_among_the_rejected(tmp_path, bad, rule):
    found, rows = read(tmp_path, write(tmp_path, [GOOD, bad]), max_chars=1000)
    assert [row["id"] for row in rows] == ["good"]
    counts = found.counts["p"]
    assert (counts.read, counts.kept, dict(counts.dropped)) == (2, 1, {rule: 1})
    (rejected,) = found.rejected().to_pylist()
    assert (rejected["id"], rejected["source"], rejected["status"]) == ("p:0:2", "p", "dropped")
    assert rejected["reason"] == rule
    assert rejected["detail"].startswith(f"{tmp_path}/p.jsonl, line 2: ")
    check_schema(found.rejected(), schemas.FAILURES)


@pytest.mark.parametrize(
    ("bad", "setting"),
    [({"messages": [user(" ")]}, "empty"), ({"messages": [user("x" * 99)]}, "over_long"), (GOOD, "duplicates")],
)
def test_a_rule_set_to_error_stops_at_the_first_row(tmp_path, bad, setting):
    source = write(tmp_path, [GOOD, bad])
    with pytest.raises(DataError, match=rf"p.jsonl, line 2: .*mend the row, or set prompts.{setting} to drop"):
        read(tmp_path, source, max_chars=10, **{setting: "error"})


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        (b'{"prompt": ', r"line 2: Expecting value: .* \(not_json\)"),
        (b"[1]", r"line 2: list instead of an object \(not_object\)"),
        ({"talk": 5}, r"line 2: column 'talk': holds int, not text or a list \(wrong_type\)"),
        ({"talk": [7]}, r"line 2: column 'talk': a message is int; .* \(wrong_type\)"),
        ({"talk": [{"role": "tool", "content": "x"}]}, r"column 'talk': role 'tool'; known are .* \(unknown_role\)"),
        ({"talk": [user("q"), system("s")]}, r"column 'talk': roles in the order user, system \(bad_order\)"),
        ({"talk": [user("q")], "key": ""}, r"column 'key': id '' is no integer .* \(bad_id\)"),
    ],
)
def test_with_bad_rows_set_to_error_the_first_one_stops_with_file_line_column_and_rule(tmp_path, bad, said):
    source = write(tmp_path, [{"key": 1, "talk": [user("q")]}, bad, b"a later one"])
    source |= {"columns": {"messages": "talk", "id": "key"}}
    way_out = "; mend the row, or set prompts.bad_rows to drop"
    with pytest.raises(DataError, match=f"p.jsonl, {said}{way_out}" if said.startswith("line") else said + way_out):
        read(tmp_path, source, bad_rows="error")
    assert len(read(tmp_path, source)[1]) == 1


def test_bad_rows_says_nothing_about_rows_that_have_a_field_of_their_own(tmp_path):
    rows = read(tmp_path, write(tmp_path, [GOOD, GOOD, {"messages": []}]), bad_rows="error")[1]
    assert [row["id"] for row in rows] == ["good"]


def test_a_prompt_of_a_million_characters_is_dropped_by_default_and_kept_when_allowed(tmp_path):
    source = write(tmp_path, [GOOD, {"id": "long", "messages": [user("é" * 1_000_000)]}])
    found, rows = read(tmp_path, source)
    assert [row["id"] for row in rows] == ["good"]
    assert len(found.rejected().to_pylist()[0]["messages"][0]["content"]) == 500
    assert [row["id"] for row in read(tmp_path, source, max_chars=1_000_000)[1]] == ["good", "long"]


def test_nuls_and_lone_surrogates_become_replacement_characters_and_survive_parquet(tmp_path):
    source = write(tmp_path, [b'{"id": "a", "prompt": "x\\u0000y\\ud800z\\ud83d\\ude00"}', {"id": "b", "prompt": "ok"}])
    found, rows = read(tmp_path, source)
    assert rows[0]["messages"] == [user("x\ufffdy\ufffdz😀")]
    assert (found.counts["p"].repaired, found.counts["p"].kept) == (1, 2)
    pq.write_table(pa.Table.from_pylist(rows, schema=schemas.PROMPTS), tmp_path / "out.parquet")
    assert pq.read_table(tmp_path / "out.parquet").to_pylist() == rows


def test_a_source_without_one_usable_row_is_an_error_that_says_which_rules(tmp_path):
    source = write(tmp_path, [{"prompt": " "}, {"prompt": 5}])
    with pytest.raises(
        DataError, match=r"no row can be used; .*'empty': 1, 'wrong_type': 1\}; the first is .*line 1.*prompt"
    ):
        read(tmp_path, source)


def test_an_empty_file_is_an_error_before_anything_is_read(tmp_path):
    with pytest.raises(DataError, match="holds no row"):
        open_set(tmp_path, write(tmp_path, []))


# ---------------------------------------------------------------- ids and duplicates


def test_ids_from_content_are_the_same_in_any_source_and_form(tmp_path):
    write(tmp_path, [{"messages": [system("s"), user("q")]}], "a.jsonl")
    write(tmp_path, [{"prompt": "other"}, {"prompt": "q", "system": "s"}], "b.jsonl")
    found, rows = read(tmp_path, {"path": "a.jsonl"}, {"path": "b.jsonl"})
    assert len(rows) == 2
    assert dict(found.counts["b"].dropped) == {"duplicate": 1}
    assert read(tmp_path, {"path": "b.jsonl", "name": "else"})[1][1]["id"] == rows[0]["id"]
    # Part of the contract: ids must not change from one version to the next. blake2b, 16 bytes, over each role
    # and content with its length before it; the first 20 hex digits.
    parts = [b"system", b"s", b"user", b"q"]
    framed = b"".join(len(part).to_bytes(8, "big") + part for part in parts)
    assert rows[0]["id"] == hashlib.blake2b(framed, digest_size=16).hexdigest()[:20] == "3cf29b3666350a8d6e4a"


def test_a_row_with_a_null_id_gets_one_from_its_content(tmp_path):
    _, rows = read(tmp_path, write(tmp_path, [{"id": "a", "prompt": "q"}, {"id": None, "prompt": "q"}]))
    assert rows[0]["id"] == "a"
    assert re.fullmatch("[0-9a-f]{20}", rows[1]["id"])


def test_given_ids_keep_equal_messages_apart(tmp_path):
    assert len(read(tmp_path, write(tmp_path, [{"id": 1, "prompt": "q"}, {"id": "2", "prompt": "q"}]))[1]) == 2


def test_the_boundaries_of_messages_are_part_of_the_content(tmp_path):
    records = [{"turns": ["ab", "c"]}, {"turns": ["a", "bc"]}, {"turns": ["abc"]}]
    assert len({row["id"] for row in read(tmp_path, write(tmp_path, records))[1]}) == 3


def test_the_same_id_with_other_messages_is_an_error_that_names_both_places(tmp_path):
    write(tmp_path, [{"id": "x", "prompt": "one"}], "a.jsonl")
    write(tmp_path, [{"id": "y", "prompt": "q"}, {"id": "x", "prompt": "two"}], "b.jsonl")
    with pytest.raises(DataError, match=r"b.jsonl, line 2: id 'x' has other messages than at .*a.jsonl, line 1; make"):
        read(tmp_path, {"path": "a.jsonl"}, {"path": "b.jsonl"})


def test_two_sources_of_one_name_are_refused(tmp_path):
    (tmp_path / "sub").mkdir()
    write(tmp_path, [GOOD])
    write(tmp_path / "sub", [GOOD], "p.csv.jsonl")
    with pytest.raises(ConfigError, match="two are called 'p'; give each its own `name`"):
        open_set(tmp_path, {"path": "p.jsonl"}, {"path": "sub/p.csv.jsonl", "name": "p"})


@pytest.mark.parametrize(
    ("path", "name"),
    [("d/my.set.jsonl", "my.set"), ("d", "d"), ("d/", "d"), ("d/*.jsonl", "d"), ("?/*.jsonl", "prompts")],
)
def test_a_source_is_named_after_its_file_or_folder(tmp_path, path, name):
    (tmp_path / "d").mkdir()
    write(tmp_path / "d", [GOOD], "my.set.jsonl")
    assert list(open_set(tmp_path, {"path": path}).turn_modes) == [name]


# ---------------------------------------------------------------- limit and sample

MANY = [{"id": f"r{i}", "prompt": f"question {i}"} for i in range(200)]


def ids_of(folder, *sources, seed=0):
    return [row["id"] for row in read(folder, *sources, seed=seed)[1]]


def test_limit_takes_the_first_rows_as_they_are_read(tmp_path):
    source = write(tmp_path, [b"broken", *MANY]) | {"limit": 3}
    found, rows = read(tmp_path, source)
    assert [row["id"] for row in rows] == ["r0", "r1"]
    assert found.counts["p"].read == 3


def test_a_sample_keeps_the_order_depends_on_the_seed_and_not_on_the_order_of_rows(tmp_path):
    forward = write(tmp_path, MANY, "f.jsonl") | {"sample": 20}
    backward = write(tmp_path, MANY[::-1], "b.jsonl") | {"sample": 20}
    picked = ids_of(tmp_path, forward, seed=1)
    assert len(picked) == 20
    assert picked == sorted(picked, key=lambda row_id: int(row_id[1:]))
    assert ids_of(tmp_path, backward, seed=1) == picked[::-1]
    assert set(ids_of(tmp_path, forward, seed=2)) != set(picked)


def test_a_sample_is_taken_after_limit_and_the_counts_add_up(tmp_path):
    source = write(tmp_path, [*MANY[:30], MANY[0], b"broken", *MANY[30:]]) | {"limit": 50, "sample": 20}
    found, rows = read(tmp_path, source)
    counts = found.counts["p"]
    assert len(rows) == counts.kept == 20
    assert {int(row["id"][1:]) for row in rows} <= set(range(48))
    assert (counts.read, counts.not_sampled, dict(counts.dropped)) == (50, 28, {"duplicate": 1, "not_json": 1})
    assert found.rejected().num_rows == 2


def test_a_sample_larger_than_the_source_takes_all(tmp_path):
    assert len(ids_of(tmp_path, write(tmp_path, MANY) | {"sample": 1000})) == 200


def test_rows_that_were_not_sampled_are_no_duplicates_for_the_next_source(tmp_path):
    write(tmp_path, MANY, "a.jsonl")
    write(tmp_path, MANY, "b.jsonl")
    found, rows = read(tmp_path, {"path": "a.jsonl", "sample": 5}, {"path": "b.jsonl"})
    assert len({row["id"] for row in rows}) == len(rows) == 200
    assert found.counts["b"].dropped["duplicate"] == 5


def test_reading_twice_gives_the_same_rows_and_counts(tmp_path):
    found, rows = read(tmp_path, write(tmp_path, [*MANY, b"broken"]) | {"sample": 7})
    counts = found.counts
    assert [row for table in found.batches() for row in table.to_pylist()] == rows
    assert found.counts == counts
    assert found.rejected().num_rows == 1


def test_batches_are_bounded_and_of_the_prompts_schema(tmp_path):
    found = open_set(tmp_path, write(tmp_path, [{"prompt": f"question {i}"} for i in range(2500)]))
    tables = list(found.batches())
    assert [table.num_rows for table in tables] == [1000, 1000, 500]
    for table in tables:
        check_schema(table, schemas.PROMPTS)


def test_ingest_gives_rows_and_says_how_turns_are_answered(tmp_path):
    write(tmp_path, [GOOD], "a.jsonl")
    write(tmp_path, [{"prompt": "q"}], "b.jsonl")
    sources = [{"path": "a.jsonl", "turns": "last"}, {"path": "b.jsonl"}]
    config = PromptsConfig.model_validate({"sources": sources})
    assert [row.source for row in ingest(config, seed=0, base_dir=str(tmp_path)).rows()] == ["a", "b"]
    assert open_set(tmp_path, *sources).turn_modes == {"a": "last", "b": "all"}


def test_what_is_wrong_with_a_source_is_told_by_the_section_of_the_recipe_it_stands_in(tmp_path):
    config = PromptsConfig.model_validate({"sources": [{"path": "gone.jsonl"}]})
    with pytest.raises(ConfigError, match=r"^sample\.sources\.0\.path"):
        ingest(config, seed=0, base_dir=str(tmp_path), section="sample")


# ---------------------------------------------------------------- turns

TALK = (system("s"), user("1"), assistant("a"), user("2"), user("3"), assistant("b"))


def test_all_turns_start_at_the_first_and_leave_the_assistants_of_the_dataset_out():
    assert start_turns(TALK, "all") == ((system("s"), user("1")), ("2", "3"))


def test_the_last_turn_keeps_everything_before_it_and_nothing_after():
    assert start_turns(TALK, "last") == (TALK[:5], ())


@pytest.mark.parametrize("mode", ["all", "last"])
def test_a_single_turn_is_the_same_in_both_modes(mode):
    assert start_turns([user("q")], mode) == ((user("q"),), ())


# ---------------------------------------------------------------- anything at all

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(), max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["role", "content", "from", "value", "x"]), inner, max_size=3)
    ),
    max_leaves=6,
)
NAMES = ["id", "messages", "conversations", "turns", "prompt", "system", "odd"]
RECORDS = st.dictionaries(st.sampled_from(NAMES), JSON, max_size=4)
TALKS = st.fixed_dictionaries(
    {"messages": st.lists(st.fixed_dictionaries({"role": st.sampled_from(["system", "user", "gpt"]), "content": JSON}))}
)


@settings(max_examples=80)
@given(lines=st.lists(RECORDS.map(json.dumps).map(str.encode) | TALKS.map(json.dumps).map(str.encode) | st.binary()))
def test_whatever_stands_in_the_lines_there_are_rows_that_parquet_can_hold_or_an_error_of_ours(tmp_path_factory, lines):
    folder = tmp_path_factory.mktemp("any")
    try:
        found, rows = read(folder, write(folder, lines))
    except (DataError, ConfigError):
        return
    counts = found.counts["p"]
    assert counts.read == counts.kept + counts.dropped.total()
    assert (len(rows), found.rejected().num_rows) == (counts.kept, counts.dropped.total())
    for row in rows:
        assert any(message["content"].strip() for message in start_turns(row["messages"], "all")[0])


# ---------------------------------------------------------------- our own prompts, real files, a real server


def demo_rows():
    return read(ROOT / "jobs", {"path": "data/prompts.jsonl"})


def test_the_demo_prompts_are_all_usable():
    found, rows = demo_rows()
    assert len(rows) >= 56
    assert not found.counts["prompts"].dropped
    assert not found.counts["prompts"].repaired
    assert [row["id"] for row in rows] == [f"demo-{i:03d}" for i in range(1, len(rows) + 1)]


def test_the_demo_prompts_have_turns_system_prompts_and_a_long_text():
    rows = demo_rows()[1]
    later = [start_turns(row["messages"], "all")[1] for row in rows]
    assert sum(len(turns) == 1 for turns in later) >= 10
    assert sum(row["messages"][0]["role"] == "system" for row in rows) >= 6
    assert max(len(message["content"]) for row in rows for message in row["messages"]) >= 2000
    assert any("<|im_end|>" in message["content"] for row in rows for message in row["messages"])


def test_the_demo_prompts_are_written_in_many_scripts_and_languages():
    texts = [message["content"] for row in demo_rows()[1] for message in row["messages"]]
    scripts = {unicodedata.name(c, "?").split()[0] for text in texts for c in text if c.isalpha()}
    expected = "LATIN CYRILLIC CJK HIRAGANA HANGUL ARABIC DEVANAGARI GREEK HEBREW THAI BENGALI"
    assert set(expected.split()) <= scripts
    words = ["Erkläre", "Rédige", "Explícalo", "Escreva", "Nieleze", "düzelt", "Wyjaśnij", "Viết", "Explain"]
    assert all(any(word in text for text in texts) for word in words)


@pytest.mark.parametrize(
    ("name", "num_rows", "num_turns"),
    [("alpaca_eval_prompts.parquet", 805, 1), ("mt_bench.jsonl", 80, 2), ("arena_hard_v0.1.jsonl", 500, 1)],
)
def test_real_prompt_sets_are_read_whole(name, num_rows, num_turns):
    if not (REAL / name).exists():
        pytest.skip(f"{REAL / name} is not there")
    found, rows = read(REAL, {"path": name})
    assert len(rows) == num_rows
    assert not next(iter(found.counts.values())).dropped
    assert all(len(start_turns(row["messages"], "all")[1]) == num_turns - 1 for row in rows)


@pytest.mark.slow
def test_prompts_are_read_from_s3(tmp_path, monkeypatch):
    boto3 = pytest.importorskip("boto3", reason="boto3 fills the bucket of this test")
    pytest.importorskip("s3fs", reason="s3fs reads s3:// sources")
    server_module = pytest.importorskip("moto.server", reason="moto serves S3 on this machine")
    server = server_module.ThreadedMotoServer(port=0)
    server.start()
    try:
        host, port = server.get_host_and_port()
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            monkeypatch.setenv(name, "testing")
        monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        client = boto3.client("s3")
        client.create_bucket(Bucket="prompts")
        write(tmp_path, MANY)
        pq.write_table(pa.Table.from_pylist(MANY), tmp_path / "p.parquet")
        for name in ("p.jsonl", "p.parquet"):
            client.upload_file(str(tmp_path / name), "prompts", f"set/{name}")
        expected = ids_of(tmp_path, {"path": "p.jsonl"})
        for path in ("s3://prompts/set/p.jsonl", "s3://prompts/set/*.jsonl", "s3://prompts/set/p.parquet"):
            assert ids_of(tmp_path, {"path": path}) == expected
        with pytest.raises(ConfigError, match="no such file, folder or match"):
            open_set(tmp_path, {"path": "s3://prompts/set/missing.jsonl"})
        with pytest.raises(ConfigError, match=r"several|one format"):
            open_set(tmp_path, {"path": "s3://prompts/set"})
    finally:
        server.stop()
