"""Text that models or users wrote, made fit to be looked at: what is hidden, reorders or commands is spelt out.

Joiners between letters (U+200C, U+200D) stay, for scripts and emoji are written with them.
"""

import re

_HIDDEN = re.compile(
    "[\0-\x08\x0b-\x1f\x7f-\x9f"  # control characters, but for tab and newline
    "\u00ad\u034f\u115f\u1160\u17b4\u17b5\u180e\u200b\u2060-\u2065\u3164\ufeff\uffa0\ufff0-\ufffb"  # of no width
    "\u061c\u200e\u200f\u2028-\u202e\u2066-\u206f"  # line separators, and what turns the direction of writing
    "\ud800-\udfff\U000e0000-\U000e007f]"  # halves of characters; tags
)


def visible(text: str) -> str:
    """The text with every character that cannot be seen as its code point, as in [U+202E]."""
    return _HIDDEN.sub(lambda found: f"[U+{ord(found[0]):04X}]", text.replace("\r\n", "\n"))


def on_one_line(text: str) -> str:
    """The same without line breaks, and with single spaces."""
    return visible(" ".join(text.split()))
