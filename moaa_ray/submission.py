"""A command of ours as a job on a running Ray cluster: checked here, submitted, followed, its exit code brought back.

Submitting the same run again goes on with it, as every command does. What the job needs comes from three places: the
code and the recipe from the working directory, which Ray copies to the cluster; data, models and the run directory from
where the cluster reaches them; secrets from the cluster's own environment, never from here.
"""

import asyncio
import os
import secrets
import shlex
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.error import HTTPError
from urllib.parse import urlparse
from urllib.request import urlopen

from moaa_ray.errors import ConfigError, MoaaError
from moaa_ray.loading import Loaded, load_preference, load_recipe, load_training
from moaa_ray.pipeline import load_run
from moaa_ray.runtime_env import check_no_secret, read_runtime_env

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
_LOOPBACK = ("localhost", "127.0.0.1", "::1")
_ADDRESS = "RAY_API_SERVER_ADDRESS"
_LOG_AGAIN = ", last available logs"
"""What comes after it in the reason of a failure was followed already."""
_STARTING_S = 60.0
_ASK_S = 30.0


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
    runtime_env = read_runtime_env(asked.runtime_env, asked.working_dir)
    client = _client(asked.address)
    with _answers(asked.address):
        _check_not_running(client, asked.address, loaded.run_dir)
    recipe = os.path.relpath(asked.recipe.resolve(), asked.working_dir.resolve())
    entrypoint = shlex.join(["python", "-m", "moaa_ray", *asked.command.split(), recipe, *asked.overrides])
    return _sent(
        client,
        asked.address,
        entrypoint=entrypoint,
        submission_id=f"moaa-{loaded.recipe.name}-{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(2)}",
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
            said = _line(error)
            if "No available agent" not in said:
                way_out = "; exclude what is large in --runtime-env" if "status code 413" in said else ""
                raise ConfigError(
                    f"--address {address}: its job server does not take the job: {said}{way_out}"
                ) from error
            if time.monotonic() > ends:
                raise ConfigError(
                    f"--address {address}: no node has taken the job for {_STARTING_S:.0f} s ({said}); see with "
                    "`ray status` whether the head is well, and submit again"
                ) from error
            time.sleep(1)


def follow(address: str, job_id: str, echo: Callable[[str], Any]) -> int:
    """Pass the job's log on until it ends; its exit code, 1 where it was stopped or never started.

    Raises MoaaError where the job server is lost on the way, which says nothing about the job.
    """
    client = _client(address)

    async def tail() -> None:
        async for text in client.tail_job_logs(job_id):
            echo(text)

    try:
        asyncio.run(tail())
        while not (info := client.get_job_info(job_id)).status.is_terminal():
            time.sleep(1)
    except Exception as error:  # of Ray, of HTTP, of WebSockets
        raise MoaaError(
            f"--address {address}: its job server is lost ({_line(error)}), which need not be the end of job {job_id}; "
            f"when it is reached again: `{ray_job(address, 'logs --follow', job_id)}`"
        ) from error
    if info.status == "SUCCEEDED":
        return 0
    why = (info.message or "no reason given").split(_LOG_AGAIN)[0]
    echo(f"job {job_id}: {info.status}: {why}\n")
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
    check_no_secret({"FIELD=VALUE": list(asked.overrides)}, where="")
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
    if not (host := _host(address)):
        raise ConfigError(f"--address {address}: is not of the form http://host:8265; write the job server's address")
    if host not in _LOOPBACK and _takes_jobs_from_anybody(address):
        raise ConfigError(
            f"--address {address}: not this machine, and its job server answers without a token, so whoever reaches it "
            "runs code there. Turn on Ray's token authentication there (RAY_AUTH_MODE=token), or close the port, "
            "forward it (ssh -L or kubectl port-forward) and submit to http://127.0.0.1:8265"
        )


def _host(address: str) -> str:
    """The host that an address of the web names; empty: it is no such address."""
    try:
        found = urlparse(address)
        return (found.hostname or "") if found.scheme in ("http", "https") and found.port != 0 else ""
    except ValueError:  # brackets or a port that are none
        return ""


def _takes_jobs_from_anybody(address: str) -> bool:
    """Whether the job server lists its jobs without a token. That there is one here says nothing about the server."""
    try:
        with urlopen(f"{address.rstrip('/')}/api/jobs/", timeout=_ASK_S) as answer:  # noqa: S310
            return answer.status == 200
    except (OSError, HTTPException):  # refused, or not there; in the second case the client says so
        return False


def _client(address: str) -> "JobSubmissionClient":
    from ray.job_submission import JobSubmissionClient

    before = {name: os.environ.pop(name) for name in (_ADDRESS, "RAY_ADDRESS") if name in os.environ}
    try:  # without them, as Ray's client goes where these say before where it is told to
        with _answers(address):
            with suppress(HTTPError):  # an answer too, and the client's to understand; of one that hangs it never tires
                urlopen(f"{address.rstrip('/')}/api/version", timeout=_ASK_S).close()  # noqa: S310
            return JobSubmissionClient(address)
    finally:
        os.environ.update(before)


@contextmanager
def _answers(address: str) -> Iterator[None]:
    """Raises ConfigError where what answers at an address, or does not, is no job server that takes us."""
    from ray.exceptions import AuthenticationError

    try:
        yield
    except AuthenticationError as error:
        raise ConfigError(
            f"--address {address}: its job server wants another token; set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN to "
            "the cluster's"
        ) from error
    except (OSError, HTTPException, RuntimeError, ValueError, LookupError) as error:  # each a kind of wrong answer
        raise ConfigError(
            f"--address {address}: no job server answers there ({_line(error)}); start the cluster, or forward its "
            "port 8265"
        ) from error


def _check_not_running(client: "JobSubmissionClient", address: str, run_dir: str) -> None:
    """Raise ConfigError where a job works on this run: a second one would take it over from the first."""
    for job in client.list_jobs():
        if (job.metadata or {}).get(_RUN_DIR) == run_dir and not job.status.is_terminal():
            raise ConfigError(
                f"{run_dir}: job {job.submission_id} works on it; follow it with "
                f"`{ray_job(address, 'logs --follow', str(job.submission_id))}`, or end it with "
                f"`{ray_job(address, 'stop', str(job.submission_id))}` first"
            )


def ray_job(address: str, what: str, job_id: str) -> str:
    """The command that does this with a job; by variable, as RAY_ADDRESS where it is set goes before --address."""
    return f"{_ADDRESS}={address} ray job {what} {job_id}"


def _line(error: Exception) -> str:
    """What an error says, in one line; of a traceback its end, which has the reason."""
    return " ".join(f"{error}".split())[-300:] or type(error).__name__
