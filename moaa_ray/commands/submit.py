"""The command that hands a run to a cluster: `moaa submit`."""

from pathlib import Path
from typing import Annotated

import typer

from moaa_ray.commands.run import Overrides, RecipeFile
from moaa_ray.errors import StoppedError


def submit(
    recipe: RecipeFile,
    overrides: Overrides = None,
    command: Annotated[str, typer.Option(help="run, generate, train sft, train dpo, sample, judge, evaluate.")] = "run",
    address: Annotated[
        str, typer.Option(envvar="RAY_API_SERVER_ADDRESS", help="The cluster's job server.")
    ] = "http://127.0.0.1:8265",
    working_dir: Annotated[
        Path, typer.Option(help="What the cluster gets a copy of: our code, recipes, small data.")
    ] = Path(),
    runtime_env: Annotated[Path, typer.Option(help="Ray's runtime environment: what is not copied, variables.")] = Path(
        "jobs/runtime_env.yaml"
    ),
    wait: Annotated[bool, typer.Option(help="Follow the log to the end, and end with the job's exit code.")] = True,
) -> None:
    """Run a recipe as a job on a Ray cluster. Submit it again after a failure and it goes on.

    The recipe is checked here first. run_dir must be a place that all nodes
    reach. ^C ends the following, not the job; `moaa status RUN` tells how far
    it is.
    """
    from moaa_ray.submission import Submission, follow, ray_job
    from moaa_ray.submission import submit as send

    asked = Submission(
        command=command,
        recipe=recipe,
        overrides=overrides or [],
        address=address,
        working_dir=working_dir.resolve(),
        runtime_env=runtime_env,
    )
    job_id = send(asked)
    typer.echo(f"job {job_id} is submitted; `{ray_job(address, 'logs --follow', job_id)}` shows its log")
    if wait:
        try:
            code = follow(address, job_id, lambda text: typer.echo(text, nl=False))
        except StoppedError as stopped:
            ends = ray_job(address, "stop", job_id)
            raise StoppedError(stopped.number, f"job {job_id} goes on; `{ends}` ends it") from None
        raise typer.Exit(code)
