"""A command of ours as a job on a running Ray cluster: checked here, submitted, followed, its exit code brought back.

Submitting the same run again goes on with it, as every command does. What the job needs comes from three places: the
code and the recipe from the working directory, which Ray copies to the cluster; data, models and the run directory from
where the cluster reaches them; secrets from the cluster's own environment, never from here.
"""

import asyncio
import os
import re
import shlex
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlparse
from urllib.request import urlopen

from moaa_ray.errors import ConfigError
from moaa_ray.loading import Loaded, load_preference, load_recipe, load_training
from moaa_ray.pipeline import load_run
from moaa_ray.settings.checks import choices
from moaa_ray.settings.yaml_text import parse_yaml

if TYPE_CHECKING:
    from ray.job_submission import JobSubmissionClient

COMMANDS: Mapping[str, Callable[[Path, Sequence[str]], Loaded]] = {
    "run": lambda path, overrides: load_run(path, overrides).preference,
    "generate": load_recipe,
    "train sft": load_training,
    "train dpo": load_training,
    "sample": load_preference,
    "judge": load_preference,
    "evaluate": load_preference,
}
"""What can be submitted, and how its recipe is checked here."""
_RUN_DIR = "moaa_run_dir"
_SECRET_NAME = re.compile(r"KEY|TOKEN|SECRET|PASSWORD|CREDENTIAL", re.IGNORECASE)
_SECRET_VALUE = re.compile(
    r"\b(hf_|sk-|gh[opsur]_|github_pat_|glpat-)[\w-]{8}|\b(AKIA|ASIA)[A-Z0-9]{8}|-----BEGIN [A-Z ]*PRIVATE KEY"
    r"|://[^/\s:@]*:(?!\$)[^/\s@]+@"
)
"""Tokens of hubs, clouds and hosts of code by how they begin, and passwords in a URL that are not a variable's name."""
_LOOPBACK = ("localhost", "127.0.0.1", "::1")
_STARTING_S = 60.0
_ASK_S = 10.0


@dataclass(frozen=True, kw_only=True)
class Submission:
    """One command for a cluster."""

    command: str
    recipe: Path
    overrides: Sequence[str]
    address: str
    """Of the cluster's job server, e.g. http://127.0.0.1:8265."""
    working_dir: Path
    runtime_env: Path
    """A YAML file with Ray's runtime environment."""


def submit(asked: Submission) -> str:
    """Submit the command; the job's id. Raises ConfigError for what would go wrong there, before anything is sent."""
    loaded = _checked(asked)
    _check_address(asked.address)
    runtime_env = {**_runtime_env(asked.runtime_env), "working_dir": str(asked.working_dir)}
    client = _client(asked.address)
    _check_not_running(client, loaded.run_dir)
    recipe = os.path.relpath(asked.recipe.resolve(), asked.working_dir.resolve())
    entrypoint = shlex.join(["python", "-m", "moaa_ray", *asked.command.split(), recipe, *asked.overrides])
    return _sent(
        client,
        asked.address,
        entrypoint=entrypoint,
        submission_id=f"moaa-{loaded.recipe.name}-{time.strftime('%Y%m%d-%H%M%S')}",
        runtime_env=runtime_env,
        metadata={_RUN_DIR: loaded.run_dir, "moaa_command": asked.command},
    )


def _sent(client: "JobSubmissionClient", address: str, **job: Any) -> str:
    """The id of a job that is handed over; a cluster that has just started has nobody to take it for some seconds."""
    ends = time.monotonic() + _STARTING_S
    while True:
        try:
            return client.submit_job(**job)
        except RuntimeError as error:
            said = " ".join(str(error).split())[:300]
            if "No available agent" not in said:
                raise ConfigError(f"--address {address}: its job server does not take the job: {said}") from error
            if time.monotonic() > ends:
                raise ConfigError(
                    f"--address {address}: no node has taken the job for {_STARTING_S:.0f} s ({said}); see with "
                    "`ray status` whether the head is well, and submit again"
                ) from error
            time.sleep(1)


def follow(address: str, job_id: str, echo: Callable[[str], Any]) -> int:
    """Pass the job's log on until it ends; its exit code, 1 where it was stopped or never started."""
    client = _client(address)

    async def tail() -> None:
        async for text in client.tail_job_logs(job_id):
            echo(text)

    asyncio.run(tail())
    while not (info := client.get_job_info(job_id)).status.is_terminal():
        time.sleep(1)
    if info.status == "SUCCEEDED":
        return 0
    echo(f"job {job_id}: {info.status}: {info.message or 'no reason given'}\n")
    return info.driver_exit_code or 1


