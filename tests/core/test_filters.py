"""Words in any script, overlaps counted by hand, refusals and leaks on examples and on every recorded completion."""

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moaa_ray.core.filters import Contamination, jaccard, ngrams, normalised, shingles, words
from moaa_ray.core.phrases import is_refusal, source_leak

DATA = Path(__file__).parents[3] / "shared" / "data"
PROMPTS, COMPLETIONS = DATA / "alpaca_eval_prompts.parquet", DATA / "alpaca_eval_completions.parquet"
MT_BENCH = DATA / "mt_bench.jsonl"
needs_real_text = pytest.mark.skipif(
    not (PROMPTS.exists() and COMPLETIONS.exists() and MT_BENCH.exists()),
    reason=f"needs {PROMPTS}, {COMPLETIONS} and {MT_BENCH}",
)


# ---------------------------------------------------------------- words and runs of them


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Don't panic, 42!", "don t panic 42"),
        ("Don\u2019t  PANIC\n42", "don t panic 42"),
        ("snake_case = f(x)", "snake case f x"),
        ("Stra\u00dfe \uff21\uff11", "strasse a1"),  # casefold; full-width letters
        ("e\u0301te\u0301", "\u00e9t\u00e9"),  # accents as marks of their own
        (
            "\u0939\u093f\u0928\u094d\u0926\u0940 \u092e\u0947\u0902",
            "\u0939\u093f\u0928\u094d\u0926\u0940 \u092e\u0947\u0902",
        ),
        ("\u6211\u7231Python3\u3002", "\u6211 \u7231 python3"),  # Chinese: every character
        ("\u30ab\u30e1\u30e9\u3067", "\u30ab \u30e1 \u30e9 \u3067"),  # Japanese
        ("\u0e44\u0e17\u0e22", "\u0e44 \u0e17 \u0e22"),  # Thai
        ("\ub3c4\uc6c0\uc774 \ud544\uc694", "\ub3c4\uc6c0\uc774 \ud544\uc694"),  # Korean has blanks
        ("\U0001f600 ... --", ""),
    ],
)
def test_words_are_runs_of_letters_and_digits_or_characters_where_a_script_has_no_blanks(text, expected):
    assert words(text) == expected.split()


@given(st.text())
def test_the_words_of_words_are_the_same_words(text):
    assert words(" ".join(words(text))) == words(text)


def test_normalised_text_differs_in_anything_but_case_and_blanks():
    assert normalised(" Yes,\tthat\u00a0IS\n\nit. ") == "yes, that is it."
    assert normalised("a+b") != normalised("a-b")


def test_ngrams_are_every_run_of_that_many_words():
    assert ngrams(["a", "b", "c"], 2) == ["a b", "b c"]
    assert ngrams(["a"], 2) == []


def test_shingles_are_5_words_long_and_a_shorter_text_is_one_shingle():
    assert shingles(words("a b c d e f")) == {"a b c d e", "b c d e f"}
    assert shingles(words("a b")) == {"a b"}
    assert shingles([]) == frozenset()


def test_jaccard_is_the_common_part_of_all_elements():
    assert jaccard({"a", "b", "c"}, {"b", "c", "d"}) == 0.5
    assert jaccard({"a"}, {"b"}) == 0.0
    assert jaccard(set(), set()) == 0.0


# ---------------------------------------------------------------- contamination

THIRTEEN = "one two three four five six seven eight nine ten eleven twelve thirteen"


def test_a_text_with_13_words_in_a_row_of_an_evaluation_prompt_is_a_hit_however_they_are_written():
    known = Contamination.of([f"Count: {THIRTEEN}, fourteen."])
    assert known.hit(f"So: {THIRTEEN.upper().replace(' ', ', ')}!") == THIRTEEN
    assert known.hit(f"x {THIRTEEN} fourteen y") == THIRTEEN  # the first of two


