"""What is wrong with a recipe, as sentences "field = value: rule; way out". Pure: reads no file, starts nothing.

pydantic's complaints are put into the recipe's words here; names, windows and secrets are checked across
sections, also in a recipe that is wrong elsewhere. What needs the disk is in loading.py. Secrets are never shown.
"""

import json
import re
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from types import UnionType
from typing import Annotated, Any, NamedTuple, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError

from moaa_ray.core.budget import MIN_PROPOSAL_TOKENS
from moaa_ray.recipe import Recipe
from moaa_ray.settings.mixture import MixtureConfig, SlotConfig

PROMPT_TOKENS = 256
"""Tokens of a context window that stay for the conversation itself."""

_INT = ("a whole number", "write it in digits, without a decimal point or quotes")
_LIST = ("a list", "write [a, b], or one `- entry` per line")
_MAPPING = ("a mapping", "write `key: value` lines under it")
_RULES: Mapping[str, tuple[str, str]] = {
    **dict.fromkeys(("int_type", "int_from_float"), _INT),
    "float_type": ("a number", "write it in digits, without quotes"),
    "bool_type": ("true or false", "write one of the two, without quotes"),
    "string_type": ("text", "write it in quotes"),
    **dict.fromkeys(("list_type", "tuple_type"), _LIST),
    **dict.fromkeys(("dict_type", "model_type", "model_attributes_type"), _MAPPING),
    "greater_than": ("above {gt}", "raise it"),
    "greater_than_equal": ("at least {ge}", "raise it to {ge} or more"),
    "less_than": ("below {lt}", "lower it"),
    "less_than_equal": ("at most {le}", "lower it to {le} or less"),
    "finite_number": ("a finite number", "write it in digits"),
    "too_short": ("at least {min_length} of them", "add one"),
    "string_too_short": ("text that is not empty", "write some, or take it out"),
    "string_too_long": ("at most {max_length} characters long", "shorten it"),
    "string_pattern_mismatch": ("made of letters, digits, '.', '_' and '-', a letter or digit first", "rename it"),
}
_TAGS = ("engine", "kind")
"""Fields of which one says which member of a union a section is."""
_SECRET = re.compile(r"://[^/\s]*@|\b(sk-|hf_|AKIA)")
_REFERENCE = re.compile(r"\$\{[A-Za-z_]\w*\}")
_TAKES_REFERENCES = re.compile(r"models\..*\.api_key|serve\.api_keys")
_UNSAFE = re.compile("[\0\ud800-\udfff]")


class _Place(NamedTuple):
    path: str  # as the user writes it
    kind: Any  # the type that stands there
    union: str  # path of the union on the way, if any
    is_section: bool  # whether the member tried there is a section of the recipe


def field_problems(error: ValidationError) -> list[str]:
    """One sentence per wrong field; what the members of a union say about one value becomes one sentence."""
    found = [(_place(one["loc"]), one) for one in error.errors(include_url=False)]
    sentences: dict[str, str] = {}
    for place, one in found:
        rivals = [(p, e) for p, e in found if p.union == place.union and p.union]
        inside = [(p, e) for p, e in rivals if p.is_section and not e["type"].startswith("model_")]
        if inside and (place, one) not in inside:
            continue  # the value is a section, so only the section's own complaints matter
        together = [e for _, e in rivals] if rivals and not inside else [one]
        key = place.union if len(together) > 1 else f"{place.path}: {one['type']}"
        sentences.setdefault(key, _sentence(place, together))
    return list(sentences.values())


def text_problems(value: object, path: str = "") -> list[str]:
    """${NAME} where no secret belongs, secrets inside URIs, and characters that no file may hold."""
    if isinstance(value, dict):
        return [p for key, v in value.items() for p in text_problems(v, f"{path}.{key}".lstrip("."))]
    if isinstance(value, list):
        return [p for i, v in enumerate(value) for p in text_problems(v, f"{path}.{i}")]
    if not isinstance(value, str):
        return []
    problems = []
    if _REFERENCE.search(value) and not _TAKES_REFERENCES.fullmatch(path):
        problems.append(
            f"{path}: ${{NAME}} is only read in models.*.api_key and serve.api_keys; write the value itself here"
        )
    if re.search(r"://[^/\s]*@", value):
        problems.append(f"{path}: a user or secret stands in the URI; take it out, the environment holds credentials")
    if _UNSAFE.search(value):
        problems.append(f"{path}: holds a NUL or half a surrogate pair; take that character out")
    return problems


def window_problems(mixture: MixtureConfig, windows: Mapping[str, int | None]) -> list[str]:
    """Slots whose answer, or whose answer and the proposals before it, cannot fit into the context window.

    Args: windows, by model name, in tokens of prompt and completion together; None where unknown.
    """
    problems = []
    before = 0
    for i, layer in enumerate(mixture.layers):
        most = max(before, layer.num_proposals) if layer.repeat > 1 else before
        for j, slot in enumerate(layer.proposers):
            path = f"mixture.layers.{i}.proposers.{j}"
            problems += _window_problem(path, slot, most, windows.get(slot.model))
        before = layer.num_proposals
    last, window = mixture.aggregator, windows.get(mixture.aggregator.model)
    return problems + _window_problem("mixture.aggregator", last, before, window)


def shown(value: object) -> str:
    """A value as a message may show it: short, and never one that looks like a secret."""
    if isinstance(value, dict | list | tuple):
        return "a mapping" if isinstance(value, dict) else "a list"
    text = json.dumps(value) if value is None or isinstance(value, bool) else repr(value)
    if _SECRET.search(text):
        return "(not shown)"
    return text if len(text) <= 80 else f"{text[:76]}..."


