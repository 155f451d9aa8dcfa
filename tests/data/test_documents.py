"""Documents of real tokenizers: the tokens that an engine is asked with, and exactly the completions counted."""

import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from moaa_ray.data.documents import Document, DocumentError, DocumentTokenizer
from moaa_ray.demo.tiny import _train_tokenizer
from moaa_ray.engines.chat_tokens import ChatTokenizer
from moaa_ray.errors import ConfigError
from moaa_ray.types import Message
from tests.engines.test_chat_templates import GEMMA, LLAMA3, MISTRAL, make_tokenizer

QWEN = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
END_OF_TURN = {"qwen3": "<|im_end|>", "gemma": "<end_of_turn>", "llama3": "<|eot_id|>", "mistral": "</s>"}
TEMPLATES = {"qwen3": QWEN, "gemma": GEMMA, "llama3": LLAMA3, "mistral": MISTRAL}
COMPLETIONS = Path(__file__).parents[3] / "shared" / "data" / "alpaca_eval_completions.parquet"


def talk(*texts: str, system: str | None = None) -> list[Message]:
    """A conversation that begins with a user's turn."""
    turns = [Message(role="assistant" if i % 2 else "user", content=text) for i, text in enumerate(texts)]
    return turns if system is None else [Message(role="system", content=system), *turns]


@pytest.fixture(scope="module")
def tokenizers():
    return {kind: make_tokenizer(kind, template=template) for kind, template in TEMPLATES.items()}


@pytest.fixture(scope="module")
def makers(tokenizers):
    return {kind: DocumentTokenizer(tokenizer) for kind, tokenizer in tokenizers.items()}


def counted(tokenizer, document: Document) -> list[str]:
    """The texts of the runs of counted tokens."""
    runs: list[list[int]] = []
    for i, token in enumerate(document.tokens.tolist()):
        if document.counts[i]:
            if not document.counts[i - 1]:
                runs.append([])
            runs[-1].append(token)
    return [tokenizer.decode(run, skip_special_tokens=False) for run in runs]


def test_a_document_of_chatml_written_out_by_hand():
    """Of bytes and role tokens: 9 of the user turn, 11 that ask for an answer, 3 of the answer, of which 2 count."""
    tokenizer = make_tokenizer("qwen3", template=QWEN)
    document = DocumentTokenizer(tokenizer).conversation(talk("a", "b"))
    names = [tokenizer.decode([token]) for token in document.tokens.tolist()]
    prompt = ["<|im_start|>", *"user\na", "<|im_end|>", "\n", "<|im_start|>", *"assistant\n"]
    assert names == [*prompt, "b", "<|im_end|>", "\n"]
    assert document.counts.tolist() == [False] * len(prompt) + [True, True, False]
    assert (document.num_targets, document.tokens.dtype, document.counts.dtype) == (2, np.int32, np.bool_)


@pytest.mark.parametrize("kind", TEMPLATES)
def test_every_assistant_turn_counts_with_the_token_that_ends_it(kind, tokenizers, makers):
    document = makers[kind].conversation(talk("Hi", "Hello.", "Grüße", "世界 🌍 it is"))
    space = " " if kind == "mistral" else ""
    end = END_OF_TURN[kind]
    assert counted(tokenizers[kind], document) == [f"{space}Hello.{end}", f"{space}世界 🌍 it is{end}"]


@pytest.mark.parametrize("kind", TEMPLATES)
def test_the_token_that_ends_a_turn_is_known_by_its_id(kind, tokenizers, makers):
    assert tokenizers[kind].decode([makers[kind].end_token]) == END_OF_TURN[kind]


@pytest.mark.parametrize("kind", TEMPLATES)
def test_a_document_begins_with_the_very_tokens_that_an_engine_is_asked_with(kind, tokenizers, makers):
    ids, _ = ChatTokenizer(tokenizers[kind]).encode(talk("Hi", "Hello.", "Go on."))
    tokens = makers[kind].conversation(talk("Hi", "Hello.", "Go on.", "No.")).tokens.tolist()
    assert tokens[: len(ids)] == ids


