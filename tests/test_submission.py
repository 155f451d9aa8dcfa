"""A run as a job: what is refused before anything is sent, and what a real job server makes of it."""

import contextlib
import socket
import threading
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer, ThreadingHTTPServer
from pathlib import Path

import pytest
import yaml
from ray.dashboard.modules.job.common import JobInfo
from ray.job_submission import JobStatus

from moaa_ray import submission
from moaa_ray.commands import submit as commands
from moaa_ray.errors import ConfigError, MoaaError, StoppedError
from moaa_ray.recipe import STAGES
from moaa_ray.submission import COMMANDS, Submission, follow, submit

JOBS = Path(__file__).parents[1] / "jobs"
RECIPE = {
    "name": "small",
    "run_dir": "/shared/runs/small",
    "prompts": {"sources": [{"path": "prompts.jsonl"}]},
    "models": {"a": {"engine": "fake"}, "b": {"engine": "fake"}},
    "mixture": {"layers": [{"proposers": [{"model": "a"}]}], "aggregator": {"model": "b"}},
}


def asked(folder: Path, *overrides: str, recipe: dict = RECIPE, **fields) -> Submission:
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe), encoding="utf-8")
    (folder / "prompts.jsonl").write_text('{"prompt": "one"}\n{"prompt": "two"}\n', encoding="utf-8")
    if not (folder / "env.yaml").exists():
        (folder / "env.yaml").write_text("excludes: [/runs/]\n", encoding="utf-8")
    known = {"command": "generate", "address": "http://127.0.0.1:1", "working_dir": folder}
    known |= {"runtime_env": folder / "env.yaml", "recipe": folder / "recipe.yaml", "overrides": overrides}
    return Submission(**{**known, **fields})


def refused(*args, **kwargs) -> str:
    with pytest.raises(ConfigError) as caught:
        submit(asked(*args, **kwargs))
    return str(caught.value)


def test_a_run_directory_inside_the_copy_is_refused(tmp_path):
    text = refused(tmp_path, "run_dir=runs/x")
    assert text.startswith("run_dir = 'runs/x': it would lie in the job's copy of the working directory")
    assert "run_dir=s3://bucket/runs/my-run" in text
    assert "run_dir = ''" in refused(tmp_path, recipe={**RECIPE, "run_dir": ""})


def test_a_recipe_that_is_not_copied_is_refused(tmp_path):
    inner = tmp_path / "inner"
    inner.mkdir()
    assert "lies outside the working directory" in refused(tmp_path, working_dir=inner)


def test_a_wrong_recipe_is_refused_here_and_not_there(tmp_path):
    assert "aggregator" in refused(tmp_path, "mixture.aggregator.model=nobody")


def test_an_unknown_command_is_refused_with_those_there_are(tmp_path):
    assert "'serve' is not one of run, generate, train sft" in refused(tmp_path, command="serve")


def test_every_stage_can_be_submitted():
    assert {command.removeprefix("train ") for command in COMMANDS} == {"run", *STAGES}


NO_ADDRESSES = ["127.0.0.1:8265", "ray://127.0.0.1:10001", "http://", "http://[::1", "http://a:b", "http://a:99999"]


@pytest.mark.parametrize("address", NO_ADDRESSES)
def test_an_address_that_is_none_is_refused(tmp_path, address):
    assert f"--address {address}: is not of the form http://host:8265" in refused(tmp_path, address=address)


@pytest.mark.parametrize(("status", "is_open"), [(200, True), (401, False)])
def test_another_machine_that_takes_jobs_without_a_token_is_refused(tmp_path, monkeypatch, status, is_open):
    """The server counts as another machine's; with a token of its own the attempt goes on, to Ray's own client."""

    class Answer(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(status if "x-ray-authorization" not in self.headers else 500)
            self.end_headers()

        def log_message(self, *_):
            pass

    monkeypatch.setattr("moaa_ray.submission._LOOPBACK", ())
    with HTTPServer(("127.0.0.1", 0), Answer) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        text = refused(tmp_path, address=f"http://127.0.0.1:{server.server_port}")
        server.shutdown()
    assert ("answers without a token" in text) == is_open
    assert ("wants another token; set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN" in text) != is_open


@contextlib.contextmanager
def answering(status: int, text: str) -> Iterator[tuple[str, list[str]]]:
    """The address of a server that always answers so, and what it was asked for."""
    asked_for = []

    class Answer(BaseHTTPRequestHandler):
        def do_GET(self):
            asked_for.append(self.path)
            self.send_response(status)
            self.end_headers()
            self.wfile.write(text.encode())

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Answer) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}", asked_for
        server.shutdown()