def test_12_words_in_a_row_are_no_hit():
    known = Contamination.of([THIRTEEN])
    assert known.hit(THIRTEEN.replace("thirteen", "x") + " and so on") == ""


def test_a_prompt_of_fewer_than_13_words_is_hit_by_a_prompt_with_exactly_its_words():
    known = Contamination.of(["Who are you?"])
    assert known.hit("WHO are you") == "who are you"
    assert known.hit("Who are you, really?") == ""
    assert known.hit("Tell me: who are you? And then tell me as well where you are from, please.") == ""


def test_a_short_completion_that_reads_like_a_short_evaluation_prompt_is_no_hit():
    known = Contamination.of(["Hello!", THIRTEEN])
    assert known.hit("Hello", is_prompt=False) == ""
    assert known.hit(THIRTEEN, is_prompt=False) == THIRTEEN


def test_chinese_runs_are_13_characters():
    text = "\u8bf7\u5199\u4e00\u7bc7\u5173\u4e8e\u590f\u5a01\u5937\u7684\u65c5\u884c\u6587\u7ae0"  # 14 characters
    known = Contamination.of([text])
    assert known.hit("A" + text[1:]) == " ".join(text[1:])
    assert known.hit(text[2:]) == ""


def test_prompts_without_words_forbid_nothing():
    assert not Contamination.of(["", "?!"])
    assert Contamination.of(["", "?!"]).hit("?!") == ""


@needs_real_text
def test_every_real_prompt_is_a_hit_on_its_own_set_and_two_of_805_on_another():
    prompts = pq.read_table(PROMPTS, columns=["prompt"]).column("prompt").to_pylist()
    own = Contamination.of(prompts)
    assert all(own.hit(prompt) for prompt in prompts)
    turns = [turn for line in MT_BENCH.read_text(encoding="utf-8").splitlines() for turn in json.loads(line)["turns"]]
    other = Contamination.of(turns)
    hits = [hit for prompt in prompts if (hit := other.hit(prompt))]
    assert sorted(hit.split()[0] for hit in hits) == ["compose", "implement"]  # MT-Bench's own, word for word


# ---------------------------------------------------------------- refusals

