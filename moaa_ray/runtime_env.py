"""What goes along with a job: Ray's runtime environment from a file, such that Ray takes it and it holds no secret."""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from moaa_ray.errors import ConfigError
from moaa_ray.settings.checks import choices
from moaa_ray.settings.yaml_text import parse_yaml

_SECRET_NAME = re.compile(r"KEY|TOKEN(?!IZER)|SECRET|PASSWORD|CREDENTIAL", re.IGNORECASE)
_SECRET_VALUE = re.compile(
    r"\b(hf_|sk-|gh[opsur]_|github_pat_|glpat-)[\w-]{8}|\b(AKIA|ASIA)[A-Z0-9]{8}|-----BEGIN [A-Z ]*PRIVATE KEY"
    r"|://[^/\s:@]*:(?!\$)[^/\s@]+@"
)
"""Tokens of hubs, clouds and hosts of code by how they begin, and passwords in a URL that are not a variable's name."""


def read_runtime_env(path: Path, working_dir: Path) -> dict[str, Any]:
    """The environment in a file, with the working directory.

    Raises ConfigError for secrets in it, and for what Ray would pass over or not take.
    """
    if not path.is_file():
        raise ConfigError(
            f"--runtime-env {path}: there is no such file, so nothing would say what is not sent to the cluster; "
            "correct the path, or name an empty file to send all of the working directory"
        )
    try:
        data = parse_yaml(path.read_text(encoding="utf-8-sig"), str(path)) or {}
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: byte {error.start} is not UTF-8; save the file as UTF-8 text") from None
    if not isinstance(data, dict):
        raise ConfigError(f"{path}: must hold a mapping, e.g. `excludes: [/runs/]`")
    check_no_secret(data, where=f"{path}: ")
    if "working_dir" in data:
        raise ConfigError(f"{path}: working_dir is what --working-dir says; give it there, and take it out here")
    whole = {name: value for name, value in data.items() if value is not None} | {"working_dir": str(working_dir)}
    _check_fields(whole, path)
    return whole


def _check_fields(data: Mapping[str, Any], path: Path) -> None:
    """Raise ConfigError for a field that Ray does not know, of which it only logs a warning there, or does not take."""
    from ray.runtime_env import RuntimeEnv

    known = sorted(name for name in RuntimeEnv.known_fields if not name.startswith("_"))
    if unknown := next((name for name in data if name not in known), ""):
        raise ConfigError(f"{path}: {unknown!r} is no field of Ray's runtime environment; {choices(unknown, known)}")
    try:
        RuntimeEnv(**data)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{path}: Ray does not take it: {' '.join(str(error).split())}; correct it") from error


def check_no_secret(data: Mapping[Any, Any], *, where: str) -> None:
    """Raise ConfigError, without the value, where a name or a value anywhere looks like a secret."""
    for name, value in _leaves(data):
        is_named_so = name.startswith("env_vars.") and _SECRET_NAME.search(name.removeprefix("env_vars."))
        if is_named_so or _SECRET_VALUE.search(value):
            raise ConfigError(
                f"{where}{name} looks like a secret, and a job's runtime environment and command are shown in the "
                "dashboard and in logs; set it in the cluster's own environment (a Kubernetes secret)"
            )


def _leaves(data: Any, name: str = "") -> Iterator[tuple[str, str]]:
    """Every plain value as text, with the dotted path to it."""
    if not isinstance(data, dict | list):
        yield name, str(data)
        return
    for key, value in data.items() if isinstance(data, dict) else enumerate(data):
        yield from _leaves(value, f"{name}.{key}" if name else str(key))
