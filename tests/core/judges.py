"""Scripted judges, and the passes of a judge run over one row as generation/worker.py runs them."""

import re
from collections.abc import Callable
from dataclasses import dataclass, replace

from moaa_ray.core.candidates import CANDIDATES
from moaa_ray.core.passes import CannotAskError
from moaa_ray.lines.judge import JudgeLine, judge_line
from moaa_ray.settings.preference import AspectsJudge, Judge, JuryJudge, LlmJudge, MixtureJudge, ScoreJudge
from moaa_ray.types import Answer, Failure, Request, Row
from tests.core.rows import UNLIMITED, row, said

IN_FORM = "Selected Criteria:\n1. Accuracy\n2. Depth\n3. Clarity\nExplanation: it is about facts."


def mixture(**fields) -> MixtureJudge:
    """The paper's judge: three proposer judges, an aggregator judge, criteria."""
    proposers = [{"model": model, "max_tokens": 64} for model in ("gemma", "llama", "qwen")]
    aggregator = {"model": "qwen", "max_tokens": 64}
    return MixtureJudge(**{"kind": "mixture", "proposers": proposers, "aggregator": aggregator, **fields})


def llm(**fields) -> LlmJudge:
    return LlmJudge(**{"kind": "llm", "model": "qwen", "max_tokens": 64, **fields})


def jury(*models: str, **fields) -> JuryJudge:
    return JuryJudge(**{"kind": "jury", "members": [{"model": model} for model in models], **fields})


def aspects(*names: str) -> AspectsJudge:
    return AspectsJudge(kind="aspects", model="qwen", aspects=list(names), max_tokens=64)


def score() -> ScoreJudge:
    return ScoreJudge(kind="score", model="reward")


def line_of(judge: Judge, num_candidates: int = 5) -> JudgeLine:
    return judge_line(judge, run_seed=7, num_candidates=num_candidates)


def candidates(*texts: str | Failure, row_id="r1", question="Which city is the capital of France?") -> Row:
    given = tuple(text if isinstance(text, Failure) else said(text) for text in texts)
    return row(row_id, question, answers={CANDIDATES: given})


@dataclass(frozen=True)
class Shown:
    """What a judge can read in the prompt of a comparison."""

    question: str
    a: str
    b: str
    criteria: tuple[str, ...]
    assessments: tuple[str, ...]


def shown(request: Request) -> Shown:
    text = request.messages[-1]["content"]
    code = re.match(r"Request:\n\[([0-9a-f]{12})Q\]\n", text)
    assert code is not None

    def fenced(name: str) -> str:
        (found,) = re.findall(rf"\n\[{code[1]}{name}\]\n(.*?)\n\[/{code[1]}{name}\](?=\n|$)", text, re.DOTALL)
        return found

    after = text.rsplit(f"[/{code[1]}B]", 1)[1]
    criteria = re.match(r"\n\nCriteria:\n((?:- .*\n)+)", after)
    assessments = re.findall(rf"Assessment \d+:\n\[{code[1]}(\d+)\]\n(.*?)\n\[/{code[1]}\1\]", after, re.DOTALL)
    return Shown(
        question=fenced("Q"),
        a=fenced("A"),
        b=fenced("B"),
        criteria=tuple(re.findall(r"- (.*?):", criteria[1])) if criteria else (),
        assessments=tuple(said for _, said in assessments),
    )


def pass_of(request: Request) -> str:
    return request.id.split("/")[1]


def kind_of(request: Request) -> str:
    """criteria, assess, decide, score or rate."""
    return pass_of(request).split(".")[0].rstrip("0123456789")


Script = Callable[[Request], Answer]


def script(decide: Callable[[Request], str], *, criteria: Callable[[Request], str] = lambda request: IN_FORM) -> Script:
    """A judge whose verdicts are said by decide; it assesses by naming the judge and the two answers."""

    def answer(request: Request) -> Answer:
        match kind_of(request):
            case "criteria":
                return said(criteria(request))
            case "assess":
                told = shown(request)
                return said(f"{pass_of(request)}: A is {told.a}, B is {told.b}. [[A]]")
            case _:
                return said(decide(request))

    return answer


def better(quality: Callable[[str], float]) -> Script:
    """A judge that is always right: the answer of higher quality; the first one of two equals."""

    def decide(request: Request) -> str:
        told = shown(request)
        return "[[A]]" if quality(told.a) >= quality(told.b) else "[[B]]"

    return script(decide)


def always_a(request: Request) -> str:
    return "Both are fine. [[A]]"


@dataclass(frozen=True)
class Judged:
    """A row after its passes, and every request, by pass."""

    row: Row
    requests: dict[str, list[Request]]

    @property
    def all_requests(self) -> list[Request]:
        return [request for requests in self.requests.values() for request in requests]


def judge_row(line: JudgeLine, given: Row, answer: Script, *, room=UNLIMITED, close: bool = True) -> Judged:
    """Pass by pass: ask, answer, fold; then the end of the line."""
    work = line.work("judge")
    assert set(given.answers) <= set(work.columns)
    requests: dict[str, list[Request]] = {}
    for p in work.passes:
        seen = replace(given, answers={name: a for name, a in given.answers.items() if name in (p.name, *p.reads)})
        try:
            asked = p.ask(seen, room)
        except CannotAskError as error:
            done = p.fold(seen, p.all_failed(seen, error.failure))
        else:
            requests[p.name] = asked
            assert len({request.id for request in asked}) == len(asked)
            done = p.fold(seen, {request.id: answer(request) for request in asked})
        assert not p.is_open(done), p.name
        given = replace(done, answers={**given.answers, **done.answers})
    return Judged(work.close(given) if close else given, requests)


def again(line: JudgeLine, failed: Row, answer: Script, *, room=UNLIMITED) -> Judged:
    """The next run: the failed row made ready, then its passes."""
    return judge_row(line, line.work("judge").reopen(failed), answer, room=room)
