"""The command that says how good the models have become: `moaa evaluate`."""

from typing import Annotated

import typer

from moaa_ray.commands.log import quiet
from moaa_ray.commands.run import Overrides, RecipeFile
from moaa_ray.errors import StageError


def evaluate(
    recipe: RecipeFile,
    overrides: Overrides = None,
    only: Annotated[list[str] | None, typer.Option(help="Only this benchmark; may be given again.")] = None,
    restart: Annotated[
        list[str] | None, typer.Option(help="Forget what this model has answered, or this judge has said, before.")
    ] = None,
) -> None:
    """Evaluate the student before and after training: AlpacaEval 2, Arena-Hard, MT-Bench, in the paper's table.

    The recipe's section `evaluate` names the benchmarks, each with its
    questions, a baseline's answers and a judge, which is a name under
    `models`: an endpoint, or a model that runs here. Evaluated are the
    student, RUN/models/sft and RUN/models/dpo, of every round, as far as they
    are there, or what evaluate.models names: models of the recipe, or files
    of answers. `moaa run` does the same as its last stage.

    moaa evaluate recipe.yaml --only alpaca_eval

    The section reward_bench checks judges of the recipe on labelled pairs, as
    `moaa check-judge` does and in the same place: a table of its own.

    With --only, the results of the other benchmarks stay in the table as far
    as nothing that they were made of has changed.

    All of it stays in RUN/evaluation: every answer, every judgment with the
    judge's text, and the table in summary.json and summary.md. Run it again
    after a kill and it goes on; run it again at the end and nothing is asked.
    A model that this run has trained anew is asked anew; any other change of
    a model or a judge is refused until --restart names it.
    """
    from moaa_ray.loading import load_preference

    loaded = load_preference(recipe, overrides or [])
    with quiet(loaded.recipe.name) as console:
        from moaa_ray.evaluation.stage import evaluate as run_stage
        from moaa_ray.evaluation.summary import problem_of, render_evaluation

        done = run_stage(loaded, only=only or [], restart=restart or [], console=console)
    typer.echo(render_evaluation(done))
    if problem := problem_of(done):
        raise StageError(problem)
