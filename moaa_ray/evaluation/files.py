"""Questions, baselines, references and stored answers, out of the files as the benchmarks publish them.

    AlpacaEval             a JSON list of {instruction, output, generator, dataset}; answers find their question by
                           its text
    Arena-Hard, MT-Bench   JSON Lines; questions {question_id, category, turns}, answers {question_id, model_id,
                           choices: [{turns}]} or {uid, model, messages}
    any of them            a table with id, prompt (or turns) and category, or with id and a column of text

A file is read as a whole or not at all: answers that are left out would change the score.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from moaa_ray.data.conversations import UNSTORABLE, digest_of
from moaa_ray.data.locations import find_files, source_name
from moaa_ray.data.readers import BadRecord, read_records
from moaa_ray.errors import DataError
from moaa_ray.evaluation.mt_bench import Question
from moaa_ray.settings.evaluation import AnswersFile

_IDS = ("question_id", "uid", "id")
_QUESTIONS = ("turns", "prompt", "instruction", "question", "messages")
_ANSWERS = ("output", "completion", "answer", "choices", "messages", "reference")
_MODELS = ("generator", "model_id", "model")
_NUM_SHOWN = 3


@dataclass(frozen=True, kw_only=True)
class Answers:
    """The answers of one model: by question id the text of every turn."""

    model: str
    """As the file calls it."""
    texts: Mapping[str, tuple[str, ...]]


def read_questions(path: str, *, field: str, num_turns: int, base_dir: str) -> list[Question]:
    """All questions in the file's order, with the references that stand beside them.

    A question without an id gets one from its text. Raises ConfigError where the file is not there, and DataError.
    """
    questions: list[Question] = []
    places: dict[str, str] = {}
    for where, record in _records(path, field=field, base_dir=base_dir):
        name = next((one for one in _QUESTIONS if record.get(one)), None)
        turns = _texts(record[name]) if name else ()
        if not turns or len(turns) != num_turns or not all(text.strip() for text in turns):
            raise DataError(
                f"{where}: {len(turns)} turns of a question in {name or ', '.join(_QUESTIONS)} instead of {num_turns}; "
                f"give the benchmark's own file in {field}"
            )
        known = _first(record, _IDS)
        one = Question(
            id=digest_of("user", turns[0]).hex()[:20] if known is None else str(known),
            category=str(record.get("category") or record.get("dataset") or ""),
            turns=turns,
            references=_texts(record.get("reference")),
        )
        if one.id in places:
            raise DataError(f"{where}: question {one.id!r} stands at {places[one.id]} already; take one of them out")
        places[one.id] = where
        questions.append(one)
    if not questions:
        raise DataError(f"{field} = {path!r}: holds no question; give the benchmark's own file")
    return questions


def read_answers(
    file: AnswersFile, questions: Sequence[Question], *, field: str, num_turns: int, base_dir: str
) -> Answers:
    """One answer to each of the questions; those to other questions are left out.

    Raises ConfigError where the file is not there, DataError where an answer is lacking or stands there twice.
    """
    by_id = {one.id: one for one in questions}
    by_text = {one.turns[0]: one.id for one in questions}
    texts: dict[str, tuple[str, ...]] = {}
    models: dict[str, None] = {}
    taken: dict[str, None] = {}
    for where, record in _records(file.path, field=field, base_dir=base_dir):
        model = _first(record, _MODELS)
        models[str(model or "")] = None
        if file.model and model is not None and str(model) != file.model:
            continue
        key = _question_of(record, by_id, by_text, where=where)
        if key is None:
            continue
        if key in texts:
            said = f", of the models {', '.join(models)}: set {field}.model to one of them" if len(models) > 1 else ""
            raise DataError(f"{where}: a second answer to question {key!r}{said or '; take one of them out'}")
        texts[key] = _answer(record, file, where=where, field=field, num_turns=num_turns)
        taken |= {str(model): None} if model else {}
    told = f"{field} = {file.path!r}"
    if file.model and file.model not in models and any(models):
        raise DataError(
            f"{told}: holds no answer of model {file.model!r} but of {', '.join(models)}; name one of these"
        )
    lacking = [one.id for one in questions if one.id not in texts]
    if lacking:
        raise DataError(
            f"{told}: lacks the answers to {len(lacking)} of {len(questions)} questions, first "
            f"{', '.join(lacking[:_NUM_SHOWN])}; complete the file, or take these questions out of the questions' file"
        )
    if len(taken) > 1:
        raise DataError(f"{told}: the answers are of several models, {', '.join(taken)}; give those of one alone")
    found = next((name for name in models if name), "")
    return Answers(model=file.model or found or file.column or source_name(file.path), texts=texts)


def _records(path: str, *, field: str, base_dir: str):
    """(place for messages, record) of a file. Raises DataError at one that is broken."""
    files = find_files(path, field=field, base_dir=base_dir)
    for place, record in read_records(files):
        if isinstance(record, BadRecord):
            raise DataError(f"{files.place(place)}: {record.detail} ({record.rule}); mend or remove it")
        yield files.place(place), record


def _question_of(
    record: Mapping[str, Any], by_id: Mapping[str, Question], by_text: Mapping[str, str], *, where: str
) -> str | None:
    """The id of the question that a record answers, by its id or by the question's text; None: of another one.

    Raises DataError where the two name different questions, as where the rows of other files are merely numbered.
    """
    known = _first(record, _IDS)
    name = next((one for one in _QUESTIONS if record.get(one)), None)
    text = next(iter(_texts(record[name])), "") if name else ""
    named = by_text.get(text)
    if known is None or str(known) not in by_id:
        return named
    is_told = text and (named is not None or name != "messages")  # these are as the model was sent them
    if is_told and by_id[str(known)].turns[0].strip() != text.strip():
        other = repr(named) if named else f"none of the questions, {text.strip()[:40]!r}"
        raise DataError(
            f"{where}: has the id of question {str(known)!r} and the text of {other}; mend the ids, or take their "
            "column out, and answers find their question by its text"
        )
    return str(known)


def _answer(record: Mapping[str, Any], file: AnswersFile, *, where: str, field: str, num_turns: int) -> tuple[str, ...]:
    names = (file.column,) if file.column else _ANSWERS
    name = next((one for one in names if record.get(one) is not None), None)
    if name is None:
        raise DataError(
            f"{where}: no answer in {' or '.join(names)}, there are {', '.join(map(str, record))}; set {field}.column"
        )
    texts = _texts(record[name], role="assistant")
    if len(texts) != num_turns:
        raise DataError(
            f"{where}: {len(texts)} answers in {name!r} instead of {num_turns}; give one text for each turn of the "
            "question"
        )
    return texts


def _texts(value: Any, *, role: str = "user") -> tuple[str, ...]:
    """The texts of a question's turns, or of the assistant's, in any of the forms that are published."""
    if isinstance(value, list) and value and isinstance(value[0], dict) and "turns" in value[0]:
        value = value[0]["turns"]
    entries = value if isinstance(value, list) else [value]
    found = [
        _content(entry.get("content")) if isinstance(entry, dict) else entry
        for entry in entries
        if not isinstance(entry, dict) or entry.get("role", role) == role
    ]
    return tuple(UNSTORABLE.sub("\ufffd", text) for text in found if isinstance(text, str))


def _content(value: Any) -> Any:
    """Arena-Hard's newer files hold {answer: text} where others hold the text."""
    return value.get("answer") if isinstance(value, dict) else value


def _first(record: Mapping[str, Any], names: Sequence[str]) -> Any:
    return next((record[name] for name in names if record.get(name) is not None), None)
