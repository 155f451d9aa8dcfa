"""What is asked of models and judges as rows, and what comes of the rows as the records that are published."""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace

import pyarrow as pa

from moaa_ray.data import schemas
from moaa_ray.data.evaluation_schemas import ANSWERS, JUDGED
from moaa_ray.evaluation.answering import NO_ANSWER, Answered, Said, question_row, source_of, unanswered
from moaa_ray.evaluation.benchmarks import Bench
from moaa_ray.evaluation.judging import readings
from moaa_ray.evaluation.mt_bench import Question
from moaa_ray.evaluation.protocols import BASELINE, MODEL, REFERENCES, Reading, digest_of_judging, is_same_text, texts
from moaa_ray.evaluation.scores import Outcome
from moaa_ray.settings.evaluation import Benchmark
from moaa_ray.types import Answer, Completion, Failure, Message, Row, Sampling


@dataclass(frozen=True, kw_only=True)
class Asked:
    """Where a row of questions comes from."""

    bench: Bench
    question: Question
    row: Row


@dataclass(frozen=True, kw_only=True)
class Task(Asked):
    """One model's answers to one question, as a row for the judge."""

    model: str
    lacks: str = ""
    """As in Said."""


def question_rows(benches: Sequence[Bench], samplings: Mapping[str, Sampling]) -> dict[str, Asked]:
    """The rows of all questions, by id; the same for every model."""
    asked = [(bench, question) for bench in benches for question in bench.questions]
    rows = [(b, q, question_row(b.name, q, samplings[source_of(b.name, q)])) for b, q in asked]
    return {row.id: Asked(bench=bench, question=question, row=row) for bench, question, row in rows}


def answers_table(table: pa.Table, *, asked: Mapping[str, Asked]) -> tuple[pa.Table, dict[int, str]]:
    """ANSWERS of answered rows."""
    rows = map(schemas.row_from, table.to_pylist())
    return pa.Table.from_pylist([_answers_record(row, asked[row.id]) for row in rows], schema=ANSWERS), {}


def unfinished_answers(row: Row, *, asked: Mapping[str, Asked]) -> schemas.Record:
    """ANSWERS of a failed row: the turns that it has answered, and a flag with what has failed."""
    return _answers_record(unanswered(row), asked[row.id])


def _answers_record(row: Row, asked: Asked) -> schemas.Record:
    return {
        "id": row.id,
        "benchmark": asked.bench.name,
        "question": asked.question.id,
        "messages": [dict(message) for message in row.messages],
        "flags": list(row.flags),
    }


def answers_of(records: Iterable[schemas.Record]) -> dict[Benchmark, dict[str, Said]]:
    """What a model has answered, out of the records of ANSWERS; a question without any answer is not in it."""
    found: dict[Benchmark, dict[str, Said]] = {}
    for one in records:
        texts = tuple(message["content"] for message in one["messages"] if message["role"] == "assistant")
        lacks = next((flag.split(":", 2)[2] for flag in one["flags"] if flag.startswith(f"{NO_ANSWER}:")), "")
        if texts:
            found.setdefault(one["benchmark"], {})[one["question"]] = Said(texts=texts, lacks=lacks)
    return found


def tasks_of(model: str, answers: Answered, benches: Sequence[Bench]) -> Iterator[Task]:
    """What of a model is to be judged: every question that it has answered."""
    for bench in benches:
        for question in bench.questions:
            said = answers.get(bench.name, {}).get(question.id)
            if said is not None:
                row = _judge_row(bench, model, question, said.texts)
                yield Task(bench=bench, question=question, row=row, model=model, lacks=said.lacks)


def judged_table(table: pa.Table, *, tasks: Mapping[str, Task]) -> tuple[pa.Table, dict[int, str]]:
    """JUDGED of judged rows."""
    rows = map(schemas.row_from, table.to_pylist())
    return pa.Table.from_pylist([_judged_record(row, tasks[row.id]) for row in rows], schema=JUDGED), {}


def unfinished_judgments(row: Row, *, tasks: Mapping[str, Task]) -> schemas.Record:
    """JUDGED of a failed row: the games that the judge has replied to, and why the others have no reply."""
    return _judged_record(row, tasks[row.id])


def outcomes_of(
    bench: Bench, answers: Mapping[str, Answered], records: Iterable[schemas.Record]
) -> dict[str, list[Outcome]]:
    """By model that has answers to a benchmark, every question with what came of it."""
    judged = {(one["model"], one["question"]): one for one in records if one["benchmark"] == bench.name}
    return {
        model: [
            Outcome(
                question=q,
                texts=found[bench.name][q.id].texts if q.id in found[bench.name] else (),
                record=judged.get((model, q.id)),
            )
            for q in bench.questions
        ]
        for model, found in answers.items()
        if bench.name in found
    }


def _judge_row(bench: Bench, model: str, question: Question, said: Sequence[str]) -> Row:
    baseline = bench.baseline.texts[question.id] if bench.baseline else ()
    columns = {MODEL: said, BASELINE: baseline, REFERENCES: question.references}
    row = Row(
        id="",
        source=source_of(bench.name, question),
        messages=tuple(Message(role="user", content=turn) for turn in question.turns),
        answers={name: tuple(map(_completion, given)) for name, given in columns.items()},
    )
    return replace(row, id=f"{model}/{bench.name}/{question.id}/{digest_of_judging(bench.protocol, row)}")


def _completion(text: str) -> Completion:
    return Completion(text=text, finish_reason="", prompt_tokens=0, completion_tokens=0)


def _judged_record(row: Row, task: Task) -> schemas.Record:
    bench, question = task.bench, task.question
    turns = [
        (Message(role="user", content=asked), Message(role="assistant", content=text))
        for asked, text in zip(question.turns, texts(row, MODEL), strict=False)  # a later turn may have no answer
    ]
    lacking = [
        {**asdict(Reading(turn=turn)), "error": f"{NO_ANSWER}: {task.lacks}", "text": ""}
        for turn in range(len(turns), len(question.turns))
    ]
    return {
        "id": row.id,
        "model": task.model,
        "benchmark": bench.name,
        "question": question.id,
        "category": question.category,
        "messages": [message for turn in turns for message in turn],
        "baseline": bench.baseline.texts[question.id][0] if bench.baseline else None,
        "references": list(question.references),
        "is_same_text": bench.baseline is not None and is_same_text(row),
        "games": [*(_game(reading, answer) for reading, answer in readings(bench.protocol, row)), *lacking],
        "judge": bench.config.judge,
        "prompt_version": bench.protocol.version,
        "sampling": json.dumps(asdict(bench.protocol.sampling)),
        "flags": list(row.flags),
    }


def _game(reading: Reading, answer: Answer) -> schemas.Record:
    is_failure = isinstance(answer, Failure)
    error = answer.reason if is_failure else "" if reading.is_read else "not_in_form"
    return {**asdict(reading), "error": error, "text": "" if is_failure else answer.text}
