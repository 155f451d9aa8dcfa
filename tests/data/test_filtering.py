"""Rows through the recipe's filters: every rule, their order, duplicates, evaluation files, and real text."""

import json
import sys
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from moaa_ray.data.filtering import Filter
from moaa_ray.errors import ConfigError, DataError
from moaa_ray.settings.filters import FiltersConfig

DATA = Path(__file__).parents[3] / "shared" / "data"
PROMPTS, COMPLETIONS = DATA / "alpaca_eval_prompts.parquet", DATA / "alpaca_eval_completions.parquet"
MT_BENCH = DATA / "mt_bench.jsonl"
needs_real_text = pytest.mark.skipif(
    not (PROMPTS.exists() and COMPLETIONS.exists() and MT_BENCH.exists()),
    reason=f"needs {PROMPTS}, {COMPLETIONS} and {MT_BENCH}",
)
THIRTEEN = "one two three four five six seven eight nine ten eleven twelve thirteen"
REFUSAL = "I'm sorry, but I can't help with that."


def user(text):
    return {"role": "user", "content": text}


def assistant(text):
    return {"role": "assistant", "content": text}


def numbered(first, last):
    """Words a1 a2 ...: texts with the same numbers have the same words there."""
    return " ".join(f"a{i}" for i in range(first, last + 1))


def open_filter(folder=".", **fields):
    return Filter(FiltersConfig.model_validate(fields), str(folder))


def reasons(filters, *rows):
    """Why each (prompt, completion) is dropped; ids are r0, r1, ..."""
    return [
        filters.why_dropped(f"r{i}", [user(prompt)], completion=completion, is_truncated=False)
        for i, (prompt, completion) in enumerate(rows)
    ]


# ---------------------------------------------------------------- rules about one row


def test_without_filters_every_row_stays():
    assert reasons(open_filter(), ("p", ""), ("p", ""), ("p", REFUSAL)) == ["", "", ""]


def test_a_truncated_row_is_dropped():
    filters = open_filter(truncated=True)
    assert filters.why_dropped("r", [user("p")], completion="c", is_truncated=True) == "filter: truncated"
    assert filters.why_dropped("r", [user("p")], completion="c", is_truncated=False) == ""


def test_completions_outside_the_wanted_lengths_are_dropped():
    found = reasons(open_filter(min_chars=3, max_chars=5), ("p", "12"), ("p", "123"), ("p", "12345"), ("p", "123456"))
    assert found == ["filter: min_chars (2 characters)", "", "", "filter: max_chars (6 characters)"]


def test_refusals_and_leaks_are_dropped_in_the_completion_and_in_the_answers_of_earlier_turns():
    filters = open_filter(refusals=True, leaks=True)
    leak = "Based on the responses, it is Rome."
    found = reasons(filters, ("p", REFUSAL), ("p", leak), ("Sum up the responses.", leak), ("p", "It is Rome."))
    assert found == ["filter: refusal", "filter: leak ('Based on the responses')", "", ""]
    for answer, rule in ((REFUSAL, "filter: refusal"), (leak, "filter: leak ('Based on the responses')")):
        prompt = [user("p"), assistant(answer), user("And in French?")]
        assert filters.why_dropped("r", prompt, completion="C'est Rome.", is_truncated=False) == rule


def test_reasons_are_counted_by_what_stands_before_the_brackets():
    filters = open_filter(min_chars=2, near_duplicates=0.5, exact_duplicates=True)
    rows = [("p", "1"), ("q", "2"), (numbered(1, 9), "x y"), (numbered(1, 9), "x y"), (numbered(1, 9), "x z")]
    assert Counter(reason.split(" (")[0] for reason in reasons(filters, *rows)) == {
        "filter: min_chars": 2, "": 1, "filter: exact_duplicate": 2,
    }  # fmt: skip


# ---------------------------------------------------------------- duplicates


def test_the_first_of_equal_completions_or_prompts_stays_whatever_their_case_and_blanks():
    found = reasons(
        open_filter(exact_duplicates=True),
        ("first", "One  answer."),
        ("second", "one\nANSWER."),
        ("FIRST", "Another answer."),
        ("third", "One answer!"),
    )
    assert found == [
        "",
        "filter: exact_duplicate (completion of r0)",
        "filter: exact_duplicate (prompt of r0)",
        "",
    ]


