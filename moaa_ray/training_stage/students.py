"""The model that a training stage starts from, found and checked before anything starts."""

from pathlib import Path

from moaa_ray.data import publish
from moaa_ray.data.manifest import MANIFEST
from moaa_ray.data.store import Store, open_store
from moaa_ray.data.student_files import FILES, digest_of_model, student_folder
from moaa_ray.errors import ConfigError
from moaa_ray.loading import RUN, LoadedTraining
from moaa_ray.model_folders import local_problems, resolve_model, resolve_path, training_window_of_folder
from moaa_ray.training_stage.datasets import Stage, StudentFiles


def student_of(loaded: LoadedTraining, stage: Stage) -> StudentFiles:
    """Where training starts from: the recipe's student, for DPO the model that SFT left."""
    recipe, base = loaded.recipe, loaded.base_dir
    template = recipe.student.chat_template
    text = _template(resolve_path(base, template)) if template else ""
    place, revision = resolve_model(base, recipe.student.model), recipe.student.revision
    if stage == "dpo":
        place, revision = f"{loaded.run_dir}/models/sft", ""
        if recipe.dpo.student:
            named = recipe.dpo.student
            is_own = named.startswith(RUN)
            place = f"{loaded.run_dir}/{named.removeprefix(RUN)}" if is_own else resolve_model(base, named)
        elif not open_store(place).exists("config.json"):
            raise ConfigError(
                f"{place}: no model there to start dpo from; run `moaa train sft` first, or set dpo.student"
            )
        else:
            text = ""  # the export holds the template that SFT trained with
    is_named = stage == "dpo" and bool(recipe.dpo.student)
    folder = student_folder(place, revision, field="dpo.student" if is_named else "student.model")
    if stage == "dpo" and not recipe.dpo.data:
        _check_on_policy(open_store(loaded.run_dir), place, digest_of_model(folder))
    if problems := local_problems("student", Path(folder), has_template=bool(text)):
        raise ConfigError("\n  ".join([f"{stage} cannot start from this model:", *problems]))
    digest, window = digest_of_model(folder), training_window_of_folder(folder)
    return StudentFiles(place=place, revision=revision, digest=digest, chat_template=text, window=window)


def _template(path: str) -> str:
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or "is not UTF-8 text"
        raise ConfigError(f"student.chat_template: {path}: {why}; give the path of a file with a template") from error
    if not text.strip():
        raise ConfigError(f"student.chat_template: {path}: is empty; leave it out for the tokenizer's own template")
    return text


def _check_on_policy(store: Store, place: str, digest: str) -> None:
    """Raise ConfigError where the pairs of this run are completions of another model than the one to be tuned."""
    if not store.exists(f"pairs/{MANIFEST}"):
        return
    sampled_from = str(publish.read_manifest(store, "pairs").facts.get("student", ""))
    if sampled_from.startswith(FILES) and sampled_from != FILES + digest:
        raise ConfigError(
            f"{store.uri}/pairs: its completions were sampled from another model than {place}, so dpo would not be "
            "on-policy; run `moaa sample --restart` and `moaa judge --restart`, set dpo.student to the model that was "
            "sampled from, or name the pairs under dpo.data if that is what you want"
        )
