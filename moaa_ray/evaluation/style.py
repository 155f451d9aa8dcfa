"""The style of a text, as Arena-Hard controls for it: length, and headers, lists and bold of its Markdown."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Style:
    """Counts of one text. The published length is in tokens of one tokenizer; here it is in characters."""

    num_chars: int
    num_headers: int
    num_list_items: int
    num_bold: int


def style_of(text: str) -> Style:
    """The counts of a text; what stands in fenced code counts as length alone."""
    raise NotImplementedError
