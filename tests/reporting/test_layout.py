"""Text within 100 columns."""

from rich.cells import cell_len

from moaa_ray.reporting.layout import WIDTH, Layout

LONG = "水 means water and " * 40


def lines_of(*, is_full: bool, head: str, text: str) -> list[str]:
    out = Layout(is_full=is_full)
    out.entry(head, text)
    return out.text().split("\n")


def test_a_short_text_stands_beside_what_it_is():
    assert lines_of(is_full=False, head="user", text="Why?") == ["  user" + " " * 40 + "Why?"]


def test_a_long_text_is_shortened_to_the_line_however_wide_its_characters_are():
    (line,) = lines_of(is_full=False, head="synthesis", text=LONG)
    assert line.endswith("...")
    assert WIDTH - 3 <= cell_len(line) <= WIDTH


def test_beside_a_long_head_the_text_comes_on_the_next_line():
    lines = lines_of(is_full=False, head="h" * 90, text=LONG)
    assert len(lines) == 2
    assert all(cell_len(line) <= WIDTH for line in lines)


def test_in_full_every_word_is_there_and_lines_stay_within_the_width():
    lines = lines_of(is_full=True, head="synthesis", text=LONG + "\n\n" + "x" * 300)
    assert all(cell_len(line) <= WIDTH for line in lines)
    assert "".join(lines[1:]).replace(" ", "") == (LONG + "x" * 300).replace(" ", "")


def test_no_control_character_comes_out():
    out = Layout(is_full=True)
    out.title("a\x1b[2Jb\nc")
    out.line("d\x07 \u202e")
    out.entry("e\0", "f\x1b]0;title\x07\ng")
    assert set(out.text()) & set("\x1b\x07\0\u202e") == set()
    assert "a[U+001B][2Jb c" in out.text()


def test_a_hash_is_short_unless_all_is_wanted_and_a_name_stays():
    digest = "0123456789abcdef" * 4
    assert Layout(is_full=False).digest(digest) == "0123456789ab"
    assert Layout(is_full=True).digest(digest) == digest
    assert Layout(is_full=False).digest("openai:gpt-4.1-mini:") == "openai:gpt-4.1-mini:"
