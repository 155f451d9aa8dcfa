import pickle

from hypothesis import given
from hypothesis import strategies as st

from moaa_ray.core.row_refs import RowRefs

REFS = st.lists(st.tuples(st.sampled_from(["a", "b", "c"]), st.integers(0, 2**31 - 1)))


@given(REFS, st.slices(8))
def test_it_is_the_list_it_was_made_of(refs, cut):
    made = RowRefs(refs)
    assert list(made) == refs
    assert made == refs
    assert tuple(refs) == made
    assert [made[i] for i in range(-len(refs), len(refs))] == [*refs, *refs]
    assert made[cut] == refs[cut]
    assert pickle.loads(pickle.dumps(made)) == refs
    assert made != [*refs, ("a", 0)]
    made.append(("d", 7))
    assert made == [*refs, ("d", 7)]


def test_a_piece_carries_no_path_that_it_does_not_need():
    refs = RowRefs((f"a-long-path-{i}" * 10, 0) for i in range(1000))
    assert len(pickle.dumps(refs[5:7])) < 1000
