"""The commands that run all of it: `moaa run` and `moaa demo`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from moaa_ray.commands.log import quiet
from moaa_ray.errors import StageError

if TYPE_CHECKING:
    from moaa_ray.pipeline import Views

_JOBS = Path(__file__).parents[2] / "jobs"

RecipeFile = Annotated[Path, typer.Argument(help="The recipe: one YAML file, one run; jobs/ has some that work.")]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="[FIELD=VALUE]...", help="Changes to the recipe, e.g. mixture.aggregator.temperature=0.3"),
]


def run(recipe: RecipeFile, overrides: Overrides = None) -> None:
    """Run the whole of it: generate, sft, sample, judge, dpo, evaluate. Run it again after a kill and it goes on.

    Which stages says run.stages; run.rounds repeats sample, judge and dpo
    from the tuned model. Evaluate is the last one, where the recipe has a
    benchmark: all students of the run in one table.

    moaa run recipe.yaml 'run.stages=[evaluate]'
    """
    from moaa_ray.pipeline import load_run

    text, problem = _run(load_run(recipe, overrides or []))
    typer.echo(text)
    _check(problem)


def demo(
    overrides: Overrides = None,
    babble: Annotated[
        bool, typer.Option(help="Prompts of any kind instead, for models made on the spot that babble.")
    ] = False,
) -> None:
    """Run the whole of it with tiny models on this machine's CPUs, real vLLM and real training, and show the gain."""
    from moaa_ray.demo.rows import sample_rows
    from moaa_ray.pipeline import load_run

    recipe = _JOBS / ("babble.yaml" if babble else "demo.yaml")
    if babble:
        from moaa_ray.demo.babble import make_babblers

        make_babblers(recipe)
    views = load_run(recipe, overrides or [])
    typer.echo("starting Ray and four vLLM engines on the CPU; the first rows come after about a minute ...")
    text, problem = _run(views)
    typer.echo(sample_rows(views.run_dir) + "\n\n" + text)
    if not babble:
        typer.echo("\n" + _gain(Path(views.run_dir)))
    _check(problem)


def _gain(run_dir: Path) -> str:
    from moaa_ray.demo.gain import held_out, render_gain

    teachers = {name: _JOBS / "models" / name for name in ("specialist-a", "specialist-b", "specialist-c")}
    tuned = {"student after SFT": run_dir / "models" / "sft", "student after DPO": run_dir / "models" / "dpo"}
    students = {"student before": _JOBS / "models" / "base", **tuned}
    return render_gain({**teachers, **students}, held_out(_JOBS / "data" / "skills_held_out.jsonl"))


def _run(views: "Views") -> tuple[str, str]:
    """What the run has done, and what it could not do."""
    from moaa_ray.pipeline import run as run_all
    from moaa_ray.pipeline_text import Announcer, render_run

    with quiet(views.preference.recipe.name) as console:
        done = run_all(views, console=console, begin=Announcer(console))
    return render_run(done, views.run_dir), "; ".join(one.problem for one in done if one.problem)


def _check(problem: str) -> None:
    if problem:
        raise StageError(problem)
