"""The style of a text, as Arena-Hard controls for it: length, and headers, lists and bold of its Markdown.

Source: lmarena/arena-hard-auto utils/add_markdown_info.py and utils_math.py (construct_style_matrices) at 561534a.
"""

import re
from dataclasses import astuple, dataclass

_FENCED = re.compile(r"```[^`]*```")
_HEADER = re.compile(r"^#{1,6}\s", re.MULTILINE)
_LIST_ITEM = re.compile(r"^[ \t]*(?:[-*+]|\d{1,9}\.)\s", re.MULTILINE)
_BOLD = re.compile(r"\*\*[^*\n]+\*\*|__[^_\n]+__")


@dataclass(frozen=True, kw_only=True)
class Style:
    """Counts of one text. The published length is in tokens of one tokenizer; here it is in characters."""

    num_chars: int
    num_headers: int
    num_list_items: int
    num_bold: int


def style_of(text: str) -> Style:
    """The counts of a text; what stands in fenced code counts as length alone."""
    prose = _FENCED.sub("", text)
    return Style(
        num_chars=len(text),
        num_headers=len(_HEADER.findall(prose)),
        num_list_items=len(_LIST_ITEM.findall(prose)),
        num_bold=len(_BOLD.findall(prose)),
    )


def style_differences(style: Style, other: Style) -> tuple[float, ...]:
    """By count, (a - b) / (a + b + 1): from -1 to 1, and 0 where both are equal."""
    return tuple((a - b) / (a + b + 1) for a, b in zip(astuple(style), astuple(other), strict=True))
