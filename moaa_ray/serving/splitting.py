"""Over how many GPUs the engines of an offer are split, on the cluster that is there. Starts nothing."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import cast

from moaa_ray.core.packing_gpus import Cluster
from moaa_ray.errors import ConfigError
from moaa_ray.planning.pool_estimate import PassLoad
from moaa_ray.planning.pools import labels_of, least_replicas, nodes_for, weakest_gpu
from moaa_ray.planning.splitting import fastest_split, smallest_split, split_model
from moaa_ray.recipe import PlanConfig
from moaa_ray.serving.offer import Offer


def split_offer(offer: Offer, expected: PlanConfig, cluster: Cluster) -> Offer:
    """The offer with a number for every tensor_parallel that is auto.

    It is the number that is fastest per GPU for requests of the expected size, or, where those engines take more GPUs
    than there are, the smallest that fits. Raises ConfigError, with the sum, where a model fits into no engine.
    """
    load = PassLoad(
        num_requests=1, prompt_tokens=expected.prompt_tokens, completion_tokens=float(expected.completion_tokens)
    )
    base_dir = Path(offer.base_dir)
    options = []
    for choose in (fastest_split, smallest_split):
        models = {}
        for name, model in offer.engines.items():
            there = cluster.labelled(labels_of(model))
            gpu = weakest_gpu(there, [])
            models[name] = split_model(
                name, model, gpu=gpu, cluster=there, loads=[load], base_dir=base_dir, choose=choose
            )
        options.append(replace(offer, engines=cast(dict, models)))
    fits = (each for each in options if sum(wanted_gpus(each).values()) <= cluster.num_gpus)
    return next(fits, options[-1])


def wanted_gpus(offer: Offer) -> dict[str, int]:
    """GPUs of the least engines of every model that may run on GPUs, by name."""
    return {
        name: model.num_gpus * least_replicas(model)
        for name, model in offer.engines.items()
        if getattr(model, "device", "cpu") != "cpu"  # engines without weights have none
    }


def check_gpus(offer: Offer, on_gpu: Mapping[str, bool], cluster: Cluster) -> None:
    """Raise ConfigError where the engines want nodes that are not there: Serve would wait for them for ever."""
    for name, model in offer.engines.items():
        nodes_for(name, model, cluster)
    wanted = {name: num for name, num in wanted_gpus(offer).items() if on_gpu[name]}
    if sum(wanted.values()) > cluster.num_gpus:
        terms = " + ".join(f"{num} ({name})" for name, num in wanted.items())
        raise ConfigError(
            f"serve: {terms} = {sum(wanted.values())} GPUs, and the cluster has {cluster.num_gpus}; name fewer models "
            "under serve.models, or lower their replicas"
        )
    for name in wanted:
        if (size := offer.engines[name].num_gpus) > cluster.largest_node:
            raise ConfigError(
                f"serve: one engine of {name} takes {size} GPUs, and no node has more than {cluster.largest_node}; a "
                "replica stands on one node, so quantise the model (quantization: fp8), or lower its context_window"
            )
