"""The recipe that is served: one in a file, or the one that a run directory was made with."""

import json
import os
from collections.abc import Sequence
from pathlib import Path

from moaa_ray.data.store import open_store
from moaa_ray.errors import ConfigError
from moaa_ray.loading import LoadedPreference, load_preference
from moaa_ray.run_record import recipe_folder


def load_to_serve(place: str, overrides: Sequence[str]) -> LoadedPreference:
    """The recipe in a file, or the one that a run directory was made with. Raises ConfigError."""
    if "://" not in place and not os.path.isdir(place):
        return load_preference(place, overrides)
    store = open_store(place)
    folder = recipe_folder(store)
    if not os.path.isfile(path := Path(place) / "recipe.yaml"):
        raise ConfigError(f"{store.uri}: no recipe.yaml in a local folder; give the recipe, and run_dir={place}")
    return load_preference(path, [*overrides, f"run_dir={json.dumps(os.path.abspath(place))}"], base_dir=folder)
