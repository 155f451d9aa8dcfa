"""A run as a job: what is refused before anything is sent, and what a real job server makes of it."""

import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
import yaml

from moaa_ray import submission
from moaa_ray.errors import ConfigError
from moaa_ray.recipe import STAGES
from moaa_ray.submission import COMMANDS, Submission, submit

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


@pytest.mark.parametrize("address", ["127.0.0.1:8265", "ray://127.0.0.1:10001", "http://"])
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
    (tmp_path / "env.yaml").write_text("", encoding="utf-8")
    assert "no job server answers there" in refused(tmp_path)


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


def test_a_job_that_the_server_does_not_take_is_told_with_its_words(tmp_path, monkeypatch):
    monkeypatch.setattr(submission, "_client", lambda address: Server("runtime_env\n is broken"))
    said = refused(tmp_path)
    assert said == (
        "--address http://127.0.0.1:1: its job server does not take the job: Request failed with status code 500: "
        "runtime_env is broken."
    )
