"""Questions and answers as the benchmarks publish them, and what is said of files that lack some."""

import json
from pathlib import Path

import pytest

from moaa_ray.errors import ConfigError, DataError
from moaa_ray.evaluation.files import Answers, read_answers, read_questions
from moaa_ray.evaluation.mt_bench import Question
from moaa_ray.settings.evaluation import AnswersFile
from tests.evaluation.files import put_lines, write_benchmarks

SHARED = Path(__file__).parents[3] / "shared" / "data"


@pytest.fixture
def folder(tmp_path):
    write_benchmarks(tmp_path)
    return tmp_path


def questions(folder: Path, name: str, num_turns: int = 1) -> list[Question]:
    return read_questions(name, field="evaluate.x.questions", num_turns=num_turns, base_dir=str(folder))


def answers(folder: Path, name: str, asked: list[Question], num_turns: int = 1, **file) -> Answers:
    told = AnswersFile(path=name, **file)
    return read_answers(told, asked, field="evaluate.x.baseline", num_turns=num_turns, base_dir=str(folder))


def test_alpaca_evals_list_holds_questions_and_answers_that_are_found_by_the_instruction(folder):
    asked = questions(folder, "alpaca.json")
    assert [one.turns for one in asked[:2]] == [("Say 0.",), ("Say 1.",)]
    found = answers(folder, "alpaca.json", asked)
    assert found.model == "old-model"
    assert [found.texts[one.id] for one in asked[:2]] == [("base 0",), ("base 1",)]


def test_arena_hards_answers_are_found_by_the_question_id_in_the_old_form_and_in_the_new(folder):
    asked = questions(folder, "arena.jsonl")
    assert (asked[0].id, asked[0].turns) == ("q0", ("Solve 0.",))
    found = answers(folder, "arena_answers.jsonl", asked)
    said = [{"role": "user", "content": "?"}, {"role": "assistant", "content": {"answer": "base 0"}}]
    put_lines(folder / "new.jsonl", [{"uid": "q0", "model": "old-4", "messages": said}])
    assert answers(folder, "new.jsonl", asked[:1]).texts == {"q0": found.texts["q0"]} == {"q0": ("base 0",)}


def test_mt_bench_has_two_turns_and_answers_to_both(folder):
    asked = questions(folder, "mt.jsonl", 2)
    assert (asked[1].id, asked[1].category, asked[1].turns) == ("82", "math", ("Write 1.", "Again 1."))
    assert answers(folder, "mt_answers.jsonl", asked, 2).texts["82"] == ("one 1", "two 1")
    with pytest.raises(DataError, match=r"mt\.jsonl, line 1: 2 turns .* instead of 1"):
        questions(folder, "mt.jsonl")


def test_one_column_of_the_questions_file_can_hold_the_answers(folder):
    put_lines(folder / "both.jsonl", [{"id": "a", "prompt": "Hi?", "gpt": "Ho."}])
    asked = questions(folder, "both.jsonl")
    assert answers(folder, "both.jsonl", asked, column="gpt") == Answers(model="gpt", texts={"a": ("Ho.",)})
    with pytest.raises(DataError, match=r"no answer in output or completion .*there are id, prompt, gpt; set .*column"):
        answers(folder, "both.jsonl", asked)


def test_a_file_that_misses_answers_is_refused_with_their_number_and_the_first_of_them(folder):
    asked = questions(folder, "arena.jsonl")
    lines = (folder / "arena_answers.jsonl").read_text().splitlines(keepends=True)
    (folder / "arena_answers.jsonl").write_text("".join(lines[:2]))
    with pytest.raises(DataError, match=r"baseline = .*lacks the answers to 4 of 6 questions, first q2, q3, q4; compl"):
        answers(folder, "arena_answers.jsonl", asked)


def test_a_file_of_several_models_needs_the_name_of_one(folder):
    asked = questions(folder, "alpaca.json")
    both = [*json.loads((folder / "alpaca.json").read_text())]
    both += [{**one, "generator": "new", "output": "other"} for one in both]
    (folder / "both.json").write_text(json.dumps(both))
    with pytest.raises(DataError, match=r"a second answer to question .*old-model, new: set evaluate.x.baseline.model"):
        answers(folder, "both.json", asked)
    assert set(answers(folder, "both.json", asked, model="new").texts.values()) == {("other",)}
    with pytest.raises(DataError, match="holds no answer of model 'none' but of old-model, new; name one of these"):
        answers(folder, "both.json", asked, model="none")


def test_a_file_in_which_each_question_is_answered_by_another_model_is_refused(folder):
    asked = questions(folder, "alpaca.json")[:2]
    said = [{"instruction": f"Say {i}.", "output": "x", "generator": f"model-{i}"} for i in range(2)]
    put_lines(folder / "mixed.jsonl", said)
    with pytest.raises(DataError, match="answers are of several models, model-0, model-1; give those of one alone"):
        answers(folder, "mixed.jsonl", asked)


def test_ids_that_number_the_rows_of_another_order_do_not_swap_the_answers(folder):
    put_lines(folder / "asked.jsonl", [{"id": i, "prompt": text} for i, text in enumerate(("Hi?", "Ho?", "Hi?"))])
    put_lines(folder / "said.jsonl", [{"id": i, "prompt": "Hi?", "output": "x"} for i in (0, 2)])
    asked = questions(folder, "asked.jsonl")
    assert set(answers(folder, "said.jsonl", [asked[0], asked[2]]).texts) == {"0", "2"}
    put_lines(folder / "said.jsonl", [{"id": 1, "prompt": "Hi?", "output": "to Hi"}])
    with pytest.raises(DataError, match=r"said\.jsonl, line 1: has the id of question '1' and the text of '2'; mend"):
        answers(folder, "said.jsonl", asked)
    put_lines(folder / "said.jsonl", [{"id": 1, "prompt": "He? ", "output": "to a question of another file"}])
    with pytest.raises(DataError, match=r"has the id of question '1' and the text of none of the questions, 'He"):
        answers(folder, "said.jsonl", asked)
    put_lines(folder / "said.jsonl", [{"id": 1, "prompt": "Ho? ", "output": "x"}])
    assert set(answers(folder, "said.jsonl", asked[1:2]).texts) == {"1"}


def test_a_questions_file_that_is_not_there_or_holds_one_twice_is_refused(folder):
    with pytest.raises(ConfigError, match=r"evaluate.x.questions = 'nope.jsonl': no such file"):
        questions(folder, "nope.jsonl")
    put_lines(folder / "twice.jsonl", [{"id": "a", "prompt": "Hi?"}, {"id": "a", "prompt": "Ho?"}])
    with pytest.raises(DataError, match=r"line 2: question 'a' stands at .*line 1 already; take one of them out"):
        questions(folder, "twice.jsonl")


@pytest.mark.skipif(not SHARED.exists(), reason="../shared/data/alpaca_eval_prompts.parquet is not here")
def test_the_published_sets_are_read_whole():
    asked = questions(SHARED, "alpaca_eval_prompts.parquet")
    found = answers(SHARED, "alpaca_eval_completions.parquet", asked, model="gpt4_1106_preview")
    assert len(asked) == len(found.texts) == 805
    arena = questions(SHARED, "arena_hard_v0.1.jsonl")
    assert len(answers(SHARED, "arena_hard_v0.1.jsonl", arena, column="baseline_gpt-4-0314").texts) == 500
    assert [len(one.references) for one in questions(SHARED, "mt_bench.jsonl", 2)].count(2) == 40
