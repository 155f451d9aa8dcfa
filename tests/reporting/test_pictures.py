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
