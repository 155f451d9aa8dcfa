from hypothesis import given
from hypothesis import strategies as st

from moaa_ray.core.admission import Admission, WorkBlock, num_tickets


def blocks(count, rows=4):
    return [WorkBlock(key=f"b{i:06d}", turn=0, refs=tuple((f"f{i}", j) for j in range(rows))) for i in range(count)]


def test_no_more_blocks_are_in_the_line_than_there_are_credits():
    admission = Admission(blocks(10), num_credits=3, block_rows=4)
    admitted = [admission.admit(ticket) for ticket in range(10)]
    assert [block.key for block in admitted if block] == ["b000000", "b000001", "b000002"]
    assert admission.num_in_line == 3
    assert admission.num_rows_in_line == 12
    admission.commit("b000001", [], 1)
    assert admission.admit(3).key == "b000003"


def test_the_same_ticket_gets_the_same_block_again():
    admission = Admission(blocks(2), num_credits=2, block_rows=4)
    assert admission.admit(0) == admission.admit(0)
    assert admission.num_in_line == 1


def test_a_commit_that_is_told_twice_counts_once():
    admission = Admission(blocks(2), num_credits=1, block_rows=4)
    admission.admit(0)
    admission.commit("b000000", [("f", 0)], 1)
    admission.commit("b000000", [("f", 0)], 1)
    assert admission.num_in_line == 0
    assert admission.admit(1).key == "b000001"
    admission.commit("b000001", [], 1)
    assert admission.admit(2).refs == (("f", 0),)


def test_rows_with_turns_to_come_are_queued_in_full_blocks_first_and_the_rest_at_the_end():
    admission = Admission(blocks(2), num_credits=2, block_rows=4)
    admission.admit(0)
    admission.admit(1)
    admission.commit("b000000", [("g", 0), ("g", 1), ("g", 2)], 1)
    assert not admission.is_over
    assert admission.admit(2).refs == (("g", 0), ("g", 1), ("g", 2))
    admission.commit("b000001", [("h", 0)], 1)
    assert admission.admit(3).turn == 1


def test_it_is_over_only_when_nothing_in_the_line_can_bring_more():
    admission = Admission(blocks(1), num_credits=5, block_rows=4)
    block = admission.admit(0)
    assert admission.admit(1) is None
    assert not admission.is_over
    admission.commit(block.key, [], 1)
    assert admission.is_over


def test_after_a_stop_nothing_is_admitted():
    admission = Admission(blocks(3), num_credits=5, block_rows=4)
    admission.admit(0)
    admission.stop()
    assert admission.admit(1) is None
    assert admission.is_over


@given(
    st.lists(st.lists(st.integers(0, 4), min_size=1, max_size=5), min_size=1, max_size=8), st.integers(1, 4), st.data()
)
def test_every_turn_of_every_row_is_admitted_once_and_the_tickets_are_enough(turns_by_block, num_credits, data):
    """turns_by_block: for each first block, how many turns each of its rows has after the first."""
    rows = {(f"f{i}", j): turns for i, block in enumerate(turns_by_block) for j, turns in enumerate(block)}
    first = [
        WorkBlock(key=f"b{i}", turn=0, refs=tuple((f"f{i}", j) for j in range(len(block))))
        for i, block in enumerate(turns_by_block)
    ]
    by_turn = {t: n for t in range(1, 5) if (n := sum(turns >= t for turns in rows.values()))}
    admission = Admission(first, num_credits=num_credits, block_rows=5)
    seen: dict = {}
    in_line: list[WorkBlock] = []
    for ticket in range(num_tickets(first, by_turn)):
        while (block := admission.admit(ticket)) is None and not admission.is_over:
            done = in_line.pop(data.draw(st.integers(0, len(in_line) - 1)))
            coming = [ref for ref in done.refs if rows[ref] > done.turn]
            admission.commit(done.key, coming, done.turn + 1)
        if block is None:
            continue
        in_line.append(block)
        for ref in block.refs:
            seen[ref, block.turn] = seen.get((ref, block.turn), 0) + 1
    for done in in_line:
        admission.commit(done.key, [ref for ref in done.refs if rows[ref] > done.turn], done.turn + 1)
    assert admission.is_over
    assert seen == {(ref, t): 1 for ref, turns in rows.items() for t in range(turns + 1)}


def test_a_ticket_whose_block_is_committed_gets_no_other_block():
    # Ray repeats a call that had given its block before its worker died, and keeps the first call's result.
    admission = Admission(blocks(3), num_credits=3, block_rows=4)
    admission.commit(admission.admit(0).key, [], 1)
    assert admission.is_spent(0)
    assert admission.admit(0) is None
    assert admission.admit(1).key == "b000001"
    assert not admission.is_spent(1)
