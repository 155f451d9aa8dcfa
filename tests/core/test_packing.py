import pytest
from hypothesis import given
from hypothesis import strategies as st

from moaa_ray.core.packing import pack


def test_by_hand():
    assert pack([3, 6, 4, 5], 9) == [[0, 1], [2, 3]]
    assert pack([5, 5, 5], 9) == [[0], [1], [2]]
    assert pack([], 9) == []
    assert pack([9], 9) == [[0]]


def test_a_document_goes_to_the_fullest_pack_with_room_not_to_the_first():
    # 7 and 6 open two packs (3 and 4 left); 3 fits both and belongs to the fuller one, so that 4 still has room.
    assert pack([7, 6, 4, 3], 10) == [[0, 3], [1, 2]]


@pytest.mark.parametrize("length", [0, -1, 10])
def test_lengths_that_cannot_be_packed_are_refused(length):
    with pytest.raises(ValueError, match=f"document 1 has {length} tokens; a pack holds 1 to 9"):
        pack([1, length], 9)


@given(st.lists(st.integers(1, 64), max_size=200))
def test_every_document_is_in_one_pack_and_no_pack_is_over_full(lengths):
    packs = pack(lengths, 64)
    assert sorted(document for documents in packs for document in documents) == list(range(len(lengths)))
    fills = [sum(lengths[i] for i in documents) for documents in packs]
    assert all(fill <= 64 for fill in fills)
    # Best fit never leaves two packs that would fit into one.
    assert all(a + b > 64 for i, a in enumerate(fills) for b in fills[i + 1 :])
