"""The command that looks at a cluster before a run does: `moaa doctor`."""

from typing import Annotated

import typer

from moaa_ray.commands.log import quiet
from moaa_ray.commands.run import Overrides
from moaa_ray.errors import StageError


def doctor(
    recipe: Annotated[str, typer.Argument(help="A recipe, whose cluster and run directory are tried.")] = "",
    overrides: Overrides = None,
) -> None:
    """Say whether a cluster can carry a run: versions, GPUs, memory, disk, clocks, ports, storage, from every node.

    One line each, with the way out. Without a recipe it looks at the cluster
    of RAY_ADDRESS, or at this machine. Ends with exit code 4 where a run
    would fail.
    """
    from moaa_ray.doctor.findings import text_of
    from moaa_ray.recipe import RayConfig

    config, run_dir, wants_gpus = RayConfig(), "", False
    if recipe:
        from moaa_ray.loading import load_to_plan

        loaded = load_to_plan(recipe, overrides or [])
        config, run_dir = loaded.recipe.ray, loaded.run_dir
        wants_gpus = any(getattr(model, "device", "") == "gpu" for model in loaded.recipe.models.values())
    with quiet("doctor"):
        from moaa_ray.doctor.examine import examine

        found = examine(config, run_dir=run_dir, wants_gpus=wants_gpus)
    typer.echo(text_of(found))
    if wrong := [each.what for each in found if each.grade == "fail"]:
        raise StageError(f"a run would fail here: {', '.join(wrong)}; the lines above say the way out")
