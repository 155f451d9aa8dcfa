from moaa_ray.data.seen import Seen, SeenRow


def test_the_row_that_was_added_last_under_an_id_is_found():
    seen = Seen()
    assert seen.find("a") is None
    seen.add("a", b"one", (1, 2**40), source=3)
    seen.add("b", b"other")
    assert seen.find("a") == SeenRow(digest=b"one", source=3, place=(1, 2**40))
    seen.add("a", b"two")
    assert seen.find("a") == SeenRow(digest=b"two", source=0, place=(0, 0))
    assert len(seen) == 2


def test_what_was_seen_before_is_found_and_does_not_hide_what_came_later():
    before = Seen()
    before.add("a", b"old")
    before.add("b", b"old")
    seen = Seen(before)
    seen.add("a", b"new")
    assert [row and row.digest for row in map(seen.find, "abc")] == [b"new", b"old", None]
    assert (len(before), len(seen)) == (2, 1)
    assert before.find("a").digest == b"old"
