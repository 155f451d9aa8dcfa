"""RUN/pairs.html: one page that shows what a judge did, and some prompts with every verdict on their candidates.

Whatever models or users wrote is data: it is escaped and made visible where the template puts it in, and the page's
own policy lets a browser load and run nothing but what is in it.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from moaa_ray.data.store import Store, open_store
from moaa_ray.errors import ConfigError
from moaa_ray.reporting import page_numbers, pictures
from moaa_ray.reporting.cards import Card, no_pair_card, pair_card
from moaa_ray.reporting.choosing import NoPair, PairFacts, choose_prompts, no_pairs, pair_facts, spread
from moaa_ray.reporting.comparisons import Meeting, score_text
from moaa_ray.reporting.judge_files import JudgeFiles, find_judge
from moaa_ray.reporting.lookup import find_in_file, find_rows
from moaa_ray.reporting.page_style import POLICY, SCRIPT, STYLE
from moaa_ray.reporting.page_template import TEMPLATE
from moaa_ray.reporting.visible import visible
from moaa_ray.run_record import read_run

PAGE = "pairs.html"
MOST_CHARS = 20_000
"""Of one text on the page; longer ones end there, and the page says so."""
_MOST_LINES = 16
_MOST_DOTS = 400


def write_pairs_page(run: str, *, num_rows: int, judge: str = "") -> str:
    """Write the page, and say where it is.

    It is RUN/pairs.html for the judge in use, and RUN/judges/<name>/pairs.html for another one. Raises ConfigError
    where there is no run, no such judge or no prompt to show, DataError where the data are not whole.
    """
    store = open_store(run)
    name = read_run(store)["name"]
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
    html = _environment().from_string(TEMPLATE).render(
        run_name=run_name,
        judge=files.name,
        kind=files.section().get("kind", ""),
        is_in_use=files.is_in_use,
        uri=files.pairs.uri,
        headline=page_numbers.headline(stage),
        facts=page_numbers.facts(stage),
        tables=page_numbers.tables(stage),
        pictures=_pictures(page_numbers.main_stats(stage), pairs),
        cards=cards,
        num_all=len(pairs) + len(others),
        shown=about + f"of {len(others):,} prompts without a pair, some for every reason.",
        policy=Markup(POLICY),  # noqa: S704 - these three are constants of ours
        style=Markup(STYLE),  # noqa: S704
        script=Markup(SCRIPT),  # noqa: S704
    )  # fmt: skip
    return html, len(cards)


def text_parts(text: str, start: int) -> tuple[str, str, int]:
    """(what is shown at once, what is folded, how many characters are left out) of a text, cut between words."""
    num_cut = max(0, len(text) - MOST_CHARS)
    text = text[:MOST_CHARS]
    line_ends = [i for i, character in enumerate(text[: start + 1]) if character == "\n"]
    stop = min(start, line_ends[_MOST_LINES - 1]) if len(line_ends) >= _MOST_LINES else start
    if len(text) <= stop + start // 3 and stop == start:
        return text, "", num_cut
    cut = max(text.rfind(" ", 0, stop), text.rfind("\n", 0, stop))
    cut = cut if cut > stop // 2 else stop
    return text[:cut], text[cut:].lstrip("\n"), num_cut


def _environment() -> Environment:
    """Every value is made visible and escaped; only what this module wraps as Markup is taken as HTML."""

    def finalize(value: Any) -> Any:
        return value if isinstance(value, Markup) else visible(str(value))

    environment = Environment(autoescape=True, finalize=finalize, undefined=StrictUndefined, trim_blocks=True)
    environment.filters["parts"] = text_parts
    environment.filters["num"] = "{:,}".format
    environment.filters["score"] = score_text
    environment.filters["outcome"] = _outcome
    return environment


def _outcome(each: Meeting) -> str:
    i, j = each.pair
    told = {1.0: f"{i} won in both orders", 0.0: f"{j} won in both orders", 0.5: "a tie, the orders disagree"}
    if len({q.judge for q in each.questions}) > 1:
        told = {1.0: f"{i} won by majority", 0.0: f"{j} won by majority", 0.5: "a tie"}
    return "a verdict is missing" if each.result is None else told[each.result]


def _pictures(stats: Mapping[str, Any], pairs: Sequence[PairFacts]) -> list[tuple[str, Markup]]:
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
    records = _records(files.own, ids)
    rows = find_in_file(files.pairs, f"failures/{files.failures}.parquet", ids) if ids else ()
    failures = {found.record["id"]: found.record for found in rows}
    return [no_pair_card(one, failures[one.id], records.get(one.id)) for one in dropped]


def _records(own: Store, ids: Sequence[str]) -> dict[str, Any]:
    return {found.record["id"]: found.record for found in find_rows(own, "judgments", ids)}
