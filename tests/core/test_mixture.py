import copy
from dataclasses import replace

import pytest

from moaa_ray.core.mixture import MixtureRules, shown
from moaa_ray.core.passes import CannotAskError, Room
from moaa_ray.core.turns import close_turn, reopen, turn_proposals
from moaa_ray.types import Failure, Message
from tests.core.rows import UNLIMITED, aggregator, count_words, proposer, row, run_pass, said, work_of

A, B, C = proposer("a"), proposer("b"), proposer("c")
READS = ("l0.a", "l0.b", "l0.c")
FINAL = aggregator(READS)
TIMEOUT = Failure(reason="timeout", detail="600 s")


def proposed(*answers):
    r = row()
    for p, answer in zip((A, B, C), answers, strict=False):
        r = run_pass(p, r, lambda request, answer=answer: answer)
    return r


def listing(request):
    """The proposals as the aggregator reads them, parsed back from the prompt."""
    text = request.messages[0]["content"].split("Answers from the models:")[1]
    numbers, texts = [], []
    for part in text.split("\n\n")[1:]:
        number, fence, *body, _ = part.split("\n")
        assert part.endswith(f"[/{fence[1:-1]}]")
        numbers.append(number)
        texts.append("\n".join(body))
    return numbers, texts


def test_a_first_layer_proposer_is_asked_the_plain_conversation():
    (request,) = A.ask(row(), UNLIMITED)
    assert request.messages == row().messages
    assert request.sampling == A.sampling
    assert request.row_id == "r1"


def test_the_aggregator_reads_whole_texts_in_recipe_order():
    (request,) = FINAL.ask(proposed(said("four"), said("4"), said("It is four.")), UNLIMITED)
    assert listing(request) == (["1.", "2.", "3."], ["four", "4", "It is four."])


def test_a_failed_or_empty_proposal_is_left_out_and_numbering_has_no_gap():
    r = proposed(said("four"), TIMEOUT, said("  \n"))
    assert [a.reason for a in r.answers["l0.c"]] == ["empty"]
    (request,) = FINAL.ask(r, UNLIMITED)
    assert listing(request) == (["1."], ["four"])
    assert "timeout" not in request.messages[0]["content"]


def test_asking_changes_neither_the_row_nor_its_messages():
    r = proposed(said("four"), said("4"), said("iv"))
    before = copy.deepcopy(r)
    FINAL.ask(r, UNLIMITED)
    FINAL.fold(r, {})
    assert r == before


def test_too_few_proposals_fail_the_row_and_the_aggregator_is_not_asked():
    final = aggregator(READS, rules=MixtureRules(run_seed=0, min_proposals=2))
    r = proposed(said("four"), TIMEOUT, TIMEOUT)
    assert final.ask(r, UNLIMITED) == []
    failed = final.fold(r, {})
    assert failed.status == "failed"
    assert failed.reason == "min_proposals: 1 of 2 needed (l0.b: timeout: 600 s; l0.c: timeout: 600 s)"


def test_a_row_whose_proposers_all_failed_fails_by_default():
    assert run_pass(FINAL, proposed(TIMEOUT, TIMEOUT, TIMEOUT), lambda _: said("x")).status == "failed"


def test_an_aggregator_that_fails_or_says_nothing_fails_the_row():
    r = proposed(said("four"), said("4"), said("iv"))
    assert run_pass(FINAL, r, lambda _: TIMEOUT).reason == "aggregate: timeout: 600 s"
    empty = run_pass(FINAL, r, lambda _: said(" "))
    assert (empty.status, empty.answers["aggregate"][0].reason) == ("failed", "empty")


def test_a_truncated_synthesis_is_flagged_or_dropped_as_the_rules_say():
    r = proposed(said("four"), said("4"), said("iv"))
    flagged = run_pass(FINAL, r, lambda _: said("It is fo", finish_reason="length"))
    assert (flagged.status, flagged.flags) == ("open", ("truncated:0",))
    strict = aggregator(READS, rules=MixtureRules(run_seed=0, drop_truncated=True))
    dropped = run_pass(strict, r, lambda _: said("It is fo", finish_reason="length"))
    assert (dropped.status, dropped.reason) == ("dropped", "drop_truncated")


