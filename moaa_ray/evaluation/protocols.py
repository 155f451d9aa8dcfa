"""How each benchmark is judged: the games of one question, what the judge is asked in each, and what its reply says.

A game is one request to the judge: AlpacaEval has one a question (two where the judge scores), Arena-Hard two (both
orders), MT-Bench one for each turn that is answered. Two equal texts have none, as neither can win. What is asked and
how a reply is read stands in the benchmarks' own modules.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from moaa_ray.core.judge_parsing import parse_score
from moaa_ray.core.judge_prompts import JUDGE_VERSION, decide_messages, question_text
from moaa_ray.core.seeds import hex_for
from moaa_ray.evaluation import alpaca_eval, arena_hard, mt_bench
from moaa_ray.settings.evaluation import AlpacaEvalConfig, Benchmark, EvaluateConfig
from moaa_ray.types import Answer, Completion, Message, Row, Sampling

MODEL, BASELINE, REFERENCES = "model", "baseline", "references"
"""Columns of answers that a row to be judged brings along, each with one text a turn."""
NUM_LOGPROBS = 20
"""First tokens of which the judge's probability is asked: as many as all engines give."""


@dataclass(frozen=True, kw_only=True)
class Reading:
    """What one game has come to; without a value and a grade the judge has said nothing that can be read."""

    turn: int = 0
    is_model_first: bool | None = None
    value: float | None = None
    grade: str = ""

    @property
    def is_read(self) -> bool:
        """Whether the reply could be read."""
        return bool(self.grade)


class JudgeProtocol(Protocol):
    """One benchmark's way of judging; pure, and the same in the driver and in the workers."""

    @property
    def version(self) -> str:
        """Of the judge's prompt."""
        ...

    @property
    def sampling(self) -> Sampling:
        """The judge's."""
        ...

    @property
    def is_repeated(self) -> bool:
        """Whether a judge whose reply cannot be read is asked once more, with a reminder."""
        ...

    def num_games(self, row: Row) -> int:
        """Requests for this row."""
        ...

    def messages(self, row: Row, game: int, *, fence: str, is_repeated: bool = False) -> tuple[Message, ...]:
        """What the judge is asked."""
        ...

    def read(self, row: Row, game: int, answer: Answer | None) -> Reading:
        """What it has said."""
        ...


@dataclass(frozen=True, kw_only=True)
class AlpacaEvalProtocol:
    """One game, in the order that the instruction decides."""

    run_seed: int
    by_logprobs: bool
    sampling: Sampling
    is_repeated: bool = False

    @property
    def version(self) -> str:
        """Of the wording of labels, or of a verdict with reasons."""
        return alpaca_eval.LABEL_VERSION if self.by_logprobs else JUDGE_VERSION

    def num_games(self, row: Row) -> int:
        """One, and none for equal texts."""
        return 0 if is_same_text(row) else 1

    def messages(self, row: Row, game: int, *, fence: str, is_repeated: bool = False) -> tuple[Message, ...]:
        """Which of A and B is better."""
        question, first = question_text(row.messages), self._baseline_first(row)
        shown = alpaca_eval.in_order(texts(row, MODEL)[0], texts(row, BASELINE)[0], baseline_first=first)
        if self.by_logprobs:
            return alpaca_eval.label_messages(question, shown, fence=fence)
        return decide_messages(question, shown, [], [], fence=fence)

    def read(self, row: Row, game: int, answer: Answer | None) -> Reading:
        """The preference for the model."""
        first = self._baseline_first(row)
        if self.by_logprobs:
            likely = answer.first_logprobs if isinstance(answer, Completion) else ()
            value = alpaca_eval.weighted_preference(dict(reversed(likely)), baseline_first=first)
        else:
            value = alpaca_eval.verdict_preference(answer, baseline_first=first)
        return Reading(is_model_first=not first, value=value, grade="" if value is None else _winner(value))

    def _baseline_first(self, row: Row) -> bool:
        return alpaca_eval.is_baseline_first(self.run_seed, row.messages[0]["content"])


@dataclass(frozen=True, kw_only=True)
class ScoresProtocol:
    """AlpacaEval with a judge that scores: the model's answer alone, then the baseline's."""

    sampling: Sampling
    is_repeated: bool = False
    version: str = alpaca_eval.SCORES_VERSION

    def num_games(self, row: Row) -> int:
        """Two, and none for equal texts."""
        return 0 if is_same_text(row) else 2

    def messages(self, row: Row, game: int, *, fence: str, is_repeated: bool = False) -> tuple[Message, ...]:
        """The conversation that the score is of."""
        text = texts(row, BASELINE if game else MODEL)[0]
        return (*row.messages, Message(role="assistant", content=text))

    def read(self, row: Row, game: int, answer: Answer | None) -> Reading:
        """The score."""
        value = parse_score(answer)
        return Reading(value=value, grade="" if value is None else f"{value:g}")