@pytest.mark.parametrize("name", ["RAY_API_SERVER_ADDRESS", "RAY_ADDRESS"])
def test_a_job_goes_where_it_is_told_to_whatever_the_environment_says(monkeypatch, name):
    """Ray's own client takes both variables before the address that it is given."""
    monkeypatch.setenv(name, "http://127.0.0.1:2")
    with answering(200, '{"version": "4", "ray_version": "2.60.0"}') as (address, asked_for):
        submission._client(address)
    assert asked_for == ["/api/version"] * 3, "ours, and two of the client's"


@pytest.mark.parametrize(
    ("status", "text"), [(200, "<html>"), (200, '{"a": 1}'), (404, ""), (500, ""), (503, ""), (302, "")]
)
def test_a_server_that_is_no_job_server_is_told(tmp_path, status, text):
    with answering(status, text) as (address, _):
        assert f"--address {address}: no job server answers there (" in refused(tmp_path, address=address)


def test_a_server_that_never_answers_is_not_waited_for(tmp_path, monkeypatch):
    monkeypatch.setattr(submission, "_ASK_S", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"http://127.0.0.1:{server.getsockname()[1]}"
        assert "no job server answers there (timed out)" in refused(tmp_path, address=address)


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("env_vars: {HF_TOKEN: canary-1234}", "env_vars.HF_TOKEN"),
        ("env_vars: {HF_AUTH: hf_canary1234567890}", "env_vars.HF_AUTH"),
        ("env_vars: {CLOUD: AKIACANARY1234567}", "env_vars.CLOUD"),
        ("pip: {packages: [a], pip_install_options: [--index-url=https://u:canary@host]}", "pip.pip_install_options.0"),
        ("pip: [git+https://ghp_canary12345678@host/x]", "pip.0"),
        ("py_modules: [s3://AKIAX:canary@bucket/x.zip]", "py_modules.0"),
        ("config: {note: glpat-canary-12345}", "config.note"),
        ("env_vars: {JUDGE: sk-proj-canary12345}", "env_vars.JUDGE"),
    ],
)
def test_a_secret_anywhere_in_the_runtime_environment_is_refused_without_its_value(tmp_path, text, place):
    (tmp_path / "env.yaml").write_text(text, encoding="utf-8")
    told = refused(tmp_path)
    assert f"{place} looks like a secret" in told
    assert "canary" not in told.lower()


def test_a_secret_on_the_command_line_is_refused_and_what_is_none_is_not(tmp_path):
    told = refused(tmp_path, "prompts.sources.0.path=s3://AKIAX:canary@bucket/x")
    assert "FIELD=VALUE.0 looks like a secret" in told
    assert "canary" not in told
    plain = "env_vars: {A: risk-based-choice, B: 'http://host:8000/x@y'}\npip: ['https://${U}:${P}@host/x.whl']\n"
    (tmp_path / "env.yaml").write_text(plain, encoding="utf-8")
    assert "no job server answers there" in refused(tmp_path)


def test_what_ray_would_pass_over_in_the_runtime_environment_is_refused(tmp_path):
    assert "there is no such file, so nothing would say what is not sent" in refused(
        tmp_path, runtime_env=tmp_path / "gone.yaml"
    )
    (tmp_path / "env.yaml").write_text("exclude: [/runs/]", encoding="utf-8")
    assert "'exclude' is no field of Ray's runtime environment; did you mean 'excludes'?" in refused(tmp_path)
    (tmp_path / "env.yaml").write_text("working_dir: s3://bucket/code.zip", encoding="utf-8")
    assert "working_dir is what --working-dir says" in refused(tmp_path)
    (tmp_path / "env.yaml").write_bytes(b"excludes: [\xff]")
    assert "byte 11 is not UTF-8" in refused(tmp_path)
    for nothing in ("", "excludes:\nenv_vars: {TOKENIZERS_PARALLELISM: 'false'}"):
        (tmp_path / "env.yaml").write_text(nothing, encoding="utf-8")
        assert "no job server answers there" in refused(tmp_path)


@pytest.mark.parametrize(
    "text", ["excludes: /runs/", "excludes: [1]", "env_vars: {A: 1}", "pip: 3", "py_modules: [gone]"]
)
def test_what_ray_would_not_take_in_the_runtime_environment_is_told_with_its_words(tmp_path, text):
    (tmp_path / "env.yaml").write_text(text, encoding="utf-8")
    assert f"{tmp_path / 'env.yaml'}: Ray does not take it: " in refused(tmp_path)


def test_a_job_server_that_is_not_there_is_named(tmp_path):
    assert "--address http://127.0.0.1:1: no job server answers there" in refused(tmp_path)


