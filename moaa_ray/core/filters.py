"""What rows are filtered by: refusals, mentions of other models' answers, words shared with evaluation prompts.

All of it is pure and looks at one text or at two. Telling refusals and mentions by phrases is meant to
be right in what it flags, not to find everything: a wrongly dropped row is lost without anyone looking.
"""

import re
import unicodedata
from collections.abc import Iterable, Sequence, Set

NGRAM_WORDS = 13
"""As Brown et al. 2020 (arXiv:2005.14165, appendix C) take it; fewer words occur in unrelated texts."""
SHINGLE_WORDS = 5

# Thai, Lao, Myanmar, Khmer, kana, Chinese characters and their extensions: scripts without blanks between words.
_UNSPACED = (
    (0x0E00, 0x0EFF), (0x1000, 0x109F), (0x1780, 0x17FF), (0x3005, 0x3007), (0x3040, 0x30FF), (0x31F0, 0x31FF),
    (0x3400, 0x4DBF), (0x4E00, 0x9FFF), (0xF900, 0xFAFF), (0x20000, 0x3FFFF),
)  # fmt: skip


class _Blanks(dict[int, str]):
    """For str.translate: what is no word character becomes a blank, a character that is a word by itself gets two."""

    def __missing__(self, code: int) -> str:
        char = chr(code)
        if unicodedata.category(char)[0] not in "LNM":  # letters, numbers, and the marks that belong to letters
            char = " "
        elif any(first <= code <= last for first, last in _UNSPACED):
            char = f" {char} "
        self[code] = char
        return char


_BLANKS = _Blanks()


def normalised(text: str) -> str:
    """The text with case and the kind and number of blanks taken out of account."""
    return " ".join(unicodedata.normalize("NFC", text).casefold().split())


def words(text: str) -> list[str]:
    """Runs of letters and digits in any script, case folded; in scripts without blanks every character is a word.

    Example: "Don't panic, 42!" gives don, t, panic, 42.
    """
    return unicodedata.normalize("NFKC", text).casefold().translate(_BLANKS).split()


def ngrams(of: Sequence[str], size: int) -> list[str]:
    """Every run of so many words, in order, joined by blanks; none where there are fewer words."""
    return [" ".join(of[i : i + size]) for i in range(len(of) - size + 1)]


def shingles(of: Sequence[str]) -> frozenset[str]:
    """The set of a text's 5-grams; a shorter text is one shingle, a text without words has none."""
    return frozenset(ngrams(of, SHINGLE_WORDS) or ([" ".join(of)] if of else []))


def jaccard(a: Set[str], b: Set[str]) -> float:
    """The part of all elements that both sets hold; 0 where there is none at all."""
    both = len(a & b)
    return both / (len(a) + len(b) - both) if both else 0.0


class Contamination:
    """The prompts of an evaluation, as far as training data must not hold them."""

    def __init__(self, runs: Iterable[str]):
        """runs: words joined by blanks, 13 of them, or all the words of a prompt that has fewer."""
        self._known = frozenset(runs)

    @classmethod
    def of(cls, prompts: Iterable[str]) -> "Contamination":
        """Every 13-gram of every prompt; of a prompt with fewer words, all its words."""
        return cls(run for prompt in prompts for run in _runs(words(prompt)))

    def __len__(self) -> int:
        return len(self._known)

    def hit(self, text: str, *, is_prompt: bool = True) -> str:
        """The first 13-gram that also stands in an evaluation prompt, or "".

        An evaluation prompt of fewer than 13 words is hit only by a text with exactly its words, and only
        by a prompt: that a short answer reads like a short question says nothing.
        """
        found = words(text)
        if len(found) < NGRAM_WORDS and not is_prompt:
            return ""
        return next((run for run in _runs(found) if run in self._known), "")


def _runs(found: Sequence[str]) -> list[str]:
    return ngrams(found, NGRAM_WORDS) or ([" ".join(found)] if found else [])