def test_prompts_are_equal_as_conversations():
    filters = open_filter(exact_duplicates=True)
    one, two = [user("a b")], [user("a"), assistant("b"), user("c")]
    three = [user("a"), assistant("other"), user("c")]
    found = [
        filters.why_dropped(f"r{i}", prompt, completion=str(i), is_truncated=False)
        for i, prompt in enumerate([one, two, three, two])
    ]
    assert found == ["", "", "", "filter: exact_duplicate (prompt of r1)"]


def test_a_row_that_another_rule_drops_makes_no_later_row_a_duplicate():
    filters = open_filter(exact_duplicates=True, near_duplicates=0.8, truncated=True)
    dropped = filters.why_dropped("r0", [user("p")], completion=numbered(1, 50), is_truncated=True)
    assert dropped == "filter: truncated"
    assert filters.why_dropped("r1", [user("p")], completion=numbered(1, 50), is_truncated=False) == ""


def test_the_threshold_of_near_duplicates_is_exact():
    """104 words are 100 shingles. The first n words in common are n - 4 of them: 79 words give 75 / 125 = 0.6,
    78 give 74 / 126 = 0.587.
    """
    base = (numbered(1, 10), numbered(11, 104))
    at = (numbered(1, 10), numbered(11, 79) + " " + numbered(201, 225))
    below = (numbered(1, 10), numbered(11, 78) + " " + numbered(301, 326))
    found = reasons(open_filter(near_duplicates=0.6), base, at, below)
    assert found == ["", "filter: near_duplicate (of r0, similarity 0.60)", ""]


def test_of_several_near_duplicates_the_first_is_named():
    """Shared with r0: 40 - 4 = 36 of 96 + 96 shingles, far from 0.8; r2 shares 92 of 100 with r1."""
    rows = [("", numbered(1, 100)), ("", numbered(61, 160)), ("", numbered(61, 156) + " x1 x2 x3 x4")]
    found = reasons(open_filter(near_duplicates=0.8), *rows, rows[2])
    assert found[:3] == ["", "", "filter: near_duplicate (of r1, similarity 0.92)"]
    assert found[3] == found[2]


def test_pairs_well_above_the_threshold_are_all_found_and_unrelated_rows_all_stay():
    """Each of 300 rows of 104 words comes again with its last 2 words changed: 98 / 102 = 0.96."""
    filters = open_filter(near_duplicates=0.8)
    words = [[f"w{row}x{i}" for i in range(104)] for row in range(300)]
    assert set(reasons(filters, *(("", " ".join(one)) for one in words))) == {""}
    again = reasons(filters, *(("", " ".join([*one[:102], "new", "end"])) for one in words))
    assert again == [f"filter: near_duplicate (of r{i}, similarity 0.96)" for i in range(300)]


def test_pairs_exactly_at_the_threshold_are_nearly_all_found():
    """104 words with the first 79 in common are at 0.6. In one of 42 bands 3 hashes agree with a chance of
    1 - (1 - 0.6 ** 3) ** 42 = 0.99996; the hashes are always the same, and so are the pairs they miss.
    """
    filters = open_filter(near_duplicates=0.6)
    words = [[f"w{row}x{i}" for i in range(104)] for row in range(300)]
    reasons(filters, *(("", " ".join(one)) for one in words))
    again = reasons(
        filters, *(("", " ".join(one[:79] + [f"y{row}x{i}" for i in range(25)])) for row, one in enumerate(words))
    )
    assert sum(map(bool, again)) >= 294


def test_rows_without_words_are_no_near_duplicates():
    assert reasons(open_filter(near_duplicates=0.5), ("?", "!"), ("?", "!")) == ["", ""]


def test_near_duplicates_without_its_library_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasketch", None)
    with pytest.raises(ConfigError, match=r'near_duplicates needs .*datasketch.*pip install "moaa_ray\[filters\]"'):
        open_filter(near_duplicates=0.8)
    open_filter(exact_duplicates=True)


# ---------------------------------------------------------------- evaluation files


def write(folder, records, name="eval.jsonl"):
    lines = [r if isinstance(r, str) else json.dumps(r) for r in records]
    (folder / name).write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    return [name]


