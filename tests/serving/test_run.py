"""What `moaa serve` refuses of its address before anything starts."""

import json

import pytest
import yaml

from moaa_ray.errors import ConfigError
from moaa_ray.loading import load_preference
from moaa_ray.serving.run import serve_run
from tests.serving.local import recipe


def test_an_address_that_this_machine_does_not_have_is_told_as_the_host_not_the_port(tmp_path, monkeypatch):
    monkeypatch.setenv("SERVE_TEST_KEYS", "k" * 16)
    serve = {"host": "198.51.100.7", "api_keys": "${SERVE_TEST_KEYS}"}  # a documentation network's
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe(serve=serve, ray={"address": "local"})), encoding="utf-8")
    loaded = load_preference(path, [f"run_dir={json.dumps(str(tmp_path / 'run'))}"])
    with pytest.raises(ConfigError, match=r"serve.host = '198.51.100.7': no address of this machine .*; take one"):
        serve_run(loaded, console=None, tell=print)
