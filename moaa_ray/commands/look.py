"""The commands that only look at a run: `moaa status`, `report`, `judges`, `pairs` and `trace`."""

from typing import Annotated

import typer

RunDir = Annotated[str, typer.Argument(metavar="RUN", help="A run's directory, a folder or a URI.")]


def status(run: RunDir) -> None:
    """Tell how far a run is, from anywhere that can read its directory; starts nothing and disturbs nobody."""
    from moaa_ray.reporting.status import run_status

    typer.echo(run_status(run))


def report(
    run: RunDir,
    rows: Annotated[int, typer.Option(help="So many sample rows.", min=0, max=2000)] = 40,
    out: Annotated[str, typer.Option(help="Write this file instead, a path or a URI.")] = "",
) -> None:
    """Make a page of a run, finished or not: RUN/report.html, one file that any browser shows without a network."""
    from moaa_ray.reporting.report import write_report

    typer.echo(write_report(run, num_rows=rows, out=out))


def pairs(
    run: RunDir,
    rows: Annotated[int, typer.Option(help="So many prompts.", min=1, max=2000)] = 50,
    judge: Annotated[str, typer.Option(help="Another judge than the one whose pairs are the run's.")] = "",
) -> None:
    """Make a page of what the judge did, with every verdict on some prompts: RUN/pairs.html, for any browser."""
    from moaa_ray.reporting.pairs_page import write_pairs_page

    typer.echo(write_pairs_page(run, num_rows=rows, judge=judge))


def trace(
    run: RunDir,
    row_id: Annotated[str, typer.Argument(metavar="ID", help="The id of a prompt, as in RUN/sft or RUN/pairs.")],
    full: Annotated[bool, typer.Option("--full", help="Whole texts, the judges' reasons, whole hashes.")] = False,
) -> None:
    """Follow one prompt through the run: proposals, synthesis, candidates, verdicts, pair, and who trained on it."""
    from moaa_ray.reporting.trace import trace_prompt

    typer.echo(trace_prompt(run, row_id, full=full))


def judges(run: RunDir) -> None:
    """Compare the judges that have ranked the same candidates: pairs, cost, and how far they agree.

    `moaa judge RECIPE --judge NAME` puts the candidates to another judge of
    the recipe first. The judge whose pairs are the run's has a star.
    """
    from moaa_ray.reporting.judges import compare_judges

    typer.echo(compare_judges(run))