def test_rows_that_hold_an_evaluation_prompt_anywhere_are_dropped(tmp_path):
    filters = open_filter(tmp_path, decontaminate=write(tmp_path, [{"prompt": THIRTEEN}, {"prompt": "Who are you?"}]))
    dropped = f"filter: contaminated ('{THIRTEEN}' is in eval)"
    found = reasons(filters, (f"Say {THIRTEEN}!", "c"), ("p", f"Here: {THIRTEEN}."), ("who are you", "c"), ("p", "c"))
    assert found == [dropped, dropped, "filter: contaminated ('who are you' is in eval)", ""]
    history = [user("p"), assistant(THIRTEEN), user("Go on.")]
    assert filters.why_dropped("r", history, completion="c", is_truncated=False) == dropped


def test_of_an_evaluation_conversation_the_users_turns_count(tmp_path):
    system = {"role": "system", "content": "be " * 13}
    names = write(tmp_path, [{"messages": [system, user("first turn"), assistant("an answer"), user("second turn")]}])
    filters = open_filter(tmp_path, decontaminate=names)
    found = reasons(filters, ("First turn.", "c"), ("second turn", "c"), ("an answer", "c"), ("be " * 13, "c"))
    assert [bool(reason) for reason in found] == [True, True, False, False]


def test_the_file_that_holds_the_prompt_is_named_and_formats_may_differ(tmp_path):
    pq.write_table(pa.table({"question": [THIRTEEN], "answer": ["x"]}), tmp_path / "b.parquet")
    filters = open_filter(tmp_path, decontaminate=[*write(tmp_path, [{"turns": ["hi", "ho"]}], "a.jsonl"), "b.parquet"])
    found = reasons(filters, (THIRTEEN, "c"), ("Ho!", "c"))
    assert found == [f"filter: contaminated ('{THIRTEEN}' is in b)", "filter: contaminated ('ho' is in a)"]


def test_an_evaluation_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"filters\.decontaminate\.0 = 'no\.jsonl': no such file"):
        open_filter(tmp_path, decontaminate=["no.jsonl"])


def test_an_evaluation_file_without_a_column_of_prompts_says_what_to_rename(tmp_path):
    names = write(tmp_path, [{"body": "x"}])
    with pytest.raises(
        ConfigError, match=r"filters\.decontaminate\.0.*\['body'\] of .*eval\.jsonl .*renaming it to 'prompt'"
    ):
        open_filter(tmp_path, decontaminate=names)


@pytest.mark.parametrize(
    ("records", "said"),
    [
        ([], r"eval\.jsonl: holds no row"),
        ([{"prompt": "?!"}], r"filters\.decontaminate\.0 = 'eval\.jsonl': none of its prompts holds a word"),
        ([{"prompt": "a"}, "{broken"], r"eval\.jsonl, line 2: .*not_json.*mend or remove the row"),
        ([{"prompt": "a"}, {"prompt": 5}], r"eval\.jsonl, line 2: .*int.*wrong_type.*mend or remove the row"),
    ],
)
def test_an_evaluation_file_with_no_prompt_or_a_broken_row_is_an_error(tmp_path, records, said):
    names = write(tmp_path, records)
    with pytest.raises(DataError, match=said):
        open_filter(tmp_path, decontaminate=names)


# ---------------------------------------------------------------- real text


@needs_real_text
def test_real_rows_are_all_dropped_by_their_own_evaluation_and_few_by_another():
    """Two prompts of AlpacaEval are MT-Bench's; one more completion writes a known algorithm in the same way."""
    prompts = {row["id"]: row["prompt"] for row in pq.read_table(PROMPTS).to_pylist()}
    rows = [
        (prompts[row["id"]], row["completion"])
        for row in pq.read_table(COMPLETIONS).to_pylist()
        if row["model"] == "Together-MoA"
    ]
    assert all(reasons(open_filter(DATA, decontaminate=[PROMPTS.name]), *rows))
    hits = [reason for reason in reasons(open_filter(DATA, decontaminate=[MT_BENCH.name]), *rows) if reason]
    assert len(hits) == 3
    assert all(reason.endswith("is in mt_bench)") for reason in hits)


@needs_real_text
def test_no_real_row_of_one_model_is_a_duplicate_and_every_row_is_one_when_it_comes_again():
    prompts = {row["id"]: row["prompt"] for row in pq.read_table(PROMPTS).to_pylist()}
    rows = [
        (prompts[row["id"]], row["completion"])
        for row in pq.read_table(COMPLETIONS).to_pylist()
        if row["model"] == "Qwen2-72B-Instruct"
    ]
    for fields in ({"exact_duplicates": True}, {"near_duplicates": 0.7}):
        filters = open_filter(**fields)
        assert set(reasons(filters, *rows)) == {""}
        assert all(reasons(filters, *rows))
