"""RUN/pairs.html: one page that shows what a judge did, and some prompts with every verdict on their candidates."""

from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from moaa_ray.data.store import Store, open_store
from moaa_ray.errors import ConfigError
from moaa_ray.reporting import page_numbers, pictures
from moaa_ray.reporting.cards import Card, no_pair_card, pair_card
from moaa_ray.reporting.choosing import NoPair, PairFacts, choose_prompts, no_pairs, pair_facts, spread
from moaa_ray.reporting.comparisons import Meeting, score_text
from moaa_ray.reporting.judge_files import JudgeFiles, find_judge
from moaa_ray.reporting.lookup import find_in_file, find_rows, is_published
from moaa_ray.reporting.page import render
from moaa_ray.reporting.page_template import TEMPLATE
from moaa_ray.run_record import read_run

PAGE = "pairs.html"
_MOST_DOTS = 400
SCRIPT = """
document.getElementById("all").addEventListener("click", function () {
  var open = this.getAttribute("aria-pressed") !== "true";
  document.querySelectorAll("#prompts details").forEach(function (one) { one.open = open; });
  this.setAttribute("aria-pressed", String(open));
});
"""


def write_pairs_page(run: str, *, num_rows: int, judge: str = "") -> str:
    """Write the page, and say where it is.

    It is RUN/pairs.html for the judge in use, and RUN/judges/<name>/pairs.html for another one. Raises ConfigError
    where there is no run, no such judge or no prompt to show, DataError where the data are not whole.
    """
    store = open_store(run)
    name = read_run(store).get("name", "?")
    files = find_judge(store, judge)
    page, num_cards = render_page(files, run_name=name, num_rows=num_rows)
    data = page.encode()
    files.pairs.put(PAGE, data)
    return f"{files.pairs.uri}/{PAGE}: {num_cards:,} prompts judged by {files.name}, {len(data) / 1e6:.1f} MB"


def render_page(files: JudgeFiles, *, run_name: str, num_rows: int) -> tuple[str, int]:
    """The page as HTML, and how many prompts it shows."""
    stage, pairs, others = files.facts(), pair_facts(files), no_pairs(files)
    shown, dropped = choose_prompts(pairs, others, num_rows)
    cards = [*_pair_cards(files, shown), *_no_pair_cards(files, dropped)]
    if not cards:
        raise ConfigError(f"{files.pairs.uri}/pairs: no prompt there and none that failed; judge some first")
    about = f"{len(shown):,} of {len(pairs):,} pairs, by quantiles of the margin, widest first; then {len(dropped):,} "
    html = render(
        TEMPLATE,
        script=SCRIPT,
        run_name=run_name,
        judge=files.name,
        kind=files.section().get("kind", ""),
        is_in_use=files.is_in_use,
        uri=files.pairs.uri,
        headline=page_numbers.headline(stage),
        facts=page_numbers.facts(stage),
        tables=page_numbers.tables(stage),
        pictures=judge_pictures(page_numbers.main_stats(stage), pairs),
        cards=cards,
        num_all=len(pairs) + len(others),
        shown=about + f"of {len(others):,} prompts without a pair, some for every reason.",
        score=score_text,
        outcome=_outcome,
    )  # fmt: skip
    return html, len(cards)


def _outcome(each: Meeting) -> str:
    i, j = each.pair
    told = {1.0: f"{i} won in both orders", 0.0: f"{j} won in both orders", 0.5: "a tie, the orders disagree"}
    if len({q.judge for q in each.questions}) > 1:
        told = {1.0: f"{i} won by majority", 0.0: f"{j} won by majority", 0.5: "a tie"}
    return "a verdict is missing" if each.result is None else told[each.result]


def judge_pictures(stats: Mapping[str, Any], pairs: Sequence[PairFacts]) -> list[tuple[str, Markup]]:
    """Pictures of a judge's pairs and habits, with their titles; those for which there is something to draw."""
    lengths = [(pair.chosen_chars, pair.rejected_chars) for pair in spread(pairs, _MOST_DOTS)]
    dots = f" ({len(lengths)} of the pairs)" if len(lengths) < len(pairs) else ""
    drawn = [
        ("Margins", pictures.margin_histogram([pair.margin for pair in pairs])),
        (f"Lengths of chosen and rejected{dots}", pictures.length_scatter(lengths)),
    ]
    if first := page_numbers.position_parts(stats):
        title = f"Position: {_told(first)}; A is the one shown first"
        drawn.append((title, pictures.share_bar(first, half=True)))
    if orders := page_numbers.order_parts(stats):
        drawn.append((f"The two orders of a pair: {_told(orders)}", pictures.share_bar(orders)))
    return [(title, picture) for title, picture in drawn if picture]


def _told(parts: Sequence[tuple[str, float]]) -> str:
    return ", ".join(f"{name} {share:.0%}" for name, share in parts)


def _pair_cards(files: JudgeFiles, shown: Sequence[PairFacts]) -> list[Card]:
    records = _records(files.own, [pair.id for pair in shown])
    return [pair_card(pair, records[pair.id]) for pair in shown if pair.id in records]


def _no_pair_cards(files: JudgeFiles, dropped: Sequence[NoPair]) -> list[Card]:
    ids = [one.id for one in dropped]
    records = {**_records(files.own, ids), **_records(files.own, ids, "undecided")}
    rows = find_in_file(files.pairs, f"failures/{files.failures}.parquet", ids) if ids else ()
    failures = {found.record["id"]: found.record for found in rows}
    return [no_pair_card(one, failures[one.id], records.get(one.id)) for one in dropped]


def _records(own: Store, ids: Sequence[str], folder: str = "judgments") -> dict[str, Any]:
    rows = find_rows(own, folder, ids) if is_published(own, folder) else ()
    return {found.record["id"]: found.record for found in rows}
