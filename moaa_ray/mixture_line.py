"""From a recipe to the passes of its mixture, in line order. The planner and the generate stage both start here."""

from moaa_ray.core.mixture import MixturePass, MixtureRules, Speaker
from moaa_ray.core.templates import AGGREGATE_VERSION, aggregate_messages
from moaa_ray.recipe import Recipe, SlotConfig
from moaa_ray.types import Message, Sampling

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


def _pass(recipe: Recipe, slot: SlotConfig, name: str, layer: int, rules: MixtureRules, **fields) -> MixturePass:
    model = recipe.models[slot.model]
    return MixturePass(
        name=name,
        engine=slot.model,
        speaker=Speaker(proposer=slot.label, model=model.model, revision=model.revision, layer=layer),
        sampling=Sampling(
            max_tokens=slot.max_tokens,
            temperature=slot.temperature,
            top_p=slot.top_p,
            top_k=slot.top_k,
            min_p=slot.min_p,
            repetition_penalty=slot.repetition_penalty,
            stop=slot.stop,
        ),
        rules=rules,
        **fields,
    )


def prompt_versions() -> dict[str, str]:
    """The wording of every prompt of ours, for the fingerprint of a run: changed wording changes rows."""
    question = [Message(role="user", content="question")]
    return {
        "templates.version": AGGREGATE_VERSION,
        "templates.aggregate": str(aggregate_messages(question, ["proposal"], fence="code")),
        "templates.aggregate.hidden": str(aggregate_messages(question, ["proposal"], fence="code", hide_sources=True)),
    }
