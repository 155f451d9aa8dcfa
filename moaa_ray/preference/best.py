"""Which of the stored answers to a prompt a judge ranks first; its verdicts stay in RUN/baselines/judges/<judge>.

Every turn is judged by itself, on the history that it was answered on. Of a row of several turns the best answers are
those with the highest mean of the turns' scores, as in MoAA (arXiv 2505.03059, table 3).
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import inf

from rich.console import Console

from moaa_ray.core.candidates import CANDIDATES, distinct_candidates
from moaa_ray.data import publish
from moaa_ray.data.store import open_store
from moaa_ray.generation.summary import Summary
from moaa_ray.generation.todo import SEED_ROWS
from moaa_ray.loading import Loaded
from moaa_ray.preference.judge import judge_rows
from moaa_ray.preference.teachers import Answered, Teacher
from moaa_ray.recipe import PreferenceRecipe
from moaa_ray.run_folders import judge_folder, with_run_models
from moaa_ray.types import Answer, Completion, Failure, Row


@dataclass(frozen=True, kw_only=True)
class Place:
    """What a judge made of the candidates of one turn: scores by candidate, and candidates best first."""

    scores: Sequence[float | None]
    ranking: Sequence[int]


@dataclass(frozen=True, kw_only=True)
class Ranked:
    """What a judge made of all answers, by the id of the turn."""

    teachers: Sequence[Teacher]
    places: Mapping[str, Place]
    summary: Summary

    def best(self, row: Answered) -> str:
        """The teacher whose answers are the best; empty where a turn has no ranking.

        Equal means go to the better mean place, then to the teacher that the recipe names first. Where all answers are
        the same text no judge is asked.
        """
        asked = list(turns(row, self.teachers))
        known = [self.places.get(turn.id) for turn in asked]
        if any(place is None or not place.ranking for place in known):
            return ""
        there = [i for i, teacher in enumerate(self.teachers) if teacher.name in row.proposals]
        places = [place for place in known if place is not None]

        def merit(i: int) -> tuple[float, int]:
            scores = [place.scores[i] for place in places]
            return sum(-inf if score is None else score for score in scores), -sum(_rank(place, i) for place in places)

        return self.teachers[max(there, key=merit)].name


def turns(row: Answered, teachers: Sequence[Teacher]) -> Iterator[Row]:
    """The turns of a row as rows to judge, by teacher one candidate; not those that are answered by one text only."""
    for turn, context in enumerate(row.contexts):
        answers = tuple(_candidate(row, teacher, turn) for teacher in teachers)
        judged = Row(
            id=f"{row.record['id']}#{turn}",
            source=row.record["source"],
            messages=context,
            answers={CANDIDATES: answers},
        )
        if len(distinct_candidates(judged)) > 1:
            yield judged


def rank_answers(
    loaded: Loaded[PreferenceRecipe],
    judge: str,
    teachers: Sequence[Teacher],
    rows: Iterable[Answered],
    *,
    restart: bool = False,
    console: Console | None = None,
) -> Ranked:
    """Put all answers to a judge, or go on with it. Raises as `judge` does."""
    loaded = with_run_models(loaded)
    own = open_store(judge_folder(f"{loaded.run_dir}/baselines", judge))
    asked = (turn for row in rows for turn in turns(row, teachers))
    summary = judge_rows(
        loaded,
        judge,
        own,
        asked,
        facts={"judge": judge},
        restart_command=f"moaa baselines best --judge {judge} --restart",
        restart=restart,
        console=console,
    )
    places: dict[str, Place] = {}
    for table in publish.read_batches(own, "judgments", batch_rows=SEED_ROWS):
        for record in table.select(["id", "scores", "ranking"]).to_pylist():
            places[record["id"]] = Place(scores=record["scores"], ranking=record["ranking"])
    return Ranked(teachers=teachers, places=places, summary=summary)


def _candidate(row: Answered, teacher: Teacher, turn: int) -> Answer:
    """The answer of a teacher that has answered every turn."""
    if teacher.name not in row.proposals:
        return Failure(reason=row.lacking[teacher.name], retryable=False)
    proposal = row.proposals[teacher.name][turn]
    return Completion(
        text=proposal["completion"],
        finish_reason=proposal["finish_reason"],
        prompt_tokens=proposal["prompt_tokens"],
        completion_tokens=proposal["completion_tokens"],
    )


def _rank(place: Place, candidate: int) -> int:
    """From 0; one whose text is also an earlier candidate's has no place of its own and stands last."""
    return place.ranking.index(candidate) if candidate in place.ranking else len(place.ranking)