def _checked(asked: Submission) -> Loaded:
    """The recipe, if it can run from a copy of the working directory."""
    if asked.command not in COMMANDS:
        raise ConfigError(f"moaa submit: {asked.command!r} is not one of {', '.join(COMMANDS)}")
    if not asked.recipe.resolve().is_relative_to(asked.working_dir.resolve()):
        raise ConfigError(
            f"{asked.recipe}: lies outside the working directory {asked.working_dir}, which is all that the cluster "
            "gets; copy it there, or give --working-dir"
        )
    _check_no_secret({"FIELD=VALUE": list(asked.overrides)}, where="")
    loaded = COMMANDS[asked.command](asked.recipe, asked.overrides)
    run_dir = loaded.recipe.run_dir
    if "://" not in run_dir and not os.path.isabs(run_dir):
        raise ConfigError(
            f"run_dir = {run_dir!r}: it would lie in the job's copy of the working directory, which Ray deletes; give "
            "a place that all nodes reach, e.g. run_dir=s3://bucket/runs/my-run or a shared folder's absolute path"
        )
    return loaded


def _check_address(address: str) -> None:
    """Raise ConfigError for an address that is none, and for one that anybody on the way could use."""
    found = urlparse(address)
    if found.scheme not in ("http", "https") or not found.hostname:
        raise ConfigError(f"--address {address}: is not of the form http://host:8265; write the job server's address")
    if found.hostname not in _LOOPBACK and _takes_jobs_from_anybody(address):
        raise ConfigError(
            f"--address {address}: not this machine, and its job server answers without a token, so whoever reaches it "
            "runs code there. Turn on Ray's token authentication there (RAY_AUTH_MODE=token), or close the port, "
            "forward it (ssh -L or kubectl port-forward) and submit to http://127.0.0.1:8265"
        )


def _takes_jobs_from_anybody(address: str) -> bool:
    """Whether the job server lists its jobs without a token. That there is one here says nothing about the server."""
    try:
        with urlopen(f"{address.rstrip('/')}/api/jobs/", timeout=_ASK_S) as answer:  # noqa: S310
            return answer.status == 200
    except OSError:  # refused, or not there; in the second case the client says so
        return False


def _runtime_env(path: Path) -> dict[str, Any]:
    """Ray's runtime environment in a file. Raises ConfigError for what Ray would pass over, and for secrets in it."""
    if not path.is_file():
        raise ConfigError(
            f"--runtime-env {path}: there is no such file, so nothing would say what is not sent to the cluster; "
            "correct the path, or name an empty file to send all of the working directory"
        )
    data = parse_yaml(path.read_text(encoding="utf-8"), str(path)) or {}
    if not isinstance(data, dict):
        raise ConfigError(f"{path}: must hold a mapping, e.g. `excludes: [/runs/]`")
    _check_fields(data, path)
    _check_no_secret(data, where=f"{path}: ")
    return data


def _check_fields(data: Mapping[Any, Any], path: Path) -> None:
    """Raise ConfigError for a field that Ray does not know: it only logs a warning on the cluster."""
    from ray.runtime_env import RuntimeEnv

    known = sorted(name for name in RuntimeEnv.known_fields if not name.startswith("_"))
    if unknown := next((str(name) for name in data if name not in known), ""):
        raise ConfigError(f"{path}: {unknown!r} is no field of Ray's runtime environment; {choices(unknown, known)}")


def _check_no_secret(data: Mapping[Any, Any], *, where: str) -> None:
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


def _client(address: str) -> "JobSubmissionClient":
    from ray.exceptions import AuthenticationError
    from ray.job_submission import JobSubmissionClient

    try:
        return JobSubmissionClient(address)
    except AuthenticationError as error:
        raise ConfigError(
            f"--address {address}: its job server wants another token; set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN to "
            "the cluster's"
        ) from error
    except (ConnectionError, RuntimeError) as error:
        raise ConfigError(
            f"--address {address}: no job server answers there ({error}); start the cluster, or forward its port 8265"
        ) from error


def _check_not_running(client: "JobSubmissionClient", run_dir: str) -> None:
    """Raise ConfigError where a job works on this run: a second one would take it over from the first."""
    for job in client.list_jobs():
        if (job.metadata or {}).get(_RUN_DIR) == run_dir and not job.status.is_terminal():
            raise ConfigError(
                f"{run_dir}: job {job.submission_id} works on it; follow it with `ray job logs --follow "
                f"{job.submission_id}`, or end it with `ray job stop {job.submission_id}` first"
            )
