"""A model's answers to the questions of all benchmarks, as one pass: its engine is loaded once.

Questions of several turns are answered turn by turn; the second one is asked with the first answer before it. One that
cannot be answered does not take the answers before it along: they are judged, and it counts as lacking.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from moaa_ray.core.candidates import forget_failures
from moaa_ray.core.passes import Room, StageWork, fill, open_samples
from moaa_ray.core.seeds import hex_for, seed_for
from moaa_ray.evaluation.mt_bench import Question, temperature_of
from moaa_ray.settings.evaluation import Benchmark, EvaluateConfig, MtBenchConfig
from moaa_ray.types import Answer, Failure, Message, Request, Row, Sampling

STAGE = "evaluate"
ANSWER = "answer"
NO_ANSWER = "no_answer"
"""Flag of a row whose later turn has no answer: no_answer:<turn>:<reason>."""


@dataclass(frozen=True, kw_only=True)
class Said:
    """One model's answers to one question, from the first turn on."""

    texts: tuple[str, ...]
    lacks: str = ""
    """Why the turn after them has no answer; empty: every turn has one."""


Answered = Mapping[Benchmark, Mapping[str, Said]]
"""By benchmark and question, what one model has answered."""


@dataclass(frozen=True, kw_only=True)
class AnswerPass:
    """One completion for every turn of every question; each benchmark and category has a sampling of its own."""

    engine: str
    sampling: Sampling
    samplings: Mapping[str, Sampling]
    """By the row's source."""
    run_seed: int
    name: str = ANSWER
    reads: tuple[str, ...] = ()
    is_final: bool = True

    def is_open(self, row: Row) -> bool:
        """Whether this turn is still to be answered."""
        return bool(open_samples(row, self.name, 1))

    def ask(self, row: Row, room: Room) -> list[Request]:
        """This turn, with those before it."""
        if row.status != "open" or not self.is_open(row):
            return []
        seed = seed_for(self.run_seed, self.name, row.id, row.turn)
        sampling = self.samplings[row.source]
        return [
            Request(id=self._request_id(row), row_id=row.id, messages=row.messages, sampling=sampling, seed=seed)
        ]  # fmt: skip

    def fold(self, row: Row, answers: Mapping[str, Answer]) -> Row:
        """The row with its answer."""
        return fill(row, self.name, [self._request_id(row)], answers) if row.status == "open" else row

    def all_failed(self, row: Row, failure: Failure) -> dict[str, Answer]:
        """The same failure as the answer to this turn."""
        return {self._request_id(row): failure}

    def _request_id(self, row: Row) -> str:
        return f"{row.id}/{row.turn}/{self.name}"


def answer_work(engine: str, samplings: Mapping[str, Sampling], *, run_seed: int) -> StageWork:
    """The work of one contestant."""
    longest = max(samplings.values(), key=lambda each: each.max_tokens)
    answering = AnswerPass(engine=engine, sampling=longest, samplings=samplings, run_seed=run_seed)
    return StageWork(stage=STAGE, passes=(answering,), close=close_answer, reopen=forget_failures)


def close_answer(row: Row) -> Row:
    """The row after a turn: open again for the next one, ok after the last, failed without an answer.

    A later turn whose failure would come again (too long for the window) ends the row with the answers it has.
    """
    if row.status != "open":
        return row
    answer = row.answers[ANSWER][0]
    if isinstance(answer, Failure):
        if row.turn and not answer.retryable:
            return replace(unanswered(row), status="ok")
        return replace(row, status="failed", reason=f"{ANSWER}: {answer.reason}: {answer.detail}".rstrip(": "))
    cut = (f"truncated:{row.turn}",) if answer.finish_reason == "length" else ()
    messages = (*row.messages, Message(role="assistant", content=answer.text))
    row = replace(row, messages=messages, answers={}, flags=(*row.flags, *answer.flags, *cut))
    if not row.later:
        return replace(row, status="ok")
    following = Message(role="user", content=row.later[0])
    return replace(row, messages=(*messages, following), later=row.later[1:], turn=row.turn + 1)


def unanswered(row: Row) -> Row:
    """The row with a flag that says which turn has no answer, and why."""
    answer = row.answers.get(ANSWER, (None,))[0]
    reason = answer.reason if isinstance(answer, Failure) else "not_asked"
    return replace(row, flags=(*row.flags, f"{NO_ANSWER}:{row.turn}:{reason}"))


def samplings_of(config: EvaluateConfig, questions: Mapping[Benchmark, Sequence[Question]]) -> dict[str, Sampling]:
    """How the models answer, by the rows' source."""
    found: dict[str, Sampling] = {}
    for benchmark, asked in questions.items():
        section = config.benchmarks[benchmark]
        for question in asked:
            is_mt = isinstance(section, MtBenchConfig)
            temperature = temperature_of(question.category) if is_mt else section.temperature
            sampling = Sampling(max_tokens=section.max_tokens, temperature=temperature)
            found[source_of(benchmark, question)] = sampling
    return found


def question_row(benchmark: Benchmark, question: Question, sampling: Sampling) -> Row:
    """The row of a question at its first turn; another text or sampling makes another row of it."""
    first, *later = question.turns
    digest = hex_for(0, str(sampling), *question.turns)
    return Row(
        id=f"{benchmark}/{question.id}/{digest}",
        source=source_of(benchmark, question),
        messages=(Message(role="user", content=first),),
        later=tuple(later),
    )


def source_of(benchmark: Benchmark, question: Question) -> str:
    """The source of a question's rows; MT-Bench's categories are answered and judged differently."""
    return f"{benchmark}/{question.category}" if benchmark == "mt_bench" else benchmark