def test_a_synthesis_that_an_endpoints_filter_broke_off_counts_as_truncated():
    r = proposed(said("four"), said("4"), said("iv"))
    flagged = run_pass(FINAL, r, lambda _: said("It is fo", finish_reason="content_filter"))
    assert flagged.flags == ("truncated:0",)


def test_the_flag_of_a_truncated_synthesis_names_the_user_turn_also_after_turns_of_the_dataset():
    r = proposed(said("four"), said("4"), said("iv"))
    earlier = (Message(role="user", content="Hi"), Message(role="assistant", content="Hello."))
    later = replace(r, messages=(*earlier, *r.messages))
    flagged = run_pass(FINAL, later, lambda _: said("It", finish_reason="length"))
    assert (flagged.turn, flagged.flags) == (0, ("truncated:1",))


def test_rows_that_are_not_open_pass_through_unchanged():
    for status in ("ok", "failed", "quarantined", "dropped"):
        r = row(status=status)
        assert FINAL.ask(r, UNLIMITED) == []
        assert FINAL.fold(r, {}) == r


def test_samples_of_one_slot_have_different_seeds_and_are_all_shown():
    p = proposer("a", num_samples=3)
    requests = p.ask(row(), UNLIMITED)
    assert len({request.seed for request in requests}) == 3
    assert len({request.id for request in requests}) == 3
    r = p.fold(row(), {request.id: said(f"answer {i}") for i, request in enumerate(requests)})
    (request,) = aggregator(("l0.a",)).ask(r, UNLIMITED)
    assert listing(request)[1] == ["answer 0", "answer 1", "answer 2"]


def test_seeds_depend_on_run_pass_row_turn_and_sample_only():
    def seed(p, r):
        return p.ask(r, UNLIMITED)[0].seed

    base = seed(A, row())
    assert seed(A, row()) == base
    other_run = proposer("a", rules=MixtureRules(run_seed=1))
    assert len({base, seed(B, row()), seed(A, row("r2")), seed(A, row(turn=1)), seed(other_run, row())}) == 5


def test_a_second_layer_sees_exactly_the_first_layers_proposals():
    second = proposer("a", layer=1, reads=READS)
    r = proposed(said("four"), said("4"), said("iv"))
    (request,) = second.ask(r, UNLIMITED)
    assert listing(request)[1] == ["four", "4", "iv"]
    r = run_pass(second, r, lambda _: said("refined"))
    (request,) = aggregator(("l1.a",)).ask(r, UNLIMITED)
    assert listing(request)[1] == ["refined"]
    assert request.messages[0]["content"].count("Several language models") == 1


def test_shuffling_depends_on_the_row_and_keeps_every_proposal():
    rules = MixtureRules(run_seed=0, shuffle_proposals=True)
    r = proposed(said("four"), said("4"), said("iv"))
    orders = {tuple(a.text for _, _, a in shown(replace(r, id=f"r{i}"), READS, rules)) for i in range(40)}
    assert len(orders) == 6
    assert shown(r, READS, rules) == shown(r, READS, rules)


def test_dropout_leaves_out_some_but_never_too_many():
    rules = MixtureRules(run_seed=0, proposal_dropout=0.9, min_proposals=2)
    r = proposed(said("four"), said("4"), said("iv"))
    counts = [len(shown(replace(r, id=f"r{i}"), READS, rules)) for i in range(50)]
    assert min(counts) == 2
    texts = [a.text for _, _, a in shown(r, READS, rules)]
    assert texts == [text for text in ("four", "4", "iv") if text in texts]


def test_long_proposals_are_cut_to_the_window_and_the_row_says_so():
    long = "word " * 2000
    r = proposed(said(long), said("short"), said(long))
    room = Room(window=1000, count_tokens=count_words)
    (request,) = FINAL.ask(r, room)
    assert count_words(request.messages) <= 1000 - 64
    assert request.flags == ("proposals_cut",)
    folded = FINAL.fold(r, {request.id: said("done", flags=("proposals_cut",))})
    assert folded.flags == ("proposals_cut:aggregate",)


def test_proposals_that_cannot_fit_at_all_fail_the_row_with_the_numbers():
    r = proposed(said("word " * 2000), said("word " * 2000), said("word " * 2000))
    with pytest.raises(CannotAskError) as error:
        FINAL.ask(r, Room(window=300, count_tokens=count_words))
    assert error.value.failure.reason == "context_length"
    assert "window 300, max_tokens 64" in error.value.failure.detail


