import pytest
from hypothesis import given
from hypothesis import strategies as st

from moaa_ray.core.budget import MIN_PROPOSAL_TOKENS, DoesNotFitError, fair_cap, fit_proposals


def words(text: str) -> int:
    return len(text.split())


def fit(texts, room):
    return fit_proposals(
        texts, room_tokens=room, count_text=words, fits=lambda shown: sum(words(text) for text in shown) <= room
    )


def test_short_texts_stay_whole_and_long_ones_share_what_is_left():
    assert fair_cap([10, 50, 90], 100) == 45
    assert fair_cap([10, 20, 30], 100) == 30
    assert fair_cap([50, 50], 0) == 0


def test_proposals_that_fit_come_back_unchanged():
    texts = ["one two", "three"]
    assert fit(texts, 10) == (texts, False)


def test_the_longest_is_shortened_and_says_how_much_is_missing():
    short, long = "a " * 50, "word " * 1000
    (first, second), was_cut = fit([short, long], 400)
    assert was_cut
    assert first == short
    assert second.startswith("word word")
    left_out = int(second.rsplit("[... ", 1)[1].split()[0])
    kept = second.rsplit("\n[... ", 1)[0]
    assert len(kept) + left_out == len(long)
    assert words(first) + words(second) <= 400


def test_too_little_room_for_every_proposal_is_an_error_with_the_numbers():
    with pytest.raises(DoesNotFitError, match="2 proposals of 2000 tokens have room for 100"):
        fit(["word " * 1000] * 2, 100)


@given(st.lists(st.integers(1, 3000), min_size=1, max_size=6), st.integers(0, 5000))
def test_what_comes_back_always_fits_and_keeps_its_order(sizes, room):
    texts = [f"{i} " + "w " * (size - 1) for i, size in enumerate(sizes)]
    try:
        shown, was_cut = fit(texts, room)
    except DoesNotFitError:
        assert sum(sizes) > room
        assert room < 2 * MIN_PROPOSAL_TOKENS * len(sizes)
        return
    assert sum(words(text) for text in shown) <= room
    assert was_cut == (shown != texts)
    assert [text.split()[0] for text in shown] == [str(i) for i in range(len(sizes))]


@given(st.lists(st.integers(1, 500), min_size=1, max_size=8), st.integers(0, 3000))
def test_a_fair_cap_uses_the_room_and_never_more(sizes, room):
    cap = fair_cap(sizes, room)
    assert sum(min(size, cap) for size in sizes) <= room
    if cap < max(sizes):
        assert sum(min(size, cap + 1) for size in sizes) > room
