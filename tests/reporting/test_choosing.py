"""Which prompts are shown."""

from moaa_ray.reporting.choosing import NoPair, PairFacts, choose_prompts, spread


def pair(number: int, margin: float) -> PairFacts:
    return PairFacts(id=f"r{number:03d}", margin=margin, chosen=0, rejected=1, chosen_chars=5, rejected_chars=4)


def dropped(number: int, reason: str) -> NoPair:
    return NoPair(id=f"d{number:03d}", status="dropped", reason=reason)


PAIRS = [pair(n, (n * 37 % 100) / 100) for n in range(100)]


def test_a_spread_has_both_ends_and_even_steps():
    assert spread(range(101), 5) == [0, 25, 50, 75, 100]
    assert spread([1, 2], 5) == [1, 2]
    assert spread([1, 2, 3], 1) == [2]
    assert spread([1, 2, 3], 0) == []


def test_pairs_are_taken_by_quantiles_of_the_margin_widest_first():
    shown, others = choose_prompts(PAIRS, [], 5)
    assert [one.margin for one in shown] == [0.99, 0.74, 0.49, 0.25, 0.0]
    assert others == []


def test_one_in_five_is_without_a_pair_and_every_reason_has_its_turn():
    others = [*(dropped(n, "min_margin") for n in range(40)), *(dropped(n, "equal_scores") for n in range(40, 50))]
    others.append(dropped(99, "filter: near_duplicate (of a, similarity 0.91)"))
    shown, seen = choose_prompts(PAIRS, others, 20)
    assert (len(shown), len(seen)) == (16, 4)
    reasons = ["min_margin", "min_margin", "equal_scores", "filter: near_duplicate (of a, similarity 0.91)"]
    assert [one.reason for one in seen] == reasons


def test_where_there_are_few_pairs_the_others_fill_the_page():
    shown, seen = choose_prompts(PAIRS[:3], [dropped(n, "unranked") for n in range(30)], 20)
    assert (len(shown), len(seen)) == (3, 17)


def test_the_same_run_always_shows_the_same_prompts_whatever_their_order():
    others = [dropped(n, "unranked") for n in range(9)]
    assert choose_prompts(PAIRS, others, 20) == choose_prompts(PAIRS[::-1], others, 20)