_OPENING = r"""(?:
  (?: (?:(?:i'm|i\ am)\ (?:(?:really|very|so|truly|deeply)\ )?)?sorry | my\ apologies | i\ (?:sincerely\ )?apologi[sz]e
    | unfortunately | regrettably | i'm\ afraid
    | (?:i'm|i\ am|as)\ (?:(?:just|only)\ )?an?\ [^.!?\n]{0,40}?\b(?:ai|model|assistant)\b[^.,!?\n]{0,40} )
  [,.:;!\s]* (?:(?:but|however|and|that|so)\b[,\s]*)*
){1,3}"""
_CANNOT = r"""(?:
  i\ (?: (?:can't|cannot|can\ not)(?:\ and\ (?:will\ not|won't))? | won't | will\ not )
  | i\ (?:don't|do\ not)\ feel\ comfortable
  | (?:i'm|i\ am)\ (?: unable\ to | not\ (?:able|going|willing)\ to | not\ comfortable )
  | it(?:'s|\ is)\ (?:not\ possible|impossible)\ for\ me\ to
)\ """
_REQUEST = r"""(?:
  (?:help|assist)(?:ing)?(?:\ you)?(?:\ with\b | \ in\ (?:that|this)\b | [.!] | $)
  | (?: fulfil+ | satisfy | complete | accommodate | honou?r | grant | process | answer
      | (?:comply|proceed)\ with | respond\ to )
    \ (?:that|this|your|such)\ (?:[\w-]+\ )?(?:request|question|prompt|query|topic)\b
  | comply\b | do\ (?:that|this)[.!,]
)"""
_TEXT = r"""(?:
  (?:provid|creat|generat|produc|condon|promot|facilitat)(?:e|ing)\b | assist(?:ing)?\b | writ(?:e|ing)\ an?\b
  | (?:engage|engaging|participate|participating)\ in\b
)"""
_MORE_TEXT = r"""(?:
  (?:shar|endors|describ|writ)(?:e|ing)\b | (?:offer|discuss|recommend|suggest|support|encourag)(?:e|ing)?\b
  | (?:tell|teach|show|explain|explaining)\ (?:you\ )?how\b
)"""
_NOT_KNOWLEDGE = r"(?![^.!?\n]{0,100}\b(?:real.time|current|today|date|live|latest|access|brows))"
_DECLINE = r"i\ (?:must|have\ to)\ (?:respectfully\ |politely\ )?(?:decline|refuse)\b"
# Declining the request as such is a refusal at any length; declining a kind of text only where nothing else follows.
_REFUSES = re.compile(rf"(?:{_OPENING})?(?:{_CANNOT}{_REQUEST} | {_DECLINE})", re.X | re.I)
_REFUSES_BRIEFLY = re.compile(
    rf"(?: {_CANNOT}{_TEXT} | {_OPENING}{_CANNOT}(?:{_TEXT} | {_MORE_TEXT}) ){_NOT_KNOWLEDGE}", re.X | re.I
)
_BRIEF_CHARS = 600
# Of other languages only an apology that goes on to "cannot help, answer, fulfil, provide": an apology alone, or
# another verb, may as well open a letter or a translation.
_REFUSES_ELSEWHERE = re.compile(
    "|".join(
        rf"(?:{apology})[^.!?\u3002\n]{{0,40}}?(?:{declines})"
        for apology, declines in (
            (  # German
                r"(?:es )?tut mir (?:sehr )?leid",
                r"(?:ich kann|kann ich|ich darf)\b[^.!?\n]{0,80} nicht (?:weiter)?"
                r"(?:helfen|behilflich|unterst\u00fctzen|nachkommen|erf\u00fcllen|beantworten|bereitstellen)",
            ),
            (  # French
                r"(?:je suis )?(?:vraiment )?d\u00e9sol\u00e9e?",
                r"je ne (?:peux pas|suis pas en mesure de) (?:vous |t')?"
                r"(?:aider|assister|r\u00e9pondre|fournir|satisfaire)",
            ),
            ("lo siento", r"no puedo (?:ayudar|asistir|cumplir|responder|proporcionar|satisfacer|completar)"),
            (  # Portuguese
                "desculpe|sinto muito|lamento",
                r"n\u00e3o posso (?:te |lhe )?(?:ajud|auxiliar|atender|cumprir|responder|fornecer)",
            ),
            ("mi dispiace", "non posso (?:aiutar|assister|rispondere|fornire|soddisfare)"),
            (  # Russian: izvinite, k sozhaleniyu; ya ne mogu pomoch, otvetit, vypolnit, predostavit
                "\u0438\u0437\u0432\u0438\u043d\u0438\u0442\u0435|"
                "\u043a \u0441\u043e\u0436\u0430\u043b\u0435\u043d\u0438\u044e",
                "\u044f \u043d\u0435 \u043c\u043e\u0433\u0443 (?:\u0432\u0430\u043c )?"
                "(?:\u043f\u043e\u043c\u043e\u0447\u044c|"
                "\u043e\u0442\u0432\u0435\u0442\u0438\u0442\u044c|\u0432\u044b\u043f\u043e\u043b\u043d\u0438\u0442\u044c|"
                "\u043f\u0440\u0435\u0434\u043e\u0441\u0442\u0430\u0432\u0438\u0442\u044c)",
            ),
            (  # Chinese: baoqian, duibuqi; wufa, buneng xiezhu, bangzhu, manzu, huida, tigong
                "(?:\u5f88|\u975e\u5e38)?(?:\u62b1\u6b49|\u5bf9\u4e0d\u8d77|\u5c0d\u4e0d\u8d77)",
                "(?:\u65e0\u6cd5|\u7121\u6cd5|\u4e0d\u80fd)(?:\u4e3a\u60a8|\u70ba\u60a8)?"
                "(?:\u534f\u52a9|\u5354\u52a9|\u5e2e\u52a9|\u5e6b\u52a9|\u6ee1\u8db3|\u6eff\u8db3|\u56de\u7b54|\u63d0\u4f9b)",
            ),
            (  # Japanese: moshiwake, sumimasen; tetsudai, kotae, teikyo, kaito dekimasen
                "\u7533\u3057\u8a33(?:\u3042\u308a|\u3054\u3056\u3044)\u307e\u305b\u3093|\u3059\u307f\u307e\u305b\u3093",
                "(?:\u624b\u4f1d\u3044|\u7b54\u3048|\u5fdc\u3048|\u63d0\u4f9b|\u56de\u7b54)[^\u3002\n]{0,8}"
                "(?:\u3067\u304d\u307e\u305b\u3093|\u304b\u306d\u307e\u3059)",
            ),
            (  # Korean: joesonghajiman; dowa, dapbyeon, jegong ... su eopseumnida
                "\uc8c4\uc1a1(?:\ud558\uc9c0\ub9cc|\ud569\ub2c8\ub2e4\ub9cc)",
                "(?:\ub3c4\uc640|\ub3c4\uc6c0|\ub2f5\ubcc0|\uc81c\uacf5)[^.\n]{0,8}\uc218 \uc5c6\uc2b5\ub2c8\ub2e4",
            ),
        )
    ),
    re.I,
)


