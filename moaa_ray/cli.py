"""The command `moaa`. Every error of ours is one message and a non-zero exit code."""

import os
import signal
import sys
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from moaa_ray.commands import data, doctor, evaluate, look, serve, submit
from moaa_ray.commands import run as whole
from moaa_ray.commands.log import quiet
from moaa_ray.commands.run import Overrides, RecipeFile
from moaa_ray.errors import ConfigError, MoaaError, StoppedError

if TYPE_CHECKING:
    from moaa_ray.generation.summary import Summary
    from moaa_ray.loading import LoadedRecipe

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Mixture of Agents Alignment on Ray: prompts in, better training data and a better model out.",
)


def _say_versions(is_asked: bool) -> None:
    if not is_asked:
        return
    from moaa_ray.run_record import versions

    typer.echo("\n".join(f"{name} {version}" for name, version in versions().items()))
    raise typer.Exit


@app.callback()
def _options(
    _version: Annotated[
        bool, typer.Option("--version", callback=_say_versions, is_eager=True, help="Say the versions that count.")
    ] = False,
) -> None:
    """Take what stands before the command."""


_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_SIGNAL_EXIT = 128
"""A shell's exit code of a command that a signal ended is this much above the signal's number."""
app.command()(whole.demo)
app.command()(whole.run)
app.command()(submit.submit)
app.command()(doctor.doctor)


@app.command()
def plan(
    recipe: RecipeFile,
    overrides: Overrides = None,
    cluster: Annotated[
        str,
        typer.Option(
            help="A cluster shape, e.g. gpus=8,gpu=H100,cpus=64[,nodes=2][,labels=pool:big]; unequal nodes by +, e.g. "
            "'gpus=1,gpu=H200,cpus=16 + gpus=2,gpu=L40S,cpus=32'. Needs neither GPU nor Ray."
        ),
    ] = "",
    rows: Annotated[int, typer.Option(help="Plan for so many prompts instead of counting them.", min=0)] = 0,
    simulate: Annotated[
        bool, typer.Option(help="Also play the run through: ramp, tails, and a picture of it.")
    ] = False,
    measured: Annotated[
        list[str] | None,
        typer.Option(help="A run of the same models whose speeds count instead of assumptions; may be given again."),
    ] = None,
    hours_between_losses: Annotated[
        float,
        typer.Option(help="With --simulate: mean hours until an engine is lost, as on spot nodes; 0: never.", min=0),
    ] = 0.0,
) -> None:
    """Say what a run would do: pools, replicas, phases, tokens, hours and cost, or exactly why it cannot run."""
    from moaa_ray.core.simulated_line import Conditions
    from moaa_ray.loading import load_to_plan
    from moaa_ray.planning.run import plan_for_cli

    if hours_between_losses and not simulate:
        raise ConfigError("--hours-between-losses is without effect alone; add --simulate, or leave it out")
    loaded = load_to_plan(recipe, overrides or [])
    conditions = Conditions(seed=loaded.recipe.seed, hours_between_losses=hours_between_losses or None)
    simulated = conditions if simulate else None
    typer.echo(plan_for_cli(loaded, cluster=cluster, num_rows=rows, simulated=simulated, measured=measured or []))


@app.command()
def generate(
    recipe: RecipeFile,
    overrides: Overrides = None,
    allow_changes: Annotated[
        bool, typer.Option(help="Go on with a run although the recipe changed in what makes rows; it is recorded.")
    ] = False,
) -> None:
    """Turn prompts into mixture-of-agents data in RUN/sft. Run it again after a kill and it goes on."""
    from moaa_ray.loading import load_recipe

    _show(_generate(load_recipe(recipe, overrides or []), allow_changes=allow_changes))


@app.command()
def clean(
    run: Annotated[str, typer.Argument(help="The directory of a finished run, a folder or a URI.")],
    dry_run: Annotated[bool, typer.Option(help="Only say what would be freed.")] = False,
    force: Annotated[bool, typer.Option(help="Also an unfinished run; no driver may be at work on it.")] = False,
) -> None:
    """Free what a finished run no longer needs under RUN/work. The published data stays, and so does every record."""
    from moaa_ray.data.cleanup import clean_run, runs_inside
    from moaa_ray.data.store import open_store

    whole = open_store(run)
    for place in [whole, *(open_store(f"{whole.uri}/{inside}") for inside in runs_inside(whole))]:
        typer.echo(clean_run(place, dry_run=dry_run, force=force).text())