@dataclass(frozen=True, kw_only=True)
class ArenaHardProtocol:
    """Two games: the baseline's answer first, then the model's."""

    sampling: Sampling
    is_repeated: bool = True
    version: str = arena_hard.PROMPT_VERSION

    def num_games(self, row: Row) -> int:
        """Two, and none for equal texts."""
        return 0 if is_same_text(row) else 2

    def messages(self, row: Row, game: int, *, fence: str, is_repeated: bool = False) -> tuple[Message, ...]:
        """Which of A and B is better, in five grades."""
        shown = texts(row, BASELINE)[0], texts(row, MODEL)[0]
        shown = shown[::-1] if game else shown
        return arena_hard.judge_messages(question_text(row.messages), shown, fence=fence, is_repeated=is_repeated)

    def read(self, row: Row, game: int, answer: Answer | None) -> Reading:
        """The grade in the judge's own words."""
        return Reading(is_model_first=bool(game), grade=arena_hard.parse_grade(answer) or "")


@dataclass(frozen=True, kw_only=True)
class MtBenchProtocol:
    """Two games: the first answer, and the second one, where there is one, with the conversation before it."""

    sampling: Sampling
    is_repeated: bool = False
    version: str = mt_bench.PROMPT_VERSION

    def num_games(self, row: Row) -> int:
        """One for each turn that is answered."""
        return len(texts(row, MODEL))

    def messages(self, row: Row, game: int, *, fence: str, is_repeated: bool = False) -> tuple[Message, ...]:
        """How good the last answer is, from 1 to 10."""
        question = mt_bench.Question(
            id=row.id,
            category=row.source.partition("/")[2],
            turns=tuple(message["content"] for message in row.messages),
            references=tuple(texts(row, REFERENCES)),
        )
        return mt_bench.grade_messages(question, texts(row, MODEL)[: game + 1], fence=fence)

    def read(self, row: Row, game: int, answer: Answer | None) -> Reading:
        """The number."""
        value = mt_bench.parse_grade(answer)
        return Reading(turn=game, value=value, grade="" if value is None else f"{value:g}")


def _winner(preference: float) -> str:
    if preference == alpaca_eval.SAME_TEXT:
        return "tie"
    return "model" if preference > alpaca_eval.SAME_TEXT else "baseline"


def protocol_of(benchmark: Benchmark, config: EvaluateConfig, *, run_seed: int) -> JudgeProtocol:
    """The protocol of a benchmark of the recipe."""
    section = config.benchmarks[benchmark]
    sampling = Sampling(max_tokens=section.judge_max_tokens, temperature=0.0)
    if isinstance(section, AlpacaEvalConfig):
        if section.preference == "scores":
            return ScoresProtocol(sampling=Sampling(max_tokens=1, temperature=0.0))
        by_logprobs = section.preference == "logprobs"
        label = Sampling(max_tokens=1, temperature=0.0, logprobs=NUM_LOGPROBS)
        return AlpacaEvalProtocol(
            run_seed=run_seed, by_logprobs=by_logprobs, sampling=label if by_logprobs else sampling
        )  # fmt: skip
    return ArenaHardProtocol(sampling=sampling) if benchmark == "arena_hard" else MtBenchProtocol(sampling=sampling)


def digest_of_judging(protocol: JudgeProtocol, row: Row) -> str:
    """A hash of all that the judge of a row is asked and how: rows of another wording or answer are other rows."""
    asked = [str(protocol.messages(row, game, fence="code")) for game in range(protocol.num_games(row))]
    repeated = (
        [str(protocol.messages(row, 0, fence="code", is_repeated=True))] if protocol.is_repeated and asked else []
    )
    return hex_for(0, protocol.version, str(protocol.sampling), *texts(row, MODEL), *asked, *repeated)


def is_same_text(row: Row) -> bool:
    """Whether the model has answered just as the baseline."""
    return texts(row, MODEL) == texts(row, BASELINE)


def texts(row: Row, column: str) -> list[str]:
    """The texts of a column that the row brings along."""
    return [answer.text for answer in row.answers.get(column, ()) if isinstance(answer, Completion)]


def by_benchmark(protocols: Mapping[str, JudgeProtocol], row: Row) -> JudgeProtocol:
    """The protocol of a row, whose source is "<benchmark>" or "<benchmark>/<category>"."""
    return protocols[row.source.partition("/")[0]]