def is_refusal(text: str) -> bool:
    """Whether the text opens by declining what it was asked for.

    Not refusals: disclaimers before an answer ("As an AI, I have no opinions, but ..."), limits of knowledge
    ("I cannot access today's date"), a refusal quoted or told of later on. English, and where an apology
    precedes it German, French, Spanish, Portuguese, Italian, Russian, Chinese, Japanese and Korean.
    """
    head = text.lstrip(" \t\r\n*_#>").replace("\u2019", "'")[:400]
    if _REFUSES.match(head):
        return True
    return len(text) <= _BRIEF_CHARS and bool(_REFUSES_BRIEFLY.match(head) or _REFUSES_ELSEWHERE.match(head))


_ANSWERS = r"(?:responses|answers)"
_WHICH = r"(?:provided|given|above|previous|other|various|different|multiple|individual|model)"
_MODELS = r"(?:(?:AI|language|LLM)\ )*(?:models|assistants|AIs|LLMs)"
# What gives the sources away, and the words in the prompt that make it innocent.
_LEAKS = tuple(
    (re.compile(phrase, re.X | re.I), re.compile(innocent, re.I))
    for phrase, innocent in (
        (  # the first sentence speaks of answers that nobody asked about
            rf"""\A[*_#\s]*(?:based\ on|after|considering|given|drawing|combining|upon|from|having|taking|by)\b
            [^.!?\n]{{0,60}}\b(?:the|all|these|those|provided)\ (?:{_WHICH}\ )?{_ANSWERS}\b""",
            rf"\b{_ANSWERS}\b|\b(?:answer|response) ?#?\d|survey|questionnaire|quiz|interview|poll\b|Q&A",
        ),
        (
            rf"""\b(?:the|all|these|those|of|from)\ provided\ responses\b
            | \bthe\ responses\ (?:provided|above)\b(?!\ (?:by|in|to|from|for|on|at|as|during|when|under)\b)
            | \bsynthesi[sz](?:ing|ed|is)\ (?:(?:of|from|in|the|all|these|best|key|most|and|{_WHICH}
              |information|insights|ideas|points|parts|elements)\ ){{0,8}}{_ANSWERS}\b""",
            rf"\b{_ANSWERS}\b|\b(?:answer|response) ?#?\d|survey|questionnaire|quiz",
        ),
        (
            r"""\b(?:in|from|of|as|like|unlike|both|while|whereas|than|per)\ (?:response|answer)\ \#?[1-9]\b
            | \b(?:response|answer)\ \#?[1-9]\ (?:correctly\ |also\ )?
              (?:provid|suggest|mention|stat|offer|giv|claim|cover|list|includ|highlight|focus|emphasi[sz]|point)e?s?\b
            | \b(?:responses|answers)\ \#?[1-9](?:,\ [2-9])*,?\ (?:and|&)\ \#?[2-9]\b""",
            rf"\b{_ANSWERS}\b|\b(?:answer|response) ?#?\d",
        ),
        (
            rf"""\b(?:as|like|unlike)\ the\ other\ {_MODELS}\b
            | \b(?:the|all|these|those)\ (?:other|different|various|previous)\ {_MODELS}(?:['\u2019]s?)?\ 
              (?:responses|answers|proposals|outputs|agree|sugges|said|say|mention|noted|stat|provid|point|respon|answer)
            | \b{_ANSWERS}\ (?:provided\ |given\ |generated\ |offered\ )?(?:by|from|of)\ (?:the\ |all\ |these\ )*
              (?:other\ |different\ |various\ |multiple\ |several\ |previous\ )+{_MODELS}\b""",
            rf"\b{_MODELS}\b|\bmodel\b|\bAI\b|GPT|chat ?bot",
        ),
        (
            r"""\bhere(?:'s|\u2019s|\ is|\ are)\ (?:a|an|the|some|my)\ (?:[\w-]+,?\ ){0,4}synthesi[sz]ed\b
            | \A[*_#\s]*based\ on\ (?:the|a|my)\ (?:\w+\ )?synthesi[sz](?:is\ of|ed)\b""",
            "synthes[ie]",
        ),
    )
)


def source_leak(prompt: str, completion: str) -> str:
    """The phrase by which an English completion mentions the other models' answers, or "".

    A phrase does not count where the prompt itself speaks of answers, or of models: the completion then means those.
    """
    for phrase, innocent in _LEAKS:
        found = phrase.search(completion)
        if found and not innocent.search(prompt):
            return " ".join(found[0].split())
    return ""