@pytest.mark.parametrize("kind", ["gemma", "llama3", "mistral"])
def test_a_document_has_the_beginning_that_the_template_writes_and_no_second_one(kind, tokenizers, makers):
    from tokenizers import processors

    bos, name = tokenizers[kind].bos_token_id, tokenizers[kind].bos_token
    adding = make_tokenizer(kind, template=TEMPLATES[kind])
    adding.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{name} $A", special_tokens=[(name, bos)]
    )
    for maker in (makers[kind], DocumentTokenizer(adding)):
        tokens = maker.conversation(talk(f"Hi {name}", f"{name}Hello.")).tokens.tolist()
        assert tokens[0] == bos
        assert tokens.count(bos) == 1


@pytest.mark.parametrize("kind", TEMPLATES)
@pytest.mark.parametrize("place", range(4))
def test_role_tokens_in_row_text_are_plain_characters_and_count_by_where_they_stand(kind, place, tokenizers, makers):
    texts = ["Hi", "Hello.", "Go on.", "No."]
    end = END_OF_TURN[kind]
    texts[place] = f"a {end} b"
    document = makers[kind].conversation(talk(*texts))
    ends = (document.tokens == tokenizers[kind].convert_tokens_to_ids(end)).sum()
    assert ends == {"mistral": 2}.get(kind, 4) + (kind == "llama3")  # its template always writes a system turn
    space = " " if kind == "mistral" else ""
    assert counted(tokenizers[kind], document) == [f"{space}{texts[1]}{end}", f"{space}{texts[3]}{end}"]


def test_a_system_text_that_the_template_has_no_role_for_is_folded_as_for_engines(tokenizers, makers):
    document = makers["gemma"].conversation(talk("Hi", "Hello.", system="Be kind."))
    assert tokenizers["gemma"].decode(document.tokens.tolist()) == (
        "<bos><start_of_turn>user\nBe kind.\n\nHi<end_of_turn>\n<start_of_turn>model\nHello.<end_of_turn>\n"
    )
    assert counted(tokenizers["gemma"], document) == ["Hello.<end_of_turn>"]


@pytest.mark.parametrize("kind", TEMPLATES)
def test_a_cut_completion_at_the_end_is_not_taught_to_end_there(kind, tokenizers, makers):
    document = makers[kind].conversation(talk("Hi", "Hello.", "Go on.", "It is fo"), cut_turns={1})
    space = " " if kind == "mistral" else ""
    assert counted(tokenizers[kind], document) == [f"{space}Hello.{END_OF_TURN[kind]}", f"{space}It is fo"]
    assert tokenizers[kind].decode(document.tokens.tolist()).endswith("It is fo")


def test_a_cut_completion_in_the_middle_stays_ended_but_its_end_does_not_count(tokenizers, makers):
    whole = makers["qwen3"].conversation(talk("Hi", "It is fo", "Go on.", "No."))
    document = makers["qwen3"].conversation(talk("Hi", "It is fo", "Go on.", "No."), cut_turns={0})
    assert document.tokens.tolist() == whole.tokens.tolist()
    assert counted(tokenizers["qwen3"], document) == ["It is fo", "No.<|im_end|>"]


def test_all_tokens_means_every_token_but_the_first_and_the_end_of_a_cut_turn(makers):
    messages = talk("Hi", "It is fo", "Go on.", "No.")
    document = makers["qwen3"].conversation(messages, all_tokens=True)
    assert document.counts.tolist() == [False, *[True] * (len(document.tokens) - 1)]
    cut = makers["qwen3"].conversation(messages, all_tokens=True, cut_turns={0})
    assert cut.num_targets == document.num_targets - 1
    assert makers["qwen3"].conversation(messages, all_tokens=True, cut_turns={1}).tokens[-1] == document.tokens[-3]


def test_what_comes_after_the_last_assistant_turn_is_left_out(makers):
    short, long = talk("Hi", "Hello."), talk("Hi", "Hello.", "Go on.")
    assert makers["qwen3"].conversation(long).tokens.tolist() == makers["qwen3"].conversation(short).tokens.tolist()


def test_of_prompt_and_completion_only_the_completion_counts(tokenizers, makers):
    document = makers["qwen3"].completion(talk("Hi", "Hello.", "Go on."), talk("x", "No.")[1:])
    whole = makers["qwen3"].conversation(talk("Hi", "Hello.", "Go on.", "No."))
    assert document.tokens.tolist() == whole.tokens.tolist()
    assert counted(tokenizers["qwen3"], document) == ["No.<|im_end|>"]
    cut = makers["qwen3"].completion(talk("Hi", "Hello.", "Go on."), talk("x", "No.")[1:], cut_turns={0})
    assert counted(tokenizers["qwen3"], cut) == ["No."]


