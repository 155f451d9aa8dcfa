"""Refusals and mentions of other models' answers, told by their phrases. Pure.

They are meant to be right in what they flag, not to find everything: a wrongly dropped row is lost without anyone
looking.
"""

import re

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
_SOMETHING = r"""(?:that|this)(?:'s|\ is)\ (?:
  something\ (?:that\ )?i\ (?:can't|cannot|can\ not|won't|will\ not|am\ (?:unable|not\ able)\ to)
  | not\ something\ (?:that\ )?i\ (?:can|will|am\ able\ to)
)\ (?:do|help|assist|provide|discuss)\b"""
_NOT_KNOWLEDGE = r"(?![^.!?\n]{0,100}\b(?:real.time|current|today|date|live|latest|access|brows))"
_DECLINE = r"i\ (?:must|have\ to)\ (?:respectfully\ |politely\ )?(?:decline|refuse)\b"
# Declining the request as such is a refusal at any length; declining a kind of text only where nothing else follows.
_REFUSES = re.compile(rf"(?:{_OPENING})?(?:{_CANNOT}{_REQUEST} | {_DECLINE})", re.X | re.I)
_REFUSES_BRIEFLY = re.compile(
    rf"(?: {_CANNOT}{_TEXT} | {_OPENING}(?:{_CANNOT}(?:{_TEXT} | {_MORE_TEXT}) | {_SOMETHING}) ){_NOT_KNOWLEDGE}",
    re.X | re.I,
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
_SAYS = r"""(?:provid|suggest|mention|stat|offer|giv|claim|cover|list|includ|highlight|focus|emphasi[sz]|point|say|argu
  |conclud|recommend)e?s?\b"""
_IS_WRONG = r"is\ (?:wrong|right|correct|incorrect|mistaken|the\ (?:best|most))\b"
_NTH = r"(?:first|second|third|fourth|fifth|sixth)"
_SEVERAL = r"(?:two|three|four|five|six)"
_INSIGHTS = r"(?:insights|perspectives|suggestions|contributions|ideas|views|advice|responses|answers)"
_MODELS = r"(?:(?:AI|language|LLM)\ )*(?:models|assistants|AIs|LLMs)"
# What gives the sources away, and the words in the prompt that make it innocent.
_LEAKS = tuple(
    (re.compile(phrase, re.X | re.I | re.S), re.compile(innocent, re.I))
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
            rf"""\b(?:in|from|of|as|like|unlike|both|while|whereas|than|per)\ (?:response|answer)\ \#?[1-9]\b
            | \b(?:response|answer)\ \#?[1-9]\ (?:correctly\ |also\ )?{_SAYS}
            | \b(?:response|answer)\ \#?[1-9]\ {_IS_WRONG}
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
            rf"""\bas\ (?:mentioned|noted|stated|suggested|explained|described|shown)
              \ (?:in|by)\ the\ (?:{_NTH}|other)\ (?:response|answer)\b
            | \bthe\ {_NTH}\ (?:response|answer)\ (?:correctly\ |also\ )?{_SAYS}
            | \bthe\ candidate\ {_ANSWERS}\b""",
            rf"\bresponses?\b|\b{_ANSWERS}\b|candidate|interview|survey|questionnaire|quiz",
        ),
        (  # models that the text has not spoken of before
            rf"""\A(?:(?!\bmodels?\b|\bassistants?\b).)*?\b
            (all\ (?:of\ )?(?:the\ |these\ )?{_SEVERAL}\ {_MODELS}\ (?:agree|sa[iy]|suggest|mention|state|respon)
            | the\ {_ANSWERS}\ (?:provided\ |given\ )?(?:from|by)\ (?:the|all|these)\ (?:{_SEVERAL}\ )?{_MODELS}\b
            | (?:combining|synthesi[sz]ing|merging|integrating|drawing\ (?:on|from)|considering|reviewing)
              \ [^.!?\n]{{0,40}}\b{_INSIGHTS}\ (?:provided\ |given\ |offered\ )?(?:of|from|by)
              \ (?:the|all|these|those|several)\ {_MODELS}\b)""",
            rf"\b{_MODELS}\b|\bmodel\b|\bassistant|\bAI\b|GPT|chat ?bot",
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
            return " ".join(found[found.lastindex or 0].split())
    return ""
