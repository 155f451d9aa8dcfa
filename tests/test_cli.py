"""What the command line says of itself; each command is tested with what it does."""

from importlib import metadata

from typer.testing import CliRunner

from moaa_ray.cli import app


def test_the_versions_that_make_rows_are_told():
    told = CliRunner().invoke(app, ["--version"])
    assert told.exit_code == 0
    assert {f"{name} {metadata.version(name)}" for name in ("moaa_ray", "ray", "torch")} <= {*told.output.splitlines()}


def test_a_command_that_is_not_there_is_refused():
    told = CliRunner().invoke(app, ["generte", "recipe.yaml"])
    assert told.exit_code == 2
    assert "No such command 'generte'" in told.output