def test_a_token_that_reaches_over_the_beginning_of_a_completion_does_not_count():
    """The tokenizer joins the prompt's last blank with the completion's first; offsets trimmed of blanks hide it."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {letter: i for i, letter in enumerate([*alphabet, "ĠĠ"])}
    backend = Tokenizer(models.BPE(vocab=vocab, merges=[("Ġ", "Ġ")]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    backend.post_processor = processors.ByteLevel(trim_offsets=True)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|end|>")
    template = (
        "{% for m in messages %}{{ m.role + ': ' + m.content + '<|end|>' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
    )
    document = DocumentTokenizer(tokenizer, chat_template=template).conversation(talk("a", " b"))
    assert vocab["ĠĠ"] in document.tokens.tolist()
    assert counted(tokenizer, document) == ["b<|end|>"]


def test_a_content_that_joins_with_the_template_leaves_the_later_ones_in_their_place():
    """Under NFKC the first content joins the ">" before it, so that texts are encoded one by one."""
    template = (
        "{% for m in messages %}{{ '<|' + m.role + '|>' + m.content + '<|end|>' }}{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>{% endif %}"
    )
    more = ("<|user|>", "<|assistant|>", "<|end|>")
    tokenizer = make_tokenizer("qwen3", is_normalised=True, template=template, more=more)
    document = DocumentTokenizer(tokenizer).conversation(talk("\u0338x", "Hello.", "Go on.", "No."))
    assert counted(tokenizer, document) == ["Hello.<|end|>", "No.<|end|>"]


PIECES = ["Hi.", " ", "\n", "ü", "世", "🌍", "  x", "<", "|", "<|im_end|>", "<|im", "_end|>", "</s>", "[INST]"]
PIECES += ["<end_of_turn>", "<|eot_id|>", "<s>", "e\u0301"]


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
@pytest.mark.parametrize("kind", TEMPLATES)
def test_what_counts_is_the_completions_and_their_ends_and_nothing_else(kind, tokenizers, makers, data):
    piece = st.sampled_from(PIECES) | st.text(st.characters(blacklist_categories=["Cs"]), max_size=4)
    text = st.lists(piece, min_size=1, max_size=6).map("".join).filter(str.strip)
    texts = data.draw(st.lists(st.tuples(text, text), min_size=1, max_size=3))
    messages = talk(*(one for pair in texts for one in pair))
    document = makers[kind].conversation(messages)
    trim = str if kind == "qwen3" else str.strip
    expected = [(" " if kind == "mistral" else "") + trim(answer) + END_OF_TURN[kind] for _, answer in texts]
    assert counted(tokenizers[kind], document) == expected
    whole = tokenizers[kind].apply_chat_template(messages, tokenize=False, date_string="26 Jul 2024")
    assert tokenizers[kind].decode(document.tokens.tolist()) == whole


def test_a_tokenizer_that_normalises_gives_whole_completions_too():
    tokenizer = make_tokenizer("llama3", is_normalised=True)
    document = DocumentTokenizer(tokenizer).conversation(talk("ﬁ", "ﬁne ①＜|eot_id|＞."))
    assert counted(tokenizer, document) == ["fine 1<|eot_id|>.<|eot_id|>"]
    assert (document.tokens == tokenizer.convert_tokens_to_ids("<|eot_id|>")).sum() == 3


@pytest.mark.parametrize(
    ("rule", "messages"),
    [
        ("no_assistant", talk("Hi")),
        ("no_assistant", []),
        ("empty_completion", talk("Hi", " \n")),
        ("empty_completion", talk("Hi", "", "Go on.", "No.")),
        ("no_user_turn", talk("x", "Hello.")[1:]),
        ("no_user_turn", talk("x", "Hello.", "Hi")[1:]),
        ("empty_prompt", talk(" \n", "Hello.")),
        ("empty_prompt", talk("", "Hello.", "", "No.", "Hi", system="Be kind.")),
    ],
)
def test_a_conversation_without_a_completion_is_refused_by_rule(rule, messages, makers):
    with pytest.raises(DocumentError) as caught:
        makers["qwen3"].conversation(messages)
    assert caught.value.rule == rule


def test_turns_that_a_conversation_begins_with_do_not_count_and_the_others_do(makers, tokenizers):
    greeted = talk("x", "Hello.", "Hi", "Yes?")[1:]
    document = makers["qwen3"].conversation(greeted, cut_turns={1})
    assert counted(tokenizers["qwen3"], document) == ["Yes?"]
    assert tokenizers["qwen3"].decode(document.tokens.tolist()).startswith("<|im_start|>assistant\nHello.<|im_end|>")
    with pytest.raises(DocumentError, match=r"template: .*roles must alternate"):
        makers["gemma"].conversation(greeted)
    blank = makers["qwen3"].conversation(talk("", "Hello.", "Hi", "Yes?"))
    assert counted(tokenizers["qwen3"], blank) == ["Hello.<|im_end|>", "Yes?<|im_end|>"]


def test_a_template_that_refuses_a_conversation_refuses_the_document(makers):
    with pytest.raises(DocumentError, match="roles must alternate") as caught:
        makers["gemma"].conversation([*talk("Hi", "Hello."), *talk("x", "No.")[1:]])
    assert caught.value.rule == "template"


def test_a_message_that_the_template_leaves_out_refuses_the_document():
    """The answer to it would be trained on without it."""
    maker = DocumentTokenizer(make_tokenizer("qwen3", template=QWEN.replace("%}", "if m.role != 'tool' %}", 1)))
    tool = Message(role="tool", content="7")
    for messages, said in (
        ([*talk("Hi"), tool, *talk("x", "It is 7.")[1:]], "message 2 of 3"),
        ([*talk("Hi", "I look."), tool, *talk("x", "It is 7.")[1:]], "message 3 of 4"),
    ):
        with pytest.raises(DocumentError, match=rf"leaves out {said} \(tool\)"):
            maker.conversation(messages)
    assert maker.conversation([*talk("Hi", "Hello."), tool]).num_targets == 7


def test_a_template_that_drops_earlier_thoughts_is_refused_where_there_are_earlier_turns():
    """As Qwen3's: an empty thought is written before the last completion and taken away from the ones before it."""
    tokenizer = make_tokenizer("qwen3")
    maker = DocumentTokenizer(tokenizer)
    assert counted(tokenizer, maker.conversation(talk("Hi", "Hello."))) == ["Hello.<|im_end|>"]
    with pytest.raises(DocumentError, match=r"message 2 of 4.*set `chat_template` to a file") as caught:
        maker.conversation(talk("Hi", "Hello.", "Go on.", "No."))
    assert caught.value.rule == "not_incremental"


