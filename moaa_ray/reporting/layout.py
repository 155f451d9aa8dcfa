"""Plain text for a terminal of 100 columns, out of words of ours and texts of models.

Every line passes through `visible`, so no control character reaches the terminal. Columns are counted as terminals
show them: a Chinese character takes two.
"""

from rich.cells import cell_len, chop_cells, set_cell_size

from moaa_ray.reporting.visible import on_one_line, visible

WIDTH = 100
_HEAD = 44
_LEAST_ROOM = 24
_HASH_CHARS = 12


class Layout:
    """Collects lines; `text` gives them all. is_full: texts as a whole instead of what fits on a line."""

    def __init__(self, *, is_full: bool):
        self.is_full = is_full
        self._lines: list[str] = []

    def title(self, text: str) -> None:
        """The beginning of a part, after an empty line."""
        self._lines += ["", *_wrapped(_flat(text), WIDTH)]

    def line(self, text: str, *, indent: int = 2) -> None:
        """A line of ours, continued on the next where it is too long."""
        flat = _flat(text)
        pieces = [flat] if cell_len(flat) <= WIDTH - indent else _wrapped(flat, WIDTH - indent - 4)
        self._lines += [" " * (indent + 4 * (number > 0)) + each for number, each in enumerate(pieces)]

    def entry(self, head: str, text: str, *, indent: int = 2) -> None:
        """A text with what it is: beside it as far as it fits, or, in full, below it as a whole."""
        head, flat = _flat(head), on_one_line(text)
        width = max(_HEAD - indent, cell_len(head)) + 2
        room = WIDTH - indent - width
        if cell_len(flat) <= room and not (self.is_full and "\n" in text.strip()):
            self._lines.append(" " * indent + f"{set_cell_size(head, width)}{flat}".rstrip())
        elif not self.is_full and room >= _LEAST_ROOM:
            shown = set_cell_size(flat, room - 3).rstrip()
            self._lines.append(" " * indent + f"{set_cell_size(head, width)}{shown}...")
        else:
            below = (
                visible(text.expandtabs(4)).split("\n")
                if self.is_full
                else [set_cell_size(flat, WIDTH - indent - 7).rstrip() + "..."]
            )
            pieces = [each for line in below for each in _wrapped(line, WIDTH - indent - 4) or [""]]
            self._lines += [" " * indent + head, *((" " * (indent + 4) + each).rstrip() for each in pieces)]

    def digest(self, text: str) -> str:
        """A hash, in short where texts are."""
        is_hex = len(text) > _HASH_CHARS and not set(text) - set("0123456789abcdef")
        return text[:_HASH_CHARS] if is_hex and not self.is_full else text

    def add(self, other: "Layout") -> None:
        """All lines of another one."""
        self._lines += other._lines

    def text(self) -> str:
        """All lines."""
        return "\n".join(visible(line) for line in self._lines).strip("\n")


def _flat(text: str) -> str:
    """On one line, with the spaces that it has."""
    return visible(text.replace("\n", " ").replace("\t", " "))


def _wrapped(line: str, width: int) -> list[str]:
    """The line in pieces of at most width columns, broken between words where that can be."""
    if cell_len(line) <= width:
        return [line] if line else []
    pieces: list[str] = []
    now = ""
    for word in line.split(" "):
        joined = f"{now} {word}" if now else word
        if cell_len(joined) <= width:
            now = joined
            continue
        pieces += [now] if now else []
        *whole, now = chop_cells(word, width) or [""]
        pieces += whole
    return [*pieces, now] if now else pieces