def _window_problem(path: str, slot: SlotConfig, num: int, window: int | None) -> list[str]:
    if window is None:
        return []
    field = f"{path}.max_tokens = {slot.max_tokens}"
    if slot.max_tokens >= window:
        return [
            f"{field}: not below the context window of model {slot.model!r}, {window} tokens; "
            f"lower it, e.g. to {max(1, window // 4)}, or take a model with a longer window"
        ]
    others = MIN_PROPOSAL_TOKENS * num + PROMPT_TOKENS
    if not num or slot.max_tokens + others <= window:
        return []
    way_out = f"lower it to {window - others} or less" if window > others else "show fewer proposals"
    return [
        f"{field}: {slot.max_tokens} + {MIN_PROPOSAL_TOKENS} x {num} proposals + {PROMPT_TOKENS} for the rest = "
        f"{slot.max_tokens + others} tokens, above the context window of model {slot.model!r}, {window}; "
        f"{way_out}, or take a model with a longer window"
    ]


def _sentence(place: _Place, errors: list) -> str:
    path, kind, error = place.path, place.kind, errors[0]
    if error["type"] == "extra_forbidden":
        key = str(error["loc"][-1])
        path = f"{path.removesuffix(key)}(not shown)" if _SECRET.search(key) else path
        return f"{path}: unknown key; {choices(key, kind, 'keys')}"
    if error["type"] == "missing":
        return f"{path}: missing; add it, there is no default"
    if error["type"].startswith("union_tag"):
        tag, name = error["ctx"].get("tag", ""), error["ctx"]["discriminator"].strip("'")
        what = f".{name} = {shown(tag)}: unknown {name}" if tag else f".{name}: missing"
        return f"{path}{what}; {choices(tag, _tags(kind), f'{name}s')}"
    own = [e for e in errors if e["type"] == "value_error"]
    if own:
        joint = "." if _is_section(kind) else ": "
        return f"{path}{joint}{own[0]['ctx']['error']}"
    value = "(not shown)" if path.endswith(("api_key", "api_keys")) else shown(error["input"])
    rules = [_rule(one) for one in errors]
    best_way = next((way for _, way in rules if way.startswith("did you mean")), rules[0][1])
    return f"{path} = {value}: must be {' or '.join(dict.fromkeys(w for w, _ in rules))}; {best_way}"


def _rule(error: dict) -> tuple[str, str]:
    if error["type"] == "literal_error":
        valid = re.findall(r"'([^']*)'", error["ctx"]["expected"])
        return f"{'one of ' if valid[1:] else ''}{', '.join(valid)}", choices(str(error["input"]), valid, "")
    want, way_out = _RULES.get(error["type"], (f"otherwise ({error['msg']})", "correct it"))
    return want.format(**error.get("ctx", {})), way_out.format(**error.get("ctx", {}))


def choices(word: str, valid: Iterable, what: str = "names") -> str:
    close = nearest(word, valid)
    guess = [f"did you mean {close!r}?"] if close else []
    every = [f"valid {what}: {', '.join(map(str, valid))}"] if what else ([] if close else ["write one of them"])
    return " ".join(guess + every)


def nearest(word: str, valid: Iterable) -> str:
    close = get_close_matches(word[:100], [str(v) for v in valid], n=1, cutoff=0.5)
    return close[0] if close else ""


def _place(loc: tuple) -> _Place:
    """Follows pydantic's location through the types; for an unknown key, kind is the list of the valid ones."""
    path, kind, union, is_section = [], Recipe, "", False
    for part in loc:
        kind = _bare(kind)
        if get_origin(kind) in (Union, UnionType):
            if part == "[key]":
                break  # what is wrong is the model's name itself
            members = [_bare(member) for member in get_args(kind)]
            fits = [m for m in members if _is_section(m) and _answers_to(m, str(part))]
            if not any(_tag(m) for m in fits):
                union, is_section = ".".join(path), bool(fits)
            kind = fits[0] if fits else None
            continue
        path.append(str(part))
        if _is_section(kind):
            field = kind.model_fields.get(str(part))
            kind = field.annotation if field else list(kind.model_fields)
        else:
            args = get_args(kind)
            kind = args[1 if get_origin(kind) is dict else 0] if args else None
    return _Place(".".join(path), _bare(kind), union, is_section)


def _answers_to(member: type[BaseModel], label: str) -> bool:
    tag = _tag(member)
    return label == tag[1] if tag else member.__name__ in label


def _tag(member: type[BaseModel]) -> tuple[str, str] | None:
    """(field, value) by which a union knows a section; None for one that is known by its shape."""
    for name in _TAGS:
        if (field := member.model_fields.get(name)) is not None:
            return name, get_args(field.annotation)[0]
    return None


def _tags(union: Any) -> list[str]:
    return [tag[1] for member in get_args(union) if (tag := _tag(_bare(member)))]


def _bare(kind: Any) -> Any:
    """A type without Annotated and without `| None`."""
    if get_origin(kind) is Annotated:
        return _bare(get_args(kind)[0])
    if get_origin(kind) in (Union, UnionType):
        members = [member for member in get_args(kind) if member is not type(None)]
        return _bare(members[0]) if len(members) == 1 else kind
    return kind


def _is_section(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, BaseModel)


def mapping(data: Mapping, key: str) -> dict:
    """The mapping under a key, or an empty one where there is none."""
    value = data.get(key)
    return value if isinstance(value, dict) else {}
