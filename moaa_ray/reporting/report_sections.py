"""Rows and numbers of report.html that come out of run.json, recipe.yaml, summary.json, failures/ and metrics/."""

from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import groupby
from operator import itemgetter
from typing import Any

from markupsafe import Markup

from moaa_ray.data.manifest import open_shard, read_manifest
from moaa_ray.data.store import Store
from moaa_ray.generation.progress import duration
from moaa_ray.reporting import pictures
from moaa_ray.reporting.costs import Cost, total_cost
from moaa_ray.reporting.lookup import is_published
from moaa_ray.reporting.page_numbers import Fact
from moaa_ray.reporting.report_stages import Place, StageFacts, worked_s
from moaa_ray.settings import checks
from moaa_ray.settings.yaml_text import parse_yaml
from moaa_ray.training_stage.progress import progress_line

Rows = list[Sequence[str]]
_MOST_STARTS = 12
_DATA = (
    ("prompts", "Prompts", "read from the recipe's sources"),
    ("sft", "Syntheses", "rows to tune the student on"),
    ("candidates", "Candidates", "prompts that the student answered several times"),
    ("pairs", "Pairs", "of a chosen and a rejected completion"),
)


def recipe_of(store: Store) -> tuple[str, Mapping[str, Any]]:
    """The recipe of the run's newest start as text and read; ("", {}) where it is gone."""
    if not store.exists("recipe.yaml"):
        return "", {}
    text = store.read("recipe.yaml").decode()
    recipe = parse_yaml(text, "recipe.yaml")
    return text, recipe if isinstance(recipe, dict) else {}


def headline(stages: Sequence[StageFacts]) -> str:
    """One or two sentences: how far the run is."""
    if not stages:
        return "No stage has begun."
    done, open_ones = ([one for one in stages if one.is_done is state] for state in (True, False))
    text = f"{_listed([one.title for one in done])} {'is' if len(done) == 1 else 'are'} done." if done else ""
    return " ".join([text, *(f"{one.title} is not: {one.told}." for one in open_ones)]).strip()


def facts_of(places: Sequence[Place], stages: Sequence[StageFacts], costs: Sequence[Cost]) -> list[Fact]:
    """The numbers at the top; those that there are."""
    found = []
    for folder, name, about in _DATA:
        rows = [read_manifest(p.store, folder).rows for p in places if is_published(p.store, folder)]
        if rows:
            found.append(Fact(name=name, value=f"{sum(rows):,}", about=about))
    total = total_cost(costs)
    if costs:
        tokens = f"{_short(total.prompt_tokens)} / {_short(total.completion_tokens)}"
        found.append(Fact(name="Tokens", value=tokens, about="read / written by models, training included"))
    if total.gpu_s:
        found.append(Fact(name="GPU-hours", value=f"{total.gpu_s / 3600:,.2f}", about="of engines and training"))
    if total.cost_usd is not None:
        found.append(Fact(name="Cost", value=f"{total.cost_usd:,.2f} USD", about="at the recipe's prices"))
    spans = [span for one in stages for span in one.spans]
    if spans:
        passed = max(end for _, end in spans) - min(begin for begin, _ in spans)
        about = f"within {duration(passed)} from the first work to the last"
        found.append(Fact(name="At work", value=duration(worked_s(spans)), about=about))
    return found


def model_rows(recipe: Mapping[str, Any]) -> Rows:
    """The models of the recipe, below a row of titles."""
    models = checks.mapping(recipe, "models")
    rows = [
        (name, *(str(checks.mapping(models, name).get(field) or "-") for field in ("engine", "model", "revision")))
        for name in models
    ]
    return [("name", "engine", "model", "revision"), *rows]


def start_rows(record: Mapping[str, Any]) -> Rows:
    """The newest starts and what they ran on, below a row of titles; those alike that follow each other in one row."""
    told = []
    for start in record.get("sessions", []):
        packages = ", ".join(f"{name} {version[:12]}" for name, version in start["versions"].items())
        told.append((start["at"][:16].replace("T", " "), start["host"], f"python {start['python']}, {packages}"))
    alike = [list(group) for _, group in groupby(told, key=itemgetter(1, 2))]
    rows = [(group[0][0], f"{len(group):,}", *group[0][1:]) for group in alike]
    return [("first begun (UTC)", "starts", "host", "versions"), *rows[-_MOST_STARTS:]]


def failure_rows(places: Sequence[Place]) -> Rows:
    """Prompts that are not in a stage's data, by status and reason, most frequent first, below a row of titles."""
    rows: Rows = []
    for place in places:
        for path in sorted(place.store.list("failures")):
            if not path.endswith(".parquet") or ("judges/" in place.path and path == "failures/judge.parquet"):
                continue  # a judge's own list of failed prompts is part of the one beside its pairs
            with open_shard(place.store, path) as parquet:
                table = parquet.read(columns=["status", "reason"])
            counts = Counter(zip(*(table.column(name).to_pylist() for name in ("status", "reason")), strict=True))
            stage = path.removeprefix("failures/").removesuffix(".parquet")
            stage = f"{stage} ({place.title})" if place.title else stage
            rows += [(stage, status, reason, f"{num:,}") for (status, reason), num in counts.most_common()]
    return [("stage", "status", "reason", "prompts"), *rows]


def request_failure_rows(stages: Sequence[StageFacts]) -> Rows:
    """Requests that failed, by pool and reason, below a row of titles."""
    rows = [
        (one.title, pool["name"], reason, f"{num:,}", f"{num / max(1, pool['calls']):.1%}")
        for one in stages
        for pool in one.usage
        for reason, num in sorted(pool["failures"].items(), key=lambda entry: -entry[1])
    ]
    return [("stage", "pool", "reason", "requests", "of all calls"), *rows]


def training_view(stage: StageFacts) -> tuple[str, str, list[tuple[str, Markup]]]:
    """Title, how far it is in words, and its curves with their titles."""
    steps = stage.steps
    drawn = [("Loss", [("loss", "loss")]), ("Learning rate", [("learning rate", "learning_rate")])]
    if any("validation_loss" in step for step in steps):
        drawn[0] = (
            "Loss, and validation loss (dashed)",
            [("loss", "loss"), ("validation loss", "validation_loss")],
        )
    if "accuracy" in steps[-1]:
        names = [("accuracy", "accuracy"), ("the longer wins", "longer_wins")]
        drawn[1:1] = [("Accuracy, and how often the longer wins (dashed)", names), ("Margin", [("margin", "margin")])]
    shown = [(title, pictures.curves([(name, _line(steps, key)) for name, key in lines])) for title, lines in drawn]
    return stage.title, progress_line(stage.stage, [dict(step) for step in steps]), shown


def _line(steps: Sequence[Mapping[str, Any]], key: str) -> list[tuple[float, float]]:
    return [(step["step"] + 1, step[key]) for step in steps if key in step]


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _short(number: int) -> str:
    for unit, size in ((" M", 10**6), (" k", 10**3)):
        if number >= 10 * size:
            return f"{number / size:,.1f}{unit}" if number < 1000 * size else f"{number / size:,.0f}{unit}"
    return f"{number:,}"
