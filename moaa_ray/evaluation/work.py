"""The work of an evaluation: every model answers, then every judge judges, each as a stage in its own directory."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from rich.console import Console

from moaa_ray.data.schemas import Record
from moaa_ray.data.store import open_store
from moaa_ray.evaluation.answering import STAGE, Said, samplings_of
from moaa_ray.evaluation.benchmarks import Bench
from moaa_ray.evaluation.contestants import Contestant
from moaa_ray.evaluation.mt_bench import Question
from moaa_ray.evaluation.rows import answers_of, question_rows, tasks_of
from moaa_ray.evaluation.stages import answer_stage, answers_made_with, files_field, judge_stage
from moaa_ray.evaluation.summary import place_of, published
from moaa_ray.generation.session import one_session
from moaa_ray.loading import LoadedPreference
from moaa_ray.preference.stage import RowStage, put_through
from moaa_ray.run_record import join_run, made_with, noting_stop, put_progress, set_stage
from moaa_ray.settings.evaluation import Benchmark
from moaa_ray.types import Row

Answers = dict[str, dict[Benchmark, dict[str, Said]]]
"""By model, benchmark and question."""


@dataclass(kw_only=True)
class Work:
    """What is asked of whom in one start of an evaluation, and how far it is."""

    given: LoadedPreference
    """The recipe as it was given, for the record: in `loaded`, models of the run have engines."""
    loaded: LoadedPreference
    contestants: Sequence[Contestant]
    benches_of: Mapping[str, Sequence[Bench]]
    """By contestant, the benchmarks that it has a line in."""
    anew: Collection[str]
    """Models and judges whose earlier rows are forgotten."""
    console: Console | None
    worked: tuple[float, float] | None = field(default=None, init=False)
    """Unix times of the first and the last work of this start."""
    _num_parts: int = field(default=0, init=False)
    _num_begun: int = field(default=0, init=False)

    @property
    def benches(self) -> list[Bench]:
        """All of them, in the order of the table."""
        named = {bench.name: bench for benches in self.benches_of.values() for bench in benches}
        return [named[name] for name in self.loaded.recipe.evaluate.benchmarks if name in named]

    def run(self, answers: Answers) -> list[Record]:
        """Put what the models say into `answers`, beside what is stored, and give what was judged of all of it.

        Raises ConfigError or DataError before anything starts, StageError where a part of it stopped short.
        """
        answering = [one for one in self.contestants if one.engine]
        judges = list(dict.fromkeys(bench.config.judge for bench in self.benches))
        self._num_parts = len(answering) + len(judges)
        asked: dict[Benchmark, Sequence[Question]] = {bench.name: bench.questions for bench in self.benches}
        samplings = samplings_of(self.loaded.recipe.evaluate, asked)
        rows = question_rows(self.benches, samplings)
        stages = {
            one.name: answer_stage(self.loaded, one, rows, samplings, restart=one.name in self.anew)
            for one in answering
        }
        plans = [stage.plan for stage in stages.values()]
        plans += [judge_stage(self.loaded, judge, {}, self.benches, restart=False).plan for judge in judges]
        store = open_store(self.given.run_dir)
        join_run(store, self.given)
        with noting_stop(store, STAGE):
            set_stage(store, STAGE, status="running", epoch=0)
            with one_session(cpu_slots=max(plan.cpu_slots for plan in plans), with_dashboard=False):
                for name, stage in stages.items():
                    names = {bench.name for bench in self.benches_of[name]}
                    own = [each.row for each in rows.values() if each.bench.name in names]
                    answers[name] = answers_of(self._put_through(f"answers/{name}", stage, own))
                return [record for judge in judges for record in self._judge(judge, answers)]

    def _judge(self, judge: str, answers: Answers) -> list[Record]:
        own = [bench for bench in self.benches if bench.config.judge == judge]
        tasks = {task.row.id: task for name in answers for task in tasks_of(name, answers[name], own)}
        stage = judge_stage(self.loaded, judge, tasks, self.benches, restart=judge in self.anew)
        return self._put_through(f"judges/{judge}", stage, [task.row for task in tasks.values()])

    def _put_through(self, place: str, stage: RowStage, rows: Iterable[Row]) -> list[Record]:
        """Put rows through a stage in a directory of its own; the records of all of them, failed ones included."""
        self._num_begun += 1
        told = f"{place}, {self._num_begun} of {self._num_parts}"
        if self.console is not None:
            anew = ", as it was trained anew" if stage.restart and place.startswith("answers/") else ""
            self.console.print(f"{STAGE}: {told}{anew}", style="dim")
        put_progress(open_store(self.given.run_dir), STAGE, epoch=0, text=told)
        store = place_of(self.given.run_dir, place)
        join_run(store, self.given)
        summary = put_through(stage, store, rows, console=self.console)
        if summary.worked is not None:
            self.worked = (self.worked or summary.worked)[0], summary.worked[1]
        return published(store, stage.folder, stage.failed_folder)


def is_trained_anew(loaded: LoadedPreference, one: Contestant) -> bool:
    """Whether the run has trained a model again since it answered, and nothing else about it has changed."""
    if not one.is_own:
        return False
    known = made_with(place_of(loaded.run_dir, f"answers/{one.name}"), STAGE)
    now = answers_made_with(loaded, one)
    return bool(known) and known != now and {**known, files_field(one): one.digest} == now
