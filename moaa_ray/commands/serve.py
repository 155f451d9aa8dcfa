"""The command that puts a run's models on the network: `moaa serve`."""

from typing import Annotated

import typer

from moaa_ray.commands.log import quiet
from moaa_ray.commands.run import Overrides


def serve(
    place: Annotated[str, typer.Argument(metavar="RUN|RECIPE", help="A run's directory, or a recipe.")],
    overrides: Overrides = None,
) -> None:
    """Serve the mixture, its models and the tuned students as one OpenAI-compatible endpoint, until ^C.

    What is served and how says the recipe's section `serve`; loopback only,
    unless it names API keys. The mixture is a model name like any other: its
    proposers answer side by side, and the aggregator's answer is streamed.
    """
    from moaa_ray.serving.loading import load_to_serve

    loaded = load_to_serve(place, overrides or [])
    with quiet(f"serve-{loaded.recipe.name}") as console:
        from moaa_ray.serving.run import serve_run

        serve_run(loaded, console=console, tell=typer.echo)
    typer.echo("stopped; everything is released")
