import pytest

from moaa_ray.evaluation.style import Style, style_differences, style_of

MARKDOWN = """\
# Title

Some **bold** and __more__ of it, 2 ** 3 is no bold.

## Part
- one
  * two
1. three
+ four
-no item
#no header

```python
# no header
- no item
**no bold**
```
"""


def test_headers_list_items_and_bold_are_counted_outside_of_code():
    assert style_of(MARKDOWN) == Style(num_chars=len(MARKDOWN), num_headers=2, num_list_items=4, num_bold=2)


def test_a_text_without_markdown_has_its_length_alone():
    assert style_of("žluť") == Style(num_chars=4, num_headers=0, num_list_items=0, num_bold=0)


def test_a_fence_that_is_never_closed_hides_nothing():
    assert style_of("```\n# title\n").num_headers == 1


def test_differences_are_relative_to_the_sum_and_one():
    """(299 - 100) / 400, (2 - 0) / 3, 0, (0 - 1) / 2."""
    one = Style(num_chars=299, num_headers=2, num_list_items=5, num_bold=0)
    other = Style(num_chars=100, num_headers=0, num_list_items=5, num_bold=1)
    assert style_differences(one, other) == pytest.approx((0.4975, 2 / 3, 0, -0.5))
    assert style_differences(other, one) == pytest.approx((-0.4975, -2 / 3, 0, 0.5))