REFUSALS = """
I'm sorry, but I can't assist with that.
I\u2019m sorry, I can\u2019t help with that request.
I cannot fulfill your request. I am just an AI model.
Sorry, but I can't comply with that.
I apologize, but I cannot provide instructions for making weapons.
As an AI language model, I cannot write explicit content.
I'm really sorry, but as an AI assistant I'm not able to help you with this.
I must respectfully decline.
Unfortunately, I can't help with creating malware.
I will not provide guidance on that.
**I can't help with that.** Here is a helpline.
I am unable to fulfil this request.
I don't feel comfortable writing a story about that.
I cannot answer that question.
I cannot and will not provide such instructions.
I'm afraid I can't do that.
I'm sorry, but I can't tell you how to do that.
My apologies, but that is something I cannot do.
I'm sorry, this is not something I can help with.
Es tut mir leid, aber ich kann Ihnen dabei nicht helfen.
Tut mir leid, aber bei dieser Anfrage kann ich dir leider nicht weiterhelfen.
D\u00e9sol\u00e9, mais je ne peux pas vous aider avec cette demande.
Je suis d\u00e9sol\u00e9e, je ne peux pas r\u00e9pondre \u00e0 cette demande.
Lo siento, pero no puedo ayudarte con eso.
Desculpe, mas n\u00e3o posso ajudar com isso.
Mi dispiace, ma non posso aiutarti con questa richiesta.
\u62b1\u6b49\uff0c\u6211\u65e0\u6cd5\u534f\u52a9\u6ee1\u8db3\u60a8\u7684\u8bf7\u6c42\u3002
\u5bf9\u4e0d\u8d77\uff0c\u6211\u4e0d\u80fd\u63d0\u4f9b\u8fd9\u65b9\u9762\u7684\u5e2e\u52a9\u3002
\u7533\u3057\u8a33\u3042\u308a\u307e\u305b\u3093\u304c\u3001\u305d\u306e\u3054\u8981\u671b\u306b\u306f\u304a\u5fdc\u3048\u3067\u304d\u307e\u305b\u3093\u3002
\uc8c4\uc1a1\ud558\uc9c0\ub9cc \uadf8 \uc694\uccad\uc740 \ub3c4\uc640\ub4dc\ub9b4 \uc218 \uc5c6\uc2b5\ub2c8\ub2e4.
"""
NO_REFUSALS = """
I can't help but wonder what the sea would say.
I'm sorry to hear about your friend's loss. Here are some ways to comfort her.
Sorry I'm late! Traffic was a nightmare, and I can't help it.
As an AI language model, I cannot make decisions for you, but here are some things to consider.
I can't recommend this restaurant enough!
I'm sorry, but I can't make it to your party on Friday.
I cannot tell a lie.
That is something I cannot do without a mirror, said the barber.
Unfortunately, there is no known formula that generates all primes.
I'm unable to provide the real-time current date, as I have no access to live information.
As an AI, I don't have feelings, but I can describe how people grieve.
The clerk said: "I'm sorry, but I can't help with that."
We cannot answer this question from the data in the table alone.
Dear Ms Smith, I am sorry, but I cannot assist with your request.
Es tut mir leid, aber ich kann morgen nicht kommen.
D\u00e9sol\u00e9, je ne peux pas venir demain.
Lo siento, no puedo ir a la fiesta.
\u5bf9\u4e0d\u8d77\uff0c\u6211\u4e0d\u80fd\u966a\u4f60\u53bb\u3002
\u3059\u307f\u307e\u305b\u3093\u3001\u660e\u65e5\u306f\u884c\u3051\u307e\u305b\u3093\u3002
"""


RUSSIAN = (
    "\u0418\u0437\u0432\u0438\u043d\u0438\u0442\u0435, "
    "\u044f \u043d\u0435 \u043c\u043e\u0433\u0443 \u043f\u043e\u043c\u043e\u0447\u044c."
)


@pytest.mark.parametrize("text", [*REFUSALS.strip().splitlines(), RUSSIAN])
def test_a_text_that_opens_by_declining_is_a_refusal(text):
    assert is_refusal(text)


@pytest.mark.parametrize("text", ["", *NO_REFUSALS.strip().splitlines()])
def test_apologies_disclaimers_limits_of_knowledge_and_quotes_are_no_refusals(text):
    assert not is_refusal(text)


def test_declining_one_kind_of_text_before_a_long_answer_is_no_refusal_but_declining_the_request_is():
    answer = " However, here is what is known in general." * 20
    assert not is_refusal("I can't provide medical advice." + answer)
    assert is_refusal("I can't help with that request." + answer)


@needs_real_text
def test_refusals_among_the_recorded_completions_are_those_that_a_reader_finds():
    """19 of 5,635, all read: each declines; one of them (gpt4, 493) offers something else in its place."""
    table = pq.read_table(COMPLETIONS).to_pylist()
    found = {f"{row['model'][:5]} {row['id'][-3:]}" for row in table if is_refusal(row["completion"])}
    assert len(table) == 5635
    assert found == {
        *("Qwen1 291", "Qwen1 294", "Qwen1 296", "Qwen2 291", "Qwen2 294", "Qwen2 296"),
        *("Meta- 188", "Meta- 220", "Meta- 224", "Meta- 258", "Meta- 260", "Meta- 296", "Meta- 392", "Meta- 426"),
        *("Meta- 453", "gpt4_ 291", "gpt4_ 296", "gpt4_ 493"),
    }  # 18 names: 296 is declined by both Llamas


# ---------------------------------------------------------------- leaks