@app.command()
def train(
    stage: Annotated[str, typer.Argument(metavar="sft|dpo", help="sft on RUN/sft, or dpo on RUN/pairs.")],
    recipe: RecipeFile,
    overrides: Overrides = None,
) -> None:
    """Train the recipe's student and leave it in RUN/models. Run it again after a kill and it goes on at its batch."""
    from moaa_ray.loading import load_training

    if stage not in ("sft", "dpo"):
        raise ConfigError(f"moaa train {stage}: there is no such stage; write `moaa train sft` or `moaa train dpo`")
    loaded = load_training(recipe, overrides or [])
    with quiet(loaded.recipe.name) as console:
        from moaa_ray.training_stage.stage import train_stage

        summary = train_stage(loaded, stage, console=console)
    typer.echo(summary.text())


@app.command()
def sample(
    recipe: RecipeFile,
    overrides: Overrides = None,
    restart: Annotated[bool, typer.Option(help="Forget what was sampled before, say from another student.")] = False,
) -> None:
    """Let the student answer every prompt several times; RUN/candidates. Run it again after a kill and it goes on."""
    from moaa_ray.loading import load_preference

    loaded = load_preference(recipe, overrides or [])
    with quiet(loaded.recipe.name) as console:
        from moaa_ray.preference.sample import sample as run_stage

        summary = run_stage(loaded, restart=restart, console=console)
    _show(summary, "candidates")


@app.command()
def judge(
    recipe: RecipeFile,
    overrides: Overrides = None,
    name: Annotated[str, typer.Option("--judge", help="Another of the recipe's judges than judge.use.")] = "",
    restart: Annotated[bool, typer.Option(help="Forget what this judge has said before.")] = False,
) -> None:
    """Have a judge rank the candidates, in both orders; RUN/pairs. Run it again after a kill and it goes on."""
    from moaa_ray.loading import load_preference

    loaded = load_preference(recipe, overrides or [])
    with quiet(loaded.recipe.name) as console:
        from moaa_ray.preference.judge import judge as run_stage
        from moaa_ray.preference.judge_text import render_judge

        summary = run_stage(loaded, name=name, restart=restart, console=console)
    typer.echo(render_judge(summary))


app.command("check-judge")(data.check_judge)
app.command()(data.baselines)
app.command()(evaluate.evaluate)
app.command()(look.status)
app.command()(look.report)
app.command()(look.judges)
app.command()(look.pairs)
app.command()(look.trace)
app.command()(serve.serve)


def _generate(loaded: "LoadedRecipe", *, allow_changes: bool = False) -> "Summary":
    with quiet(loaded.recipe.name) as console:
        from moaa_ray.generation.stage import generate as run_stage

        return run_stage(loaded, allow_changes=allow_changes, console=console)


def _show(summary: "Summary", folder: str = "sft") -> None:
    from moaa_ray.generation.summary import render

    typer.echo(render(summary))
    typer.echo(f"  data: {summary.run_dir}/{folder}   summary: {summary.run_dir}/summary.json")


def _stop(number: int, _frame: object) -> None:
    """The first signal ends the run in order; a second one ends this process at once."""
    for each in _SIGNALS:
        signal.signal(each, lambda again, _: os._exit(_SIGNAL_EXIT + again))
    raise StoppedError(number)


def main() -> None:
    """Run the command line.

    Exit codes: 0 done, 2 recipe, 3 data, 4 stage, 5 another driver took over, 130 ^C, 143 SIGTERM.
    """
    for number in _SIGNALS:
        signal.signal(number, _stop)
    try:
        app(standalone_mode=True)
    except MoaaError as error:
        _tell(str(error))
        sys.exit(error.exit_code)
    except StoppedError as stopped:
        _tell(f"stopped by {signal.Signals(stopped.number).name}; {stopped.what_now}")
        sys.exit(_SIGNAL_EXIT + stopped.number)


def _tell(message: str) -> None:
    Console(stderr=True, highlight=False, markup=False, soft_wrap=True).print(f"moaa: {message}")


if __name__ == "__main__":
    main()
