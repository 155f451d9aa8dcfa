"""RUN/report.html: one page that shows a run, finished or not; it reads the run's files and starts nothing."""

import time
from collections.abc import Sequence
from typing import Any

from moaa_ray.data.store import open_store
from moaa_ray.errors import ConfigError
from moaa_ray.reporting import page_numbers
from moaa_ray.reporting import report_sections as sections
from moaa_ray.reporting.costs import cost_rows, costs_in
from moaa_ray.reporting.lanes import axis_of, lanes_of
from moaa_ray.reporting.page import render
from moaa_ray.reporting.report_judges import agreement_rows, judge_views
from moaa_ray.reporting.report_lengths import TITLES, length_rows, lengths_of
from moaa_ray.reporting.report_rows import row_cards
from moaa_ray.reporting.report_scores import scores_view
from moaa_ray.reporting.report_stages import EVALUATION, Place, StageFacts, clock, places_of, stage_rows, stages_of
from moaa_ray.reporting.report_template import SCRIPT, TEMPLATE
from moaa_ray.run_record import versions

PAGE = "report.html"
MOST_BYTES = 5_000_000
"""Of the page; with long texts it shows fewer rows."""


def write_report(run: str, *, num_rows: int, out: str = "") -> str:
    """Write the page, and say where it is: RUN/report.html, or the file `out`.

    Raises ConfigError where there is no run or `out` is no file's name, DataError where its published data are not
    whole.
    """
    folder, _, name = out.rpartition("/") if out else (run, "", PAGE)
    if name in ("", ".", ".."):
        raise ConfigError(f"--out {out}: a folder's name; name a file in it, for instance {out.rstrip('/')}/{PAGE}")
    page = render_report(run, num_rows=num_rows, now=time.time()).encode()
    store = open_store(folder or ("/" if out.startswith("/") else "."))
    store.put(name, page)
    return f"{store.uri}/{name}: {len(page) / 1e6:.1f} MB"


def render_report(run: str, *, num_rows: int, now: float) -> str:
    """The page as HTML; now is the unix time at which it says it was made."""
    places = places_of(run)
    whole = places[0]
    recipe_text, recipe = sections.recipe_of(whole.store)
    stages = stages_of(places)
    values = {
        "run_name": whole.record.get("name", "?"),
        "uri": whole.store.uri,
        "made_at": clock(now),
        "version": versions().get("moaa_ray", ""),
        "models": sections.model_rows(recipe),
        "recipe": recipe_text,
        **_ran(places, stages),
        **_timeline(stages),
        **_data(places),
    }
    cards = row_cards(whole.store, num_rows, seed=int(recipe.get("seed") or 0))
    html = ""
    while not html or (len(html.encode()) > MOST_BYTES and cards):
        cards = cards if not html else cards[: len(cards) // 2]
        html = render(TEMPLATE, script=SCRIPT, parts=_parts(values), cards=cards, **values)
    return html


def _ran(places: Sequence[Place], stages: Sequence[StageFacts]) -> dict[str, Any]:
    costs = [cost for one in stages for cost in costs_in({**one.facts, "usage": one.usage}, title=one.title)]
    record = places[0].record
    return {
        "headline": sections.headline(stages),
        "facts": sections.facts_of(_own(places), stages, costs),
        "stages": stage_rows(stages),
        "starts": sections.start_rows(record),
        "changes": [change for one in record.get("changes", []) for change in one["fields"]],
        "costs": cost_rows(costs) if costs else [],
        "pools": [(f"Pools of {one.title}", page_numbers.pool_rows(one.usage)) for one in stages if one.usage],
        "failures": sections.failure_rows(places),
        "request_failures": sections.request_failure_rows(stages),
        "training": [sections.training_view(one) for one in stages if one.steps],
    }


def _timeline(stages: Sequence[StageFacts]) -> dict[str, Any]:
    axis = axis_of(stages)
    if axis is None:
        return {"lanes": [], "ticks": [], "num_cuts": 0, "began": ""}
    return {
        "lanes": [(one.title, lanes_of(one, axis)) for one in stages if one.spans],
        "ticks": axis.ticks(),
        "num_cuts": len(axis.cuts()),
        "began": clock(axis.shown[0][0]),
    }


def _data(places: Sequence[Place]) -> dict[str, Any]:
    own = _own(places)
    views = {place.path: judge_views(place.store) for place in own}
    lengths = []
    for place in own:
        of_pairs = [one for view in views[place.path] if view.is_in_use for one in view.lengths]
        lengths.append((place.title, *length_rows([*lengths_of(place.store), *of_pairs])))
    judges = [
        (_titled(f"{view.name}{', in use' * view.is_in_use}", place), view)
        for place in own
        for view in views[place.path]
    ]
    agreement = [(_titled("How far the judges agree", place), agreement_rows(place.store)) for place in own]
    return {
        "lengths": [one for one in lengths if one[1]],
        "length_titles": TITLES,
        "judges": judges,
        "agreement": [one for one in agreement if one[1]],
        "evaluation": scores_view(places[0].store),
    }


def _own(places: Sequence[Place]) -> list[Place]:
    """The run's, its rounds' and its iterations' directories; a judge's work is shown where its pairs are."""
    return [place for place in places if not {"judges", "checks", EVALUATION} & set(place.path.split("/"))]


def _titled(text: str, place: Place) -> str:
    return f"{text}, {place.title}" if place.title else text


def _parts(values: dict[str, Any]) -> list[tuple[str, str]]:
    """(anchor, title) of the sections that the page has."""
    known = (("ran", "What ran", True), ("time", "Timeline", True), ("cost", "Tokens and cost", True),
             ("failures", "Failures", True), ("lengths", "Lengths", values["lengths"]),
             ("judges", "Judges", values["judges"] or values["agreement"]),
             ("scores", "Evaluation", values["evaluation"]), ("training", "Training", values["training"]),
             ("rows", "Sample rows", True))  # fmt: skip
    return [(anchor, title) for anchor, title, is_there in known if is_there]