def test_a_closed_turn_holds_the_synthesis_and_says_which_proposals_were_used():
    r = run_pass(FINAL, proposed(said("four"), TIMEOUT, said("iv")), lambda _: said("It is four."))
    done = close_turn(r, [A, B, C, FINAL])
    assert done.status == "ok"
    assert done.answers == {}
    assert done.messages[-1] == Message(role="assistant", content="It is four.")
    assert [(p.proposer, p.completion, p.used, p.error) for p in done.proposals] == [
        ("a", "four", True, ""),
        ("b", "", False, "timeout"),
        ("c", "iv", True, ""),
    ]


def test_an_answer_from_before_a_change_of_the_recipe_keeps_the_name_of_the_model_that_gave_it():
    def with_model(p, name):
        return replace(p, speaker=replace(p.speaker, model=name, revision=f"{name}-1"))

    old, new = (replace(with_model(A, name), num_samples=2) for name in ("old", "new"))
    half = run_pass(old, row(), lambda request: said("four") if request.id.endswith("/0") else TIMEOUT)
    kept = reopen(replace(half, status="failed"), [new, FINAL])
    r = run_pass(new, kept, lambda _: said("4"))
    told = [(p.model, p.revision, p.completion) for p in turn_proposals(r, [new, FINAL])]
    assert told == [("old", "old-1", "four"), ("new", "new-1", "4")]


def test_the_next_turn_sees_synthesised_answers_and_only_its_own_proposals():
    r = replace(proposed(said("four"), said("4"), said("iv")), later=("And 3 + 3?",))
    r = close_turn(run_pass(FINAL, r, lambda _: said("It is four.")), [A, B, C, FINAL])
    assert (r.status, r.turn, r.later) == ("open", 1, ())
    (request,) = A.ask(r, UNLIMITED)
    assert [m["content"] for m in request.messages] == ["What is 2 + 2?", "It is four.", "And 3 + 3?"]
    for p, text in ((A, "six"), (B, "6"), (C, "vi")):
        r = run_pass(p, r, lambda _, text=text: said(text))
    (request,) = FINAL.ask(r, UNLIMITED)
    assert listing(request)[1] == ["six", "6", "vi"]
    done = close_turn(run_pass(FINAL, r, lambda _: said("Six.")), [A, B, C, FINAL])
    assert [(p.turn, p.completion) for p in done.proposals] == [
        (0, "four"), (0, "4"), (0, "iv"), (1, "six"), (1, "6"), (1, "vi"),
    ]  # fmt: skip


def test_the_direct_answer_is_stored_and_never_shown():
    direct = replace(proposer("big"), name="direct")
    r = run_pass(direct, proposed(said("four"), said("4"), said("iv")), lambda _: said("direct answer"))
    (request,) = FINAL.ask(r, UNLIMITED)
    assert "direct answer" not in request.messages[0]["content"]
    done = close_turn(FINAL.fold(r, {request.id: said("It is four.")}), [A, B, C, direct, FINAL])
    assert [p.used for p in done.proposals] == [True, True, True, False]


def test_a_failed_aggregator_is_asked_again_on_the_same_proposals():
    failed = run_pass(FINAL, proposed(said("four"), TIMEOUT, said("iv")), lambda _: TIMEOUT)
    again = reopen(failed, [A, B, C, FINAL])
    assert again.status == "open"
    assert A.ask(again, UNLIMITED) == B.ask(again, UNLIMITED) == []
    assert len(FINAL.ask(again, UNLIMITED)) == 1
    assert work_of(A, B, C, FINAL).first_open_pass(again) == 3


def test_a_row_that_lacked_proposals_asks_only_those_that_failed():
    final = aggregator(READS, rules=MixtureRules(run_seed=0, min_proposals=3))
    failed = final.fold(proposed(said("four"), TIMEOUT, said("iv")), {})
    again = reopen(failed, [A, B, C, final])
    assert A.ask(again, UNLIMITED) == []
    assert work_of(A, B, C, final).first_open_pass(again) == 1
    healed = run_pass(B, again, lambda _: said("4"))
    assert [a.text for _, _, a in shown(healed, READS, final.rules)] == ["four", "4", "iv"]


def test_only_failed_rows_are_reopened():
    r = row(status="quarantined")
    assert reopen(r, [A, FINAL]) == r
