"""The pictures: what they say in words, and that they hold up at the edges."""

import xml.etree.ElementTree as ET

import pytest

from moaa_ray.reporting import pictures


def parts(picture, tag: str) -> list:
    return list(ET.fromstring(picture).iter(tag))


def told(picture) -> str:
    return ET.fromstring(picture).attrib["aria-label"]


def test_few_margins_have_a_bar_each_as_high_as_they_are_frequent():
    picture = pictures.margin_histogram([0.25, 0.25, 0.5, 1.0])
    heights = [float(bar.attrib["height"]) for bar in parts(picture, "rect")]
    assert heights == [heights[0], heights[0] / 2, heights[0] / 2]
    assert [title.text for title in parts(picture, "title")] == ["0.25: 2 pairs", "0.5: 1 pairs", "1: 1 pairs"]
    assert told(picture) == "Histogram of 4 margins from 0.25 to 1, median 0.5"


def test_many_margins_share_twenty_bars():
    picture = pictures.margin_histogram([n / 7 for n in range(700)])
    assert len(parts(picture, "rect")) == 20


@pytest.mark.parametrize("margins", [[0.5], [0.5] * 9, [0.0, 1e9], [-3.0, -2.0]])
def test_odd_margins_stay_inside_the_picture(margins):
    for bar in parts(pictures.margin_histogram(margins), "rect"):
        assert 0 <= float(bar.attrib["x"]) <= float(bar.attrib["x"]) + float(bar.attrib["width"]) <= 320


def test_a_chosen_text_that_is_longer_stands_above_the_diagonal():
    picture = pictures.length_scatter([(1000, 10), (10, 1000)])
    above, below = parts(picture, "circle")
    assert float(above.attrib["cy"]) < float(below.attrib["cy"])
    assert float(above.attrib["cx"]) < float(below.attrib["cx"])
    assert told(picture) == "Lengths of 2 pairs; the chosen completion is longer in 50%"


def test_empty_texts_and_no_pairs_do_no_harm():
    assert len(parts(pictures.length_scatter([(0, 0), (0, 5)]), "circle")) == 2
    assert pictures.length_scatter([]) == ""
    assert pictures.margin_histogram([]) == ""


def test_the_parts_of_a_bar_add_up():
    picture = pictures.share_bar([("agree", 0.7), ("A twice", 0.25), ("B twice", 0.05)], half=True)
    assert sum(float(bar.attrib["width"]) for bar in parts(picture, "rect")) == pytest.approx(318)
    assert told(picture) == "agree 70.0%, A twice 25.0%, B twice 5.0%"


def test_a_lane_shows_what_there_was_most_of_in_a_column():
    picture = pictures.lane([[1, 0, 0], [0.4, 0.6, 0.3], [0, 1, 1], [0, 0, 0]], [0.5], "a")
    boxes = [(r.attrib["class"], r.attrib["x"], r.attrib["height"]) for r in parts(picture, "rect")]
    assert boxes == [
        ("idle", "1", "24.0"),
        ("starting", "0", "7.0"),
        ("bar", "1", "12.0"),
        ("bar", "2", "24.0"),
    ]
    assert [line.attrib["x1"] for line in parts(picture, "line")] == ["2.0"]


def test_bars_of_a_small_histogram_are_as_high_as_their_counts():
    picture = pictures.small_histogram([0, 2, 4], "three")
    assert [(r.attrib["x"], r.attrib["height"]) for r in parts(picture, "rect")] == [("1", "12.0"), ("2", "24.0")]
    assert told(picture) == "three"


def test_an_interval_is_a_line_with_a_dot_at_its_value():
    """From 0 to 1 are 296 units, beginning at 12."""
    picture = pictures.intervals([("said A", 0.5, 0.25, 1.0)], mark=0.5)
    whisker = next(line for line in parts(picture, "line") if line.attrib["class"] == "whisker")
    assert (whisker.attrib["x1"], whisker.attrib["x2"]) == ("86.0", "308.0")
    assert parts(picture, "circle")[0].attrib["cx"] == "160.0"
    assert told(picture) == "said A 50.0% between 25.0% and 100.0%"
    assert pictures.intervals([], mark=0.5) == ""


def test_a_curve_falls_from_top_left_to_bottom_right():
    picture = pictures.curves([("loss", [(1, 2.0), (2, 1.0), (3, 0.5)])])
    points = [tuple(map(float, point.split(","))) for point in parts(picture, "polyline")[0].attrib["points"].split()]
    assert points == [(58.0, 12.0), (183.0, pytest.approx(98.7, abs=0.1)), (308.0, 142.0)]
    assert told(picture) == "loss from 2 to 0.5, over steps 1 to 3"


def test_a_long_curve_is_drawn_as_means_and_a_broken_one_without_its_gaps():
    long = pictures.curves([("loss", [(step, float(step % 2)) for step in range(1000)])])
    points = parts(long, "polyline")[0].attrib["points"].split()
    assert len(points) == 200
    gaps = pictures.curves([("loss", [(1, 1.0), (2, float("nan")), (3, 2.0)])])
    assert len(parts(gaps, "polyline")[0].attrib["points"].split()) == 2
    assert pictures.curves([("loss", [])]) == ""


def test_names_in_pictures_are_escaped_and_made_visible():
    picture = pictures.intervals([("<b>\u202e", 0.5, 0.4, 0.6)], mark=0.5)
    assert "<b>" not in picture
    assert "[U+202E]" in told(picture)
