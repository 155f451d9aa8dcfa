"""The recipe as YAML: written and read by the same rules, so that what a run keeps loads to an equal recipe.

Reads no files; knows no secret but by its ${NAME}.
"""

import re

import yaml

from moaa_ray.errors import ConfigError
from moaa_ray.recipe import Run
from moaa_ray.settings import checks

SCALARS = {
    "null": (r"~|null|", ["~", "n", ""]),
    "bool": (r"true|false", "tf"),
    "int": (r"[-+]?(0|[1-9][0-9]{0,18})", "-+0123456789"),
    "float": (r"[-+]?([0-9]+(\.[0-9]*)?|\.[0-9]+)([eE][-+]?[0-9]+)?", "-+.0123456789"),
}
"""YAML 1.2's plain scalars: yes, on and 1:30 are text, 1e-3 is a number."""

_MAX_DEPTH = 32


def resolved_yaml(recipe: Run) -> str:
    """The whole recipe with all defaults as YAML that loads to an equal recipe.

    Secrets stay ${NAME}; relative paths stay as written, so they count from where the recipe lay.
    """
    return yaml.dump(recipe.model_dump(mode="json"), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)


def parse_yaml(text: str, where: str) -> object:
    """Plain data from YAML. Refuses duplicate keys, tags, aliases and depth, with the line; never quotes a line."""
    try:
        return yaml.load(text, Loader=_Loader)  # noqa: S506 - a SafeLoader that refuses more
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        at = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise ConfigError(f"{where}{at}: not valid YAML: {error.problem or error.context}; correct this line") from None
    except (yaml.YAMLError, ValueError):
        raise ConfigError(f"{where}: not YAML: it holds characters that YAML does not allow; save it as text") from None


class _Loader(yaml.SafeLoader):
    """Only mappings, lists and scalars, each written once."""

    yaml_implicit_resolvers: dict = {}  # noqa: RUF012 - PyYAML's own way; filled below
    depth = 0

    def compose_node(self, parent, index):  # pyright: ignore
        event = self.peek_event()
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None):
            raise _refusal(
                "& and * (anchors, aliases) are not read here; write the value out, or put it in quotes", event
            )
        if getattr(event, "tag", None):
            raise _refusal("! (a tag) is not read here; put the value in quotes", event)
        if self.depth >= _MAX_DEPTH:
            raise _refusal(f"nested deeper than {_MAX_DEPTH} levels", event)
        self.depth += 1
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node

    def construct_mapping(self, node, deep=False):
        lines: dict[str, int] = {}
        for key, _ in node.value:
            if key.tag != "tag:yaml.org,2002:str":
                raise _refusal("this key is not text; put it in quotes", key)
            if key.value in lines:
                name = checks.shown(key.value)
                raise _refusal(f"{name} stands here a second time, first on line {lines[key.value]}; keep one", key)
            lines[key.value] = key.start_mark.line + 1
        return super().construct_mapping(node, deep=deep)


class _Dumper(yaml.SafeDumper):
    """Quotes what either YAML 1.1 or the loader above would not read as text; writes no anchors."""

    def ignore_aliases(self, data):
        return True

    def represent_str(self, data):
        # PyYAML takes these for line ends unless they are escaped
        style = '"' if re.search("[\x85\u2028\u2029]", data) else None
        return self.represent_scalar("tag:yaml.org,2002:str", data, style=style)


_Dumper.add_representer(str, _Dumper.represent_str)


for _tag, (_regex, _first) in SCALARS.items():
    for _class in (_Loader, _Dumper):
        _class.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(rf"^({_regex})\Z"), list(_first))


def _refusal(problem: str, at) -> yaml.MarkedYAMLError:
    return yaml.MarkedYAMLError(problem=problem, problem_mark=at.start_mark)