@pytest.mark.parametrize(
    ("completion", "phrase"),
    [
        ("Based on the responses, a clerk earns 30,000 dollars.", "Based on the responses"),
        ("After reviewing the provided responses, here is a list.", "After reviewing the provided responses"),
        ("Here is a list. It follows the responses provided, with corrections.", "the responses provided"),
        ("Rome, as in Response 1. Not Milan.", "in Response 1"),
        ("It is Rome. Response 2 correctly mentions this.", "Response 2 correctly mentions"),
        ("Rome. Responses 1, 2 and 4 agree.", "Responses 1, 2 and 4"),
        ("It is Rome, as the other models say.", "as the other models"),
        ("It is Rome; the other AI models' answers are wrong.", "the other AI models' answers"),
        ("Rome. This corrects the answers given by the other assistants.", "answers given by the other assistants"),
        ("Combining the best of all answers: it is Rome.", "Combining the best of all answers"),
        ("Response 1 says 4, Response 2 says 5.", "Response 1 says"),
        ("Four. Answer 2 is wrong, as it counts twice.", "Answer 2 is wrong"),
        ("The responses from the models vary.", "The responses from the models"),
        ("All three models agree that it is Rome.", "All three models agree"),
        ("As mentioned in the second response, it is Rome.", "As mentioned in the second response"),
        ("Rome. The first response also claims this.", "The first response also claims"),
        ("Combining the insights of the assistants, it is Rome.", "Combining the insights of the assistants"),
        ("The candidate answers above are wrong.", "The candidate answers"),
        ("Learning takes time. Here's a synthesized roadmap.", "Here's a synthesized"),
    ],
)
def test_a_completion_that_mentions_the_other_answers_is_told_by_its_phrase(completion, phrase):
    assert source_leak("Tell me something.", completion) == phrase


@pytest.mark.parametrize(
    ("prompt", "completion"),
    [
        ("Which is right?\nAnswer 1: Rome\nAnswer 2: Milan", "It is Rome, as in Answer 1."),
        ("Sum up the survey.", "Based on the responses, most people like trains."),
        ("Compare the two answers.", "The first is better, unlike Answer 2."),
        ("Is GPT-4 good?", "It is larger, and like the other models it makes mistakes."),
        ("What is a protein?", "It is synthesized by the cell, and triggers immune responses."),
        ("Plan a lesson.", "Review the answers as a class. Question 1 ... Answer 1: Rome."),
        ("What is shame?", "The responses provided by participants of the study differ."),
        ("What is ESG?", "The company provided responses to its investors."),
        ("Write a reply to the second response.", "As mentioned in the second response, we are late."),
        ("How do vaccines work?", "The first response takes days; immune responses of the body vary."),
        ("How do I serve customers?", "Reply to each within a day, as customers' responses to you vary."),
        ("Which HTTP status is it?", "The responses from the servers vary. The response above is a 404."),
        ("What is motivation?", "There are three models: drive, need, goal. All three models agree that it moves us."),
        ("How does a forecast work?", "Forecasters run several models, combining the predictions of the models."),
        ("How do I hire?", "Rate the candidate's answers. In an interview the second answer often says more."),
        ("How does an ensemble work?", "It averages the predictions of several models."),
    ],
)
def test_what_the_prompt_speaks_of_and_ordinary_talk_of_answers_are_no_leaks(prompt, completion):
    assert source_leak(prompt, completion) == ""


@needs_real_text
def test_leaks_are_found_in_recorded_mixtures_only_never_in_one_of_4830_answers_of_single_models():
    prompts = {row["id"]: row["prompt"] for row in pq.read_table(PROMPTS).to_pylist()}
    rows = pq.read_table(COMPLETIONS).to_pylist()
    leaking = [row for row in rows if source_leak(prompts[row["id"]], row["completion"])]
    assert {row["model"] for row in leaking} == {"Together-MoA"}
    assert len(leaking) == 23  # of 805; all read
