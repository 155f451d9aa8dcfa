import pickle
from dataclasses import replace

import pytest

from moaa_ray.core.candidates import (
    CANDIDATES,
    CandidatePass,
    close_candidates,
    distinct_candidates,
    forget_failures,
)
from moaa_ray.core.passes import NOT_ASKED
from moaa_ray.types import Completion, Failure, Sampling
from tests.core.judges import candidates
from tests.core.rows import UNLIMITED, row, run_pass, said

LATE = Failure(reason="timeout", detail="no answer within 60 s")
TOO_LONG = Failure(reason="context_length", retryable=False)
FIVE = CandidatePass(engine="student", sampling=Sampling(max_tokens=64, temperature=0.8), run_seed=7, num_candidates=5)


def sample(request) -> Completion:
    return said(f"sample {request.seed}")


def test_five_samples_of_the_same_conversation_differ_in_their_seed_alone():
    asked = FIVE.ask(row(), UNLIMITED)
    assert len({request.seed for request in asked}) == len({request.id for request in asked}) == 5
    assert all(request.messages == row().messages and request.sampling.temperature == 0.8 for request in asked)
    assert FIVE.ask(row(), UNLIMITED) == asked
    assert {request.seed for request in FIVE.ask(row("r2"), UNLIMITED)}.isdisjoint(r.seed for r in asked)


def test_only_samples_that_are_not_there_are_asked_for():
    """The next run asks for the second one alone, with the seed that it had."""
    first = FIVE.ask(row(), UNLIMITED)
    late = run_pass(FIVE, row(), lambda request: LATE if request == first[1] else sample(request))
    failed = close_candidates(late, min_candidates=2)
    assert (failed.status, failed.reason) == ("failed", "candidates: timeout: 4 of 5 came: no answer within 60 s")
    open_again = forget_failures(failed)
    assert (open_again.status, open_again.reason) == ("open", "")
    assert FIVE.ask(open_again, UNLIMITED) == [first[1]]
    done = close_candidates(run_pass(FIVE, open_again, sample), min_candidates=2)
    assert done.status == "ok"
    assert [answer.text for answer in done.answers[CANDIDATES]] == [f"sample {r.seed}" for r in first]
    assert not FIVE.is_open(done)


def test_a_candidate_that_never_can_be_had_is_left_out():
    done = close_candidates(candidates("a", TOO_LONG, "b"), min_candidates=2)
    assert (done.status, done.flags) == ("ok", ())
    assert distinct_candidates(done) == {0: "a", 2: "b"}


def test_a_row_with_too_few_candidates_fails_and_says_why():
    done = close_candidates(candidates("a", TOO_LONG, TOO_LONG), min_candidates=2)
    assert (done.status, done.reason) == ("failed", "candidates: context_length: 1 of 3 came")


def test_candidates_that_are_all_the_same_drop_the_row_and_some_that_are_mark_it():
    same = close_candidates(candidates("a", "a", "a"), min_candidates=2)
    assert (same.status, same.reason) == ("dropped", "identical_candidates")
    some = close_candidates(candidates("a", "b", "a"), min_candidates=2)
    assert (some.status, some.flags) == ("ok", ("duplicate_candidates",))
    assert distinct_candidates(some) == {0: "a", 1: "b"}


def test_blanks_around_a_candidate_make_no_difference_and_blanks_alone_are_none():
    texts = iter(["a", " a\n", "a", " \n", "b"])
    folded = run_pass(FIVE, row(), lambda request: said(next(texts)))
    assert distinct_candidates(folded) == {0: "a", 4: "b"}
    blank = folded.answers[CANDIDATES][3]
    assert isinstance(blank, Failure)
    assert (blank.reason, blank.retryable) == ("empty", False)


@pytest.mark.parametrize("status", ["ok", "failed", "dropped", "quarantined"])
def test_a_row_that_is_not_open_passes_through(status):
    closed = replace(candidates("a", "a"), status=status, reason="why")
    assert FIVE.ask(closed, UNLIMITED) == []
    assert FIVE.fold(closed, {}) == closed
    assert close_candidates(closed, min_candidates=2) == closed


def test_an_engine_that_cannot_be_had_fails_every_sample_still_open():
    half = candidates("a", "b")
    folded = FIVE.fold(half, FIVE.all_failed(half, LATE))
    assert folded.answers[CANDIDATES] == (said("a"), said("b"), LATE, LATE, LATE)


def test_a_row_that_did_not_fail_is_not_opened_again():
    assert forget_failures(candidates("a", LATE)) == candidates("a", LATE)
    assert forget_failures(replace(candidates("a", LATE), status="failed")).answers[CANDIDATES][1] == NOT_ASKED


def test_the_pass_can_be_sent_to_a_worker():
    assert pickle.loads(pickle.dumps(FIVE)) == FIVE
