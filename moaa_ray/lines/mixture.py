"""From a recipe to the passes of its mixture, in line order. The planner and the generate stage both start here."""

from collections.abc import Mapping
from pathlib import Path

from moaa_ray.core.mixture import MixturePass, MixtureRules, Speaker
from moaa_ray.core.packing_gpus import Cluster
from moaa_ray.core.passes import Pass
from moaa_ray.core.templates import AGGREGATE_VERSION, aggregate_messages
from moaa_ray.core.throughput import mean_until
from moaa_ray.planning.planner import PlanInput, StagePlan, plan_stage
from moaa_ray.planning.pool_estimate import PassLoad
from moaa_ray.recipe import Recipe, Run
from moaa_ray.settings.mixture import SlotConfig
from moaa_ray.settings.models import FakeModel
from moaa_ray.types import Message, Sampling

STAGE = "generate"
TEMPLATE_TOKENS = 200
"""Tokens of the aggregation prompt beside the proposals; an assumption."""
DIRECT = "direct"
AGGREGATE = "aggregate"


def mixture_passes(recipe: Recipe) -> tuple[MixturePass, ...]:
    """Proposers layer by layer in recipe order, the aggregator's direct answer where asked for, the aggregator.

    Names: l<layer>.<slot> with layers from 0, then `direct` and `aggregate`. The last one is final.
    """
    mixture = recipe.mixture
    rules = MixtureRules(
        run_seed=recipe.seed,
        min_proposals=mixture.min_proposals,
        shuffle_proposals=mixture.shuffle_proposals,
        proposal_dropout=mixture.proposal_dropout,
        hide_sources=mixture.hide_sources,
        drop_truncated=mixture.drop_truncated,
    )
    passes: list[MixturePass] = []
    reads: tuple[str, ...] = ()
    for layer, slots in enumerate(mixture.stacked()):
        for slot in slots:
            name = f"l{layer}.{slot.label}"
            passes.append(_pass(recipe, slot, name, layer, rules, reads=reads, num_samples=slot.num_samples))
        reads = tuple(f"l{layer}.{slot.label}" for slot in slots)
    aggregator = mixture.aggregator
    if mixture.baselines:
        passes.append(_pass(recipe, aggregator, DIRECT, 0, rules))
    passes.append(_pass(recipe, aggregator, AGGREGATE, mixture.depth, rules, reads=reads, is_final=True))
    return tuple(passes)


def mixture_loads(recipe: Recipe, windows: Mapping[str, int | None], *, mean_turns: float) -> dict[str, PassLoad]:
    """What every pass of the mixture is expected to ask of a row, by pass name.

    A prompt holds the conversation so far (half of the mean number of earlier turns) and, where the pass reads others,
    all their completions and the template; it is cut to what the window leaves beside max_tokens, as proposals are.
    """
    base = recipe.plan.prompt_tokens
    base += (mean_turns - 1) / 2 * (recipe.plan.prompt_tokens + recipe.plan.completion_tokens)
    loads: dict[str, PassLoad] = {}
    for each in mixture_passes(recipe):
        out = expected_completion(recipe, each)
        shown = sum(loads[name].num_requests * loads[name].completion_tokens for name in each.reads)
        prompt = base + shown + (TEMPLATE_TOKENS if each.reads else 0)
        if window := windows[each.engine]:
            prompt = min(prompt, max(1.0, window - each.sampling.max_tokens))
        loads[each.name] = PassLoad(num_requests=each.num_samples, prompt_tokens=prompt, completion_tokens=out)
    return loads


def expected_completion(recipe: Run, p: Pass) -> float:
    """Mean tokens of a completion of this pass."""
    model, limit = recipe.models[p.engine], p.sampling.max_tokens
    if isinstance(model, FakeModel):
        return mean_until(limit, mean=model.completion_tokens, sigma=model.length_sigma)
    return float(min(recipe.plan.completion_tokens, limit))


def plan_input(recipe: Recipe, *, base_dir: str | Path = ".", mean_turns: float = 1.0) -> PlanInput:
    """The generate stage, for the planner."""
    return PlanInput(
        stage=STAGE,
        passes=mixture_passes(recipe),
        loads=lambda windows: mixture_loads(recipe, windows, mean_turns=mean_turns),
        recipe=recipe,
        settings=recipe.generate,
        base_dir=base_dir,
    )


def plan_generate(
    recipe: Recipe,
    cluster: Cluster,
    num_rows: int | None,
    mean_turns: float = 1.0,
    *,
    num_turns: int | None = None,
    base_dir: str | Path = ".",
) -> StagePlan:
    """The plan of the generate stage; arguments as plan_stage's."""
    asked = plan_input(recipe, base_dir=base_dir, mean_turns=mean_turns)
    return plan_stage(asked, cluster, num_rows, mean_turns, num_turns=num_turns)


def _pass(recipe: Recipe, slot: SlotConfig, name: str, layer: int, rules: MixtureRules, **fields) -> MixturePass:
    model = recipe.models[slot.model]
    return MixturePass(
        name=name,
        engine=slot.model,
        speaker=Speaker(proposer=slot.label, model=model.model, revision=model.revision, layer=layer),
        sampling=sampling_of(slot),
        rules=rules,
        **fields,
    )


def sampling_of(slot: SlotConfig) -> Sampling:
    """How a slot draws its completions."""
    return Sampling(
        max_tokens=slot.max_tokens,
        temperature=slot.temperature,
        top_p=slot.top_p,
        top_k=slot.top_k,
        min_p=slot.min_p,
        repetition_penalty=slot.repetition_penalty,
        stop=slot.stop,
    )


def prompt_versions() -> dict[str, str]:
    """The wording of every prompt of ours, for the fingerprint of a run: changed wording changes rows."""
    question = [Message(role="user", content="question")]
    return {
        "templates.version": AGGREGATE_VERSION,
        "templates.aggregate": str(aggregate_messages(question, ["proposal"], fence="code")),
        "templates.aggregate.hidden": str(aggregate_messages(question, ["proposal"], fence="code", hide_sources=True)),
    }
