"""A page taken apart: its elements, whether they close, what stands in its boxes of text; and text that does harm."""

from html.parser import HTMLParser
from itertools import pairwise

VOID = {"meta", "rect", "line", "circle", "polyline", "input"}
HOSTILE = [
    "<script>alert(1)</script><img src=x onerror=alert(2)>",
    "\"'><svg onload=alert(3)><style>*{display:none}</style>",
    "</div></details></article></section></main></body><h1>mine</h1><!-- ",
    "gnp\u202egnp.exe \u2066x \0 \x1b[31mred\x07 zero\u200bwidth &lt;b&gt; {{ 7 * 7 }} {% raw %}",
    "[link](javascript:alert(4)) <a href='http://evil.example'>x</a> ![i](http://evil.example/i.png) <base href=//e>",
]
ALLOWED = """
html head meta title style script body header main section nav article div h1 h2 h3 h4 p a span strong small button dl
dt dd ol ul li figure figcaption caption form label input pre table thead tbody tr th td details summary
svg rect line circle polyline text
"""


class Parsed(HTMLParser):
    """elements: (tag, attributes) in order; texts: of every box of text; problems: what does not close."""

    def __init__(self, html: str):
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict]] = []
        self.texts: list[str] = []
        self.words: list[str] = []
        self.problems: list[str] = []
        self._open: list[tuple[str, bool]] = []
        self.feed(html)
        self.close()
        self.problems += [f"<{tag}> is never closed" for tag, _ in self._open]

    def handle_starttag(self, tag, attrs):
        found = dict(attrs)
        self.elements.append((tag, found))
        if tag not in VOID:
            is_text = found.get("class") == "text"
            self.texts += [""] if is_text else []
            self._open.append((tag, is_text))

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        if tag in VOID:
            return
        if not self._open or self._open[-1][0] != tag:
            self.problems.append(f"</{tag}> at {self.getpos()} where {self._open[-1:]} is open")
            return
        self._open.pop()

    def handle_data(self, data):
        self.words.append(data)
        if any(is_text for _, is_text in self._open):
            self.texts[-1] += data

    def tags(self) -> set[str]:
        return {tag for tag, _ in self.elements}

    def attributes(self) -> list[tuple[str, str, str]]:
        return [(tag, name, value or "") for tag, found in self.elements for name, value in found.items()]


def check_harmless(html: str, *, links: tuple[str, ...] = ("#",)) -> None:
    """Nothing that models or users wrote has become an element, a handler, a style or a link out of the page."""
    page = Parsed(html)
    assert page.problems == []
    assert page.tags() <= set(ALLOWED.split())
    for tag, name, value in page.attributes():
        assert not name.startswith("on"), (tag, name, value)
        assert name not in ("src", "srcset", "style", "action", "formaction", "data", "xlink:href"), (tag, name, value)
        assert name != "href" or value.startswith(links), (tag, name, value)
    assert [tag for tag, _ in page.elements].count("script") == 1
    assert html.count("</script>") == 1
    assert not set(html) & set("\0\x1b\x07\u202e\u2066\u200b")


def check_usable(page: Parsed) -> list[str]:
    """Headings in order, links and labels that lead somewhere, tables and pictures that can be read out; the ids."""
    assert page.problems == []
    levels = [int(tag[1]) for tag, _ in page.elements if tag in ("h1", "h2", "h3", "h4")]
    assert levels.count(1) == 1
    assert all(after - before <= 1 for before, after in pairwise(levels))
    ids = [found["id"] for _, found in page.elements if "id" in found]
    assert len(ids) == len(set(ids))
    for tag, found in page.elements:
        assert found.get("href", f"#{ids[0]}")[1:] in ids
        assert found.get("aria-labelledby", ids[0]) in ids
        assert "scroll" not in found.get("class", "") or found["tabindex"] == "0"
        assert tag != "svg" or found["aria-label"]
        assert tag != "th" or found["scope"] in ("row", "col")
    return ids
