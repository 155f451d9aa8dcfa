"""Models for jobs/babble.yaml, made on the spot: real Hugging Face folders that answer prompts of any kind, badly."""

from pathlib import Path

import yaml

from moaa_ray.demo.tiny import make_tiny_model
from moaa_ray.loading import RUN
from moaa_ray.model_folders import resolve_path

_TEMPLATES = ("chatml", "llama3", "gemma", "chatml", "llama3")


def make_babblers(recipe: Path) -> None:
    """Make every model folder that the recipe names; those that are there are kept."""
    data = yaml.safe_load(recipe.read_text(encoding="utf-8"))
    places = [model["model"] for model in data["models"].values() if model["engine"] == "vllm"]
    places = [place for place in places if not place.startswith(RUN)] + [data["student"]["model"]]
    for seed, (place, template) in enumerate(zip(places, _TEMPLATES, strict=True)):
        make_tiny_model(resolve_path(recipe.parent, place), seed=seed, template=template)
