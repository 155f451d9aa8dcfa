"""The benchmarks of a recipe, read and checked: questions, baseline, references, and how they are judged."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import get_args

from moaa_ray.data.locations import find_files
from moaa_ray.errors import ConfigError, DataError
from moaa_ray.evaluation import mt_bench
from moaa_ray.evaluation.contestants import Contestant, check_judge
from moaa_ray.evaluation.files import Answers, read_answers, read_questions
from moaa_ray.evaluation.length_control import GamedAnnotation, parse_difficulties, parse_gamed
from moaa_ray.evaluation.mt_bench import Question
from moaa_ray.evaluation.protocols import JudgeProtocol, protocol_of
from moaa_ray.loading import LoadedPreference
from moaa_ray.model_folders import window_of
from moaa_ray.settings.checks import choices
from moaa_ray.settings.evaluation import (
    AlpacaEvalConfig,
    AnswersFile,
    ArenaHardConfig,
    Benchmark,
    MtBenchConfig,
)

BENCHMARKS: tuple[Benchmark, ...] = get_args(Benchmark)
REWARD_BENCH = "reward_bench"
"""The section of an evaluation that is about judges, and asks the models nothing."""
NUM_TURNS: Mapping[Benchmark, int] = {"alpaca_eval": 1, "arena_hard": 1, "mt_bench": mt_bench.NUM_TURNS}


@dataclass(frozen=True, kw_only=True)
class Bench:
    """One benchmark, ready to be run."""

    name: Benchmark
    config: AlpacaEvalConfig | ArenaHardConfig | MtBenchConfig
    questions: Sequence[Question]
    """References are there where the judge is shown them."""
    protocol: JudgeProtocol
    baseline: Answers | None = None
    difficulties: Mapping[str, float] = field(default_factory=dict)
    """Published ones, by question; empty: they are fitted."""
    gamed: Sequence[GamedAnnotation] = ()

    @property
    def path(self) -> str:
        """Its section of the recipe."""
        return f"evaluate.{self.name}"

    def stored(self, contestant: Contestant, *, base_dir: str) -> Answers | None:
        """The stored answers of a contestant to these questions; None: it has none. Raises as read_answers."""
        file: AnswersFile | None = getattr(contestant.stored, self.name)
        place = f"evaluate.models.{contestant.name}.{self.name}"
        return None if file is None else self._answers(file, place, base_dir)

    def _answers(self, file: AnswersFile, place: str, base_dir: str) -> Answers:
        num_turns = NUM_TURNS[self.name]
        return read_answers(file, self.questions, field=place, num_turns=num_turns, base_dir=base_dir)


def read_benchmarks(loaded: LoadedPreference, only: Sequence[str] = ()) -> list[Bench]:
    """The recipe's benchmarks, or only those of these names. Raises ConfigError or DataError before anything starts."""
    config = loaded.recipe.evaluate
    known = (*BENCHMARKS, REWARD_BENCH)
    for name in only:
        if name not in known:
            raise ConfigError(f"--only {name}: there is no such benchmark; {choices(name, known)}")
        if getattr(config, name) is None:
            raise ConfigError(f"--only {name}: the recipe has no section evaluate.{name}; add it, with its questions")
    if not config.benchmarks and config.reward_bench is None:
        raise ConfigError(
            f"evaluate: no benchmark in the recipe; add a section for one of {', '.join(BENCHMARKS)}, with its "
            f"questions and a judge, or {REWARD_BENCH}, with pairs and judges"
        )
    return [_read(loaded, name) for name in config.benchmarks if not only or name in only]


def check_opponent(bench: Bench, contestant: Contestant, model: str, texts: Mapping[str, Sequence[str]]) -> None:
    """Raise ConfigError where a contestant is the very model that is the baseline.

    Args: model, its name outside the recipe; texts, its stored answers, if any.
    """
    baseline = bench.baseline
    if baseline is None:
        return
    if baseline.model in (contestant.name, model) or (texts and texts == baseline.texts):
        raise ConfigError(
            f"evaluate.models.{contestant.name}: is {baseline.model!r}, the baseline of {bench.name}, which has 50 % "
            f"against itself by definition; take it out, or set {bench.path}.baseline to another model's answers"
        )


def _read(loaded: LoadedPreference, name: Benchmark) -> Bench:
    recipe, base_dir = loaded.recipe, str(loaded.base_dir)
    section, place = recipe.evaluate.benchmarks[name], f"evaluate.{name}"
    check_judge(loaded, name)
    num_turns = NUM_TURNS[name]
    questions = read_questions(section.questions, field=f"{place}.questions", num_turns=num_turns, base_dir=base_dir)
    if isinstance(section, MtBenchConfig):
        questions = _with_references(questions, section.references, base_dir=base_dir)
    protocol = protocol_of(name, recipe.evaluate, run_seed=recipe.seed)
    window, max_tokens = window_of(recipe.models[section.judge], loaded.base_dir), protocol.sampling.max_tokens
    if window and max_tokens >= window:
        raise ConfigError(
            f"{place}.judge_max_tokens = {max_tokens}: not below the context window of judge {section.judge!r}, "
            f"{window} tokens; lower it, or take a judge with a longer window"
        )
    bench = Bench(
        name=name,
        config=section,
        questions=questions,
        protocol=protocol,
    )
    if isinstance(section, MtBenchConfig):
        return bench
    baseline = bench._answers(section.baseline, f"{place}.baseline", base_dir)
    bench = replace(bench, baseline=baseline)
    if isinstance(section, ArenaHardConfig) or not section.difficulties:
        return bench
    ids = [question.id for question in questions]
    difficulties = _text(section.difficulties, field=f"{place}.difficulties", base_dir=base_dir)
    gamed = _text(section.gamed, field=f"{place}.gamed", base_dir=base_dir) if section.gamed else ""
    return replace(
        bench, difficulties=parse_difficulties(difficulties, ids), gamed=parse_gamed(gamed) if gamed else ()
    )  # fmt: skip


def _with_references(questions: Sequence[Question], file: AnswersFile | None, *, base_dir: str) -> list[Question]:
    """The questions with references in the categories where the judge is shown them, and nowhere else."""
    needed = [one for one in questions if one.category in mt_bench.REFERENCE_CATEGORIES]
    known: Mapping[str, tuple[str, ...]] = {one.id: one.references for one in needed}
    if file is not None and needed:
        place = "evaluate.mt_bench.references"
        known = read_answers(file, needed, field=place, num_turns=mt_bench.NUM_TURNS, base_dir=base_dir).texts
    found = [replace(one, references=known.get(one.id, ())) for one in questions]
    for one in found:
        try:
            mt_bench.check_question(one)
        except DataError as error:
            raise DataError(f"evaluate.mt_bench.questions: {error}; or set evaluate.mt_bench.references") from error
    return found


def _text(path: str, *, field: str, base_dir: str) -> str:
    files = find_files(path, field=field, base_dir=base_dir)
    with files.fs.open(files.paths[0], "rb") as file:
        raw = file.read()
    try:
        return raw.decode("utf-8-sig") if isinstance(raw, bytes) else raw
    except UnicodeDecodeError as error:
        raise DataError(f"{field} = {path!r}: is not UTF-8 text; give the published file") from error