@pytest.mark.parametrize(
    ("kind", "name", "expected"),
    [
        ("qwen3", "chatml", ["Hello.<|im_end|>", "No <|im_end|>.<|im_end|>"]),
        ("mistral", "mistral", [" Hello.</s>", " No <|im_end|>.</s>"]),
    ],
)
def test_the_templates_that_ship_take_conversations_that_the_models_own_refuse(kind, name, expected):
    template = (Path(__file__).parents[2] / "jobs" / "templates" / f"{name}.jinja").read_text(encoding="utf-8")
    tokenizer = make_tokenizer(kind)
    messages = talk("Hi", "Hello.", "Go on.", "No <|im_end|>.", system="Be kind.")
    with pytest.raises(DocumentError, match="not_incremental"):
        DocumentTokenizer(tokenizer).conversation(messages)
    document = DocumentTokenizer(tokenizer, chat_template=template).conversation(messages)
    assert counted(tokenizer, document) == expected
    whole = tokenizer.decode(document.tokens.tolist())
    assert (
        whole
        == {
            "chatml": "<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
            "Hello.<|im_end|>\n<|im_start|>user\nGo on.<|im_end|>\n<|im_start|>assistant\nNo <|im_end|>.<|im_end|>\n",
            "mistral": "<s>[INST] Be kind.\n\nHi[/INST] Hello.</s>[INST] Go on.[/INST] No <|im_end|>.</s>",
        }[name]
    )


def test_thoughts_that_a_template_writes_of_itself_count_when_it_does_not_ask_with_them():
    silent = make_tokenizer("qwen3").chat_template.replace(
        "assistant\\n<think>\\n\\n</think>\\n\\n' }}", "assistant\\n' }}"
    )
    tokenizer = make_tokenizer("qwen3", template=silent)
    document = DocumentTokenizer(tokenizer).conversation(talk("Hi", "Hello."))
    assert counted(tokenizer, document) == ["<think>\n\n</think>\n\nHello.<|im_end|>"]


