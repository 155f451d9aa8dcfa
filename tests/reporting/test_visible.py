"""Characters that hide, reorder or command."""

import pytest

from moaa_ray.reporting.visible import on_one_line, visible


@pytest.mark.parametrize(
    ("text", "seen"),
    [
        ("a\0b", "a[U+0000]b"),
        ("\x1b[31mred", "[U+001B][31mred"),
        ("gnp\u202egnp.exe", "gnp[U+202E]gnp.exe"),
        ("\u2066x\u2069", "[U+2066]x[U+2069]"),
        ("zero\u200bwidth\ufeff", "zero[U+200B]width[U+FEFF]"),
        ("c1 \x9b31m", "c1 [U+009B]31m"),
        ("half \ud800", "half [U+D800]"),
        ("tag \U000e0041", "tag [U+E0041]"),
        ("line\u2028end", "line[U+2028]end"),
        ("lone \r return", "lone [U+000D] return"),
    ],
)
def test_a_character_that_cannot_be_seen_is_spelt_out(text, seen):
    assert visible(text) == seen


def test_ordinary_text_of_any_script_stays_as_it_is():
    text = "straße 水 مرحبا שלום\n\ttab \u0646\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645 👩\u200d💻"
    assert visible(text) == text


def test_windows_line_ends_are_line_ends():
    assert visible("a\r\nb") == "a\nb"


def test_on_one_line_there_are_no_line_ends_and_single_spaces():
    assert on_one_line(" a\n\n b\t\x07c ") == "a b [U+0007]c"
