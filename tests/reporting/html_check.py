"""A page taken apart: which elements it has, whether they close, what stands in its boxes of text."""

from html.parser import HTMLParser

VOID = {"meta", "rect", "line", "circle"}


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