def test_a_system_text_that_moves_with_the_conversation_is_refused(makers):
    """As Mistral's: the system text stands in the last user turn, and is gone when an answer follows."""
    with pytest.raises(DocumentError) as caught:
        makers["mistral"].conversation(talk("Hi", "Hello.", system="Be kind."))
    assert caught.value.rule == "not_incremental"


def test_a_template_that_asks_in_other_words_than_it_writes_is_refused():
    """Such as one that asks with an open thought, and writes none."""
    template = QWEN.replace("assistant\\n' }}{% endif %}", "assistant\\n<think>' }}{% endif %}")
    maker = DocumentTokenizer(make_tokenizer("qwen3", template=template))
    with pytest.raises(DocumentError) as caught:
        maker.conversation(talk("Hi", "A long answer."))
    assert caught.value.rule == "not_incremental"


@pytest.mark.parametrize(("ends", "number"), [("m.content != 'No.'", 2), ("loop.index0 < 2", 4)])
def test_an_assistant_turn_that_the_template_does_not_end_is_refused(ends, number):
    template = QWEN.replace(" + '<|im_end|>\\n' }}", " }}{% if " + ends + " %}{{ '<|im_end|>\\n' }}{% endif %}")
    maker = DocumentTokenizer(make_tokenizer("qwen3", template=template))
    maker.conversation(talk("Hi", "Hello."))
    with pytest.raises(DocumentError, match=f"does not end message {number} of 4") as caught:
        maker.conversation(talk("Hi", "No.", "Go on.", "Hello."))
    assert caught.value.rule == "template"


def test_a_completion_of_which_the_template_leaves_nothing_is_refused():
    template = QWEN.replace("m.content", "m.content.split('</think>')[-1]")
    maker = DocumentTokenizer(make_tokenizer("qwen3", template=template))
    with pytest.raises(DocumentError, match="leaves nothing of message 2 of 2") as caught:
        maker.conversation(talk("Hi", "<think>Hm.</think>"))
    assert caught.value.rule == "empty_completion"


def test_a_completion_with_nothing_before_it_has_no_token_to_predict():
    """One letter, cut, at the very beginning: a first token is never predicted."""
    template = "{% for m in messages %}{{ m.content }}{% if m.role == 'assistant' %}<|im_end|>{% endif %}{% endfor %}"
    maker = DocumentTokenizer(make_tokenizer("qwen3", template=template))
    with pytest.raises(DocumentError) as caught:
        maker.conversation([Message(role="system", content=""), *talk("x", "b")[1:]], cut_turns={0})
    assert caught.value.rule == "empty_completion"


@pytest.mark.parametrize(
    ("template", "said"),
    [
        ("{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}", "never learn to stop"),
        (
            "{% for m in messages %}{% if m.role == 'assistant' %}{{ raise_exception('no!') }}{% endif %}{% endfor %}x",
            "cannot render a user turn and an assistant turn.*no!",
        ),
        ("{% for m in messages if m.role == 'user' %}<|im_start|>{{ m.content }}{% endfor %}", "drops or moves"),
        ("{{ raise_exception('never') }}", "a single user turn"),
    ],
)
def test_a_template_that_a_student_cannot_learn_from_is_refused_with_a_way_out(template, said):
    with pytest.raises(ConfigError, match=f"{said}.*set `chat_template` to a file"):
        DocumentTokenizer(make_tokenizer("qwen3"), chat_template=template)


@pytest.mark.slow
@pytest.mark.skipif(not COMPLETIONS.exists(), reason="the completions are not on this machine")
def test_real_completions_become_documents_fast():
    """1,000 completions of models, a few hundred tokens each, on one core; a bound that only a mistake would miss."""
    import pyarrow.parquet as pq

    texts = pq.read_table(COMPLETIONS, columns=["completion"]).slice(0, 1000).column(0).to_pylist()
    tokenizer = _train_tokenizer("chatml")
    maker = DocumentTokenizer(tokenizer)
    start = time.perf_counter()
    documents = [maker.conversation(talk("Why?", text)) for text in texts if text.strip()]
    seconds = time.perf_counter() - start
    kept = [text for text in texts if text.strip()]
    assert all(counted(tokenizer, d) == [f"{t}<|im_end|>"] for d, t in zip(documents[:100], kept, strict=False))
    assert len(documents) / seconds > 20
