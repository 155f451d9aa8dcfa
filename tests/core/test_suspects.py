import math
import random

from moaa_ray.core.suspects import MAX_ATTEMPTS, Suspects

IDS = [f"r{i}" for i in range(16)]


def ask_all(ids, poison):
    """Asks ids as the pool worker does, with an engine that dies when a poison row is with it.

    Returns quarantined ids, attempts per row, and the number of deaths.
    """
    suspects, attempts, deaths, done = Suspects(), dict.fromkeys(ids, 0), 0, set()

    def engine(group, in_isolation):
        nonlocal deaths
        for i in group:
            attempts[i] += 1
        if poison & set(group):
            deaths += 1
            suspects.died(group, is_blamed=True, in_isolation=in_isolation)
        else:
            done.update(group)
            suspects.clear(group)

    engine(ids, in_isolation=False)
    while left := suspects.sort([i for i in ids if i not in done]).suspects:
        engine(suspects.next_group(left), in_isolation=True)
    return set(suspects.sort(ids).quarantined), attempts, deaths


def test_exactly_the_poison_rows_are_quarantined_and_no_row_is_asked_more_than_three_times():
    for seed in range(200):
        rng = random.Random(seed)
        ids = [f"r{i}" for i in range(rng.randint(1, 64))]
        poison = set(rng.sample(ids, rng.randint(0, min(4, len(ids)))))
        quarantined, attempts, _ = ask_all(ids, poison)
        assert quarantined == poison
        assert max(attempts.values()) <= MAX_ATTEMPTS


def test_one_poison_row_in_a_block_costs_three_deaths():
    _, _, deaths = ask_all(IDS, {"r5"})
    assert deaths == 3


def test_groups_have_about_the_square_root_of_the_suspects():
    suspects = Suspects()
    suspects.died(IDS, is_blamed=True, in_isolation=False)
    assert len(suspects.next_group(IDS)) == math.isqrt(16)
    assert suspects.next_group(IDS[:1]) == IDS[:1]


def test_a_row_that_dies_alone_for_the_first_time_is_only_a_suspect():
    suspects = Suspects()
    suspects.died(["r0"], is_blamed=True, in_isolation=False)
    assert suspects.sort(["r0"]).suspects == ["r0"]
    suspects.died(["r0"], is_blamed=True, in_isolation=True)
    assert suspects.sort(["r0"]).quarantined == ["r0"]


def test_deaths_that_a_row_cannot_have_caused_never_quarantine_it():
    suspects = Suspects()
    for _ in range(9):
        suspects.died(["r0"], is_blamed=False, in_isolation=True)
    assert suspects.sort(["r0"]).suspects == ["r0"]
    suspects.died(["r0"], is_blamed=False, in_isolation=True)
    assert suspects.sort(["r0"]).exhausted == ["r0"]


def test_blame_without_proof_ends_in_exhaustion_not_in_quarantine():
    suspects = Suspects()
    for _ in range(MAX_ATTEMPTS):
        suspects.died(["r0", "r1"], is_blamed=True, in_isolation=False)
    assert suspects.sort(["r0", "r1"]).exhausted == ["r0", "r1"]


def test_an_answered_row_is_no_suspect_any_more():
    suspects = Suspects()
    suspects.died(["r0", "r1"], is_blamed=True, in_isolation=False)
    suspects.clear(["r0"])
    assert (suspects.sort(["r0", "r1"]).free, suspects.sort(["r0", "r1"]).suspects) == (["r0"], ["r1"])
