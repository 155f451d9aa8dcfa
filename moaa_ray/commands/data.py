"""The commands that put data beside a run: `moaa check-judge` and `moaa baselines`."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from moaa_ray.commands.log import quiet
from moaa_ray.errors import ConfigError

_OVERRIDE = re.compile(r"[\w.-]+=")

RecipeFile = Annotated[Path, typer.Argument(help="The recipe, with the judge under `judges`.")]


def check_judge(
    recipe: RecipeFile,
    files: Annotated[
        list[str],
        typer.Argument(
            metavar="FILE|FIELD=VALUE",
            help="Labelled pairs: files, folders or patterns, each a check of its own. Changes to the recipe.",
        ),
    ],
    judge: Annotated[str, typer.Option(help="Another of the recipe's judges than judge.use.")] = "",
    restart: Annotated[bool, typer.Option(help="Forget what this judge has said to these pairs before.")] = False,
) -> None:
    """Check a judge before trusting it: how often it is right, and its cost.

    A file of labelled pairs is Parquet, JSON Lines or CSV in RewardBench's
    format: the columns prompt, chosen and rejected, and optionally subset and
    id. RUN/pairs is one too: how far do two judges agree?

    Every pair is asked in both orders. Shown is the accuracy over both orders
    (two that disagree count one half) and in one order that the seed draws,
    which is RewardBench's way; by subset, by section and in total, with 95 %
    intervals over pairs. Then how often the judge takes what it sees first,
    and the cost. A pair without a verdict counts one half, and is counted.

    moaa check-judge recipe.yaml reward_bench.parquet --judge jury

    All of it stays in RUN/checks/JUDGE/FILE. Run it again after a kill and it
    goes on; run it again at the end and it asks only for verdicts that lack.
    """
    from moaa_ray.loading import load_preference

    paths, overrides = _split(files, "a file of labelled pairs")
    loaded = load_preference(recipe, overrides)
    with quiet(loaded.recipe.name) as console:
        from moaa_ray.preference.check import check_judge as run_check
        from moaa_ray.preference.check_text import render_check

        reports = run_check(loaded, paths, name=judge, restart=restart, console=console)
    typer.echo("\n\n".join(map(render_check, reports)))


def baselines(
    recipe: Annotated[Path, typer.Argument(help="The recipe that RUN/sft was generated with.")],
    wanted: Annotated[
        list[str],
        typer.Argument(
            metavar="BASELINE|FIELD=VALUE",
            help="teacher:NAME, teachers (each of them), random, combined, best. Changes to the recipe.",
        ),
    ],
    judge: Annotated[str, typer.Option(help="For best: another of the recipe's judges than judge.use.")] = "",
    restart: Annotated[bool, typer.Option(help="For best: forget what this judge has said before.")] = False,
) -> None:
    """Make the datasets that the mixture has to beat, of its stored proposals.

    Nothing is generated again. The n teachers are the proposers of the first
    layer and, where RUN/sft was made with mixture.baselines: true, the
    aggregator answering alone, which is called `direct`.

    teacher:NAME is one teacher's answers, random one of the n answers to each
    prompt, combined all n as rows of their own, best the one that a judge of
    the recipe ranks first. Only best asks a model, the judge; run it again
    after a kill and it goes on.

    moaa baselines recipe.yaml teachers random combined best --judge jury

    Each is a folder like RUN/sft, called RUN/baselines/random-5 and so on. To
    train on it, name it in the recipe, sft.data: [{path: RUN/baselines/...}],
    or in one with a run_dir of its own, and RUN written out. In a conversation
    of several turns a teacher's answers stand in the places of the mixture's,
    on which its later ones were given.
    """
    from moaa_ray.loading import load_preference

    names, overrides = _split(wanted, "a baseline")
    loaded = load_preference(recipe, overrides)
    with quiet(loaded.recipe.name) as console:
        from moaa_ray.preference.baselines import make_baselines

        summaries = make_baselines(loaded, names, judge=judge, restart=restart, console=console)
    typer.echo("\n".join(summary.text() for summary in summaries))


def _split(arguments: Sequence[str], what: str) -> tuple[list[str], list[str]]:
    """What is wanted, and the overrides: field=value. A file of such a name is written with its folder, ./a=b.csv"""
    overrides = [text for text in arguments if _OVERRIDE.match(text)]
    rest = [text for text in arguments if text not in overrides]
    if not rest:
        raise ConfigError(f"{' '.join(arguments)}: only changes to the recipe; name {what} as well, see --help")
    return rest, overrides