class Server:
    """A job server's client that says these things before it takes a job."""

    def __init__(self, *says: str):
        self._says = list(says)

    def list_jobs(self) -> list:
        return []

    def submit_job(self, **job) -> str:
        if self._says:
            raise RuntimeError(f"Request failed with status code 500: {self._says.pop(0)}.")
        return job["submission_id"]


def test_a_cluster_that_has_just_started_is_waited_for(tmp_path, monkeypatch):
    server = Server(*["No available agent to submit job, please try again later."] * 2)
    monkeypatch.setattr(submission, "_client", lambda address: server)
    monkeypatch.setattr(submission.time, "sleep", lambda seconds: None)
    assert submit(asked(tmp_path)).startswith("moaa-small-")
    monkeypatch.setattr(submission, "_client", lambda address: Server("No available agent to submit job"))
    monkeypatch.setattr(submission, "_STARTING_S", -1.0)
    assert "no node has taken the job for" in refused(tmp_path)


@pytest.mark.parametrize("error", [RuntimeError("WebSocket closed: 1006"), OSError("refused"), KeyError("x")])
def test_a_job_server_that_is_lost_is_not_the_end_of_the_job(monkeypatch, error):
    class Lost(Server):
        async def tail_job_logs(self, job_id: str):
            yield "a line"
            raise error

    said = []
    monkeypatch.setattr(submission, "_client", lambda address: Lost())
    with pytest.raises(MoaaError) as caught:
        follow("http://127.0.0.1:1", "moaa-x", said.append)
    assert "need not be the end of job moaa-x" in str(caught.value)
    assert "`RAY_API_SERVER_ADDRESS=http://127.0.0.1:1 ray job logs --follow moaa-x`" in str(caught.value)
    assert (said, caught.value.exit_code) == (["a line"], 1)


def test_who_stops_following_is_told_that_the_job_goes_on(tmp_path, monkeypatch):
    def stopped(*_) -> int:
        raise StoppedError(2)

    monkeypatch.setattr(submission, "submit", lambda asked: "moaa-x")
    monkeypatch.setattr(submission, "follow", stopped)
    with pytest.raises(StoppedError) as caught:
        commands.submit(tmp_path / "recipe.yaml", address="http://a:1")
    said = "job moaa-x goes on; `RAY_API_SERVER_ADDRESS=http://a:1 ray job stop moaa-x` ends it"
    assert (caught.value.number, caught.value.what_now) == (2, said)


def test_the_log_of_a_job_that_failed_is_shown_once(monkeypatch):
    class Failed(Server):
        async def tail_job_logs(self, job_id: str):
            yield "the log\n"

        def get_job_info(self, job_id: str):
            message = "Job entrypoint command failed with exit code 4, last available logs (some):\nthe log\n"
            return JobInfo(status=JobStatus.FAILED, entrypoint="python", message=message, driver_exit_code=4)

    said = []
    monkeypatch.setattr(submission, "_client", lambda address: Failed())
    assert follow("http://127.0.0.1:1", "moaa-x", said.append) == 4
    assert said == ["the log\n", "job moaa-x: FAILED: Job entrypoint command failed with exit code 4\n"]


def test_a_job_that_the_server_does_not_take_is_told_with_its_words(tmp_path, monkeypatch):
    monkeypatch.setattr(submission, "_client", lambda address: Server("runtime_env\n is broken"))
    said = refused(tmp_path)
    assert said == (
        "--address http://127.0.0.1:1: its job server does not take the job: Request failed with status code 500: "
        "runtime_env is broken."
    )
    monkeypatch.setattr(submission, "_client", lambda address: Server("Traceback\n" + "  File x\n" * 99 + "why"))
    assert refused(tmp_path).endswith("File x why.")
    monkeypatch.setattr(submission, "_client", lambda address: Server("Request failed with status code 413: too large"))
    assert refused(tmp_path).endswith("exclude what is large in --runtime-env")


def test_what_goes_along_by_our_own_file_holds_no_env_file_at_any_depth(tmp_path):
    """By Ray's own packing, whose patterns are those of .gitignore."""
    from ray._private.runtime_env.packaging import create_package

    folder, package = tmp_path / "work", tmp_path / "package.zip"
    for name in ("recipe.yaml", ".env", "inner/.env", "inner/kept.txt", "runs/rows.parquet", ".venv/python"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("HF_TOKEN=hf_secret", encoding="utf-8")
    excludes = yaml.safe_load((JOBS / "runtime_env.yaml").read_text(encoding="utf-8"))["excludes"]
    create_package(str(folder), package, include_gitignore=True, excludes=excludes)
    with zipfile.ZipFile(package) as packed:
        assert {name for name in packed.namelist() if not name.endswith("/")} == {"recipe.yaml", "inner/kept.txt"}
