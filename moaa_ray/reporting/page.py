"""What every page of a run has in common: how values get into it, its head, and how texts and tables are laid out.

Whatever models or users wrote is data: it is escaped and made visible where a template puts it in, and the page's own
policy lets a browser load and run nothing but what is in it.
"""

import re
from collections.abc import Sequence
from typing import Any

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from moaa_ray.reporting.page_style import STYLE, policy
from moaa_ray.reporting.visible import visible

MOST_CHARS = 20_000
"""Of one text on a page; longer ones end there, and the page says so."""
_MOST_LINES = 16
_NUMBER = re.compile(r"[-+\d.,%:/ \[\]]*(n/a|[hms][hms\d]*| min| USD)?")
"""Also with an interval, a unit or a clock's time."""

_MACROS = """\
{% macro body(text, start=700) %}
{% set head, tail, num_cut = text | parts(start) %}
{% if head %}<div class="text" dir="auto" lang="">{{ head }}</div>{% endif %}
{% if tail %}<details><summary>{{ "... " if head else "" }}{{ (tail | length) | num }} \
{{ "more " if head else "" }}characters</summary><div class="text" dir="auto" lang="">{{ tail }}</div>
{% if num_cut %}<p class="soft">Cut here: {{ num_cut | num }} more characters are in the run's data.</p>{% endif %}
</details>{% endif %}
{% endmacro %}
{% macro grid(title, rows, has_caption=false) %}
<div class="scroll" tabindex="0" role="region" aria-label="{{ title }}"><table>
{% if has_caption %}<caption>{{ title }}</caption>{% endif %}
{% set words = rows | columns_of_words %}
<thead><tr>{% for name in rows[0] %}<th class="{{ "name" if loop.index0 in words }}" scope="col">{{ name }}</th>\
{% endfor %}</tr></thead><tbody>{% for row in rows[1:] %}
<tr>{% for value in row %}{% if loop.first %}<th class="name" scope="row">{{ value }}</th>{% else %}\
<td class="{{ "name" if loop.index0 in words }}">{{ value }}</td>{% endif %}{% endfor %}</tr>{% endfor %}
</tbody></table></div>
{% endmacro %}
{% macro tiles(facts) %}
<dl class="facts">{% for fact in facts %}<div><dt>{{ fact.name }}</dt>
<dd>{{ fact.value }}<small>{{ fact.about }}</small></dd></div>{% endfor %}</dl>
{% endmacro %}
{% macro drawn(pictures) %}
<div class="pictures">{% for title, picture in pictures %}
<figure><figcaption>{{ title }}</figcaption>{{ picture }}</figure>{% endfor %}</div>
{% endmacro %}
{% macro document(title) %}
<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{{ policy }}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="format-detection" content="telephone=no, date=no, address=no, email=no, url=no">
<meta name="referrer" content="no-referrer">
<title>{{ title }}</title><style>{{ style }}</style></head>
{% endmacro %}
"""


def render(template: str, *, script: str, **values: Any) -> str:
    """A page. Every value is made visible and escaped; only what our own modules wrap as Markup is taken as HTML.

    script is the page's only one, and a constant of ours.
    """
    own = {"style": STYLE, "script": script, "policy": policy(script)}
    trusted = {name: Markup(text) for name, text in own.items()}  # noqa: S704 - constants of ours
    return _environment().from_string(_MACROS + template).render(**trusted, **values).lstrip()


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


def columns_of_words(rows: Sequence[Sequence[str]]) -> set[int]:
    """The first column, and those with a cell that is no number; rows begin with one of titles."""
    return {i for i, _ in enumerate(rows[0]) if not i or any(not _NUMBER.fullmatch(row[i]) for row in rows[1:])}


def _environment() -> Environment:
    def finalize(value: Any) -> Any:
        return value if isinstance(value, Markup) else visible(str(value))

    environment = Environment(autoescape=True, finalize=finalize, undefined=StrictUndefined, trim_blocks=True)
    environment.filters["parts"] = text_parts
    environment.filters["columns_of_words"] = columns_of_words
    environment.filters["num"] = "{:,}".format
    return environment
