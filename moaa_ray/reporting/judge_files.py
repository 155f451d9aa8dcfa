"""Where a judge's work lies in a run: its judgments, the pairs made of them, who failed, and its numbers."""

from dataclasses import dataclass
from typing import Any

from moaa_ray.data.manifest import MANIFEST
from moaa_ray.data.publish import read_manifest
from moaa_ray.data.store import Store, open_store
from moaa_ray.errors import ConfigError, DataError
from moaa_ray.reporting.lookup import is_published
from moaa_ray.run_folders import judge_folder
from moaa_ray.run_record import read_summary
from moaa_ray.settings import checks
from moaa_ray.settings.yaml_text import parse_yaml

STAGE = "judge"


@dataclass(frozen=True, kw_only=True)
class JudgeFiles:
    """One judge's part of a run."""

    name: str
    own: Store
    """The judge's directory, with judgments/."""
    pairs: Store
    """The directory that holds pairs/ and summary.json: the run's where the judge is in use, else its own."""
    failures: str
    """The name of the file under failures/ there that lists the prompts without a pair."""
    is_in_use: bool

    def facts(self) -> dict[str, Any]:
        """What summary.json says of this judge's stage. Raises ConfigError where it says nothing, or not all yet."""
        known = read_summary(self.pairs).get(STAGE, {})
        if known.get("judge") != self.name or "judge_stats" not in known:
            raise ConfigError(f"{self.pairs.uri}/summary.json: no judge stage in it; run `moaa judge` to its end first")
        return known

    @property
    def is_finished(self) -> bool:
        """Whether there are pairs and the numbers that are theirs, which come a while later, and not after a kill."""
        try:
            return is_published(self.pairs, "pairs") and bool(self.facts())
        except ConfigError:
            return False

    def section(self) -> dict[str, Any]:
        """The judge as its recipe describes it; empty where the recipe is gone."""
        if not self.own.exists("recipe.yaml"):
            return {}
        recipe = parse_yaml(self.own.read("recipe.yaml").decode(), "recipe.yaml")
        return checks.mapping(checks.mapping(recipe, "judges"), self.name) if isinstance(recipe, dict) else {}


def judges_of(store: Store) -> list[str]:
    """The judges with judgments in a run; the one whose pairs are the run's comes first."""
    paths = store.list("judges")
    names = [path.split("/")[1] for path in paths if path.endswith(f"/judgments/{MANIFEST}") and path.count("/") == 3]
    in_use = _in_use(store)
    return sorted(names, key=lambda name: (name != in_use, name))


def judge_files(store: Store, name: str) -> JudgeFiles:
    """The work of a judge that `judges_of` names."""
    own, is_in_use = open_store(judge_folder(store.uri, name)), name == _in_use(store)
    return JudgeFiles(
        name=name,
        own=own,
        pairs=store if is_in_use else own,
        failures=STAGE if is_in_use else "pairs",
        is_in_use=is_in_use,
    )


def find_judge(store: Store, name: str = "") -> JudgeFiles:
    """The judge of this name, else the one in use, else the only one. Raises ConfigError where there is none."""
    known = judges_of(store)
    if not known:
        raise ConfigError(f"{store.uri}: no judge has judged here; run `moaa judge` to its end first")
    if name and name not in known:
        raise ConfigError(f"--judge {name}: has not judged in {store.uri}; those that have: {', '.join(known)}")
    if not name and _in_use(store) is None and len(known) > 1:
        raise ConfigError(f"{store.uri}: no pairs, and several judges: {', '.join(known)}; name one with --judge")
    found = judge_files(store, name or known[0])
    if not is_published(found.pairs, "pairs"):
        raise DataError(f"{found.pairs.uri}/pairs: judge {found.name} has made no pairs yet; run `moaa judge` again")
    return found


def _in_use(store: Store) -> str | None:
    return read_manifest(store, "pairs").facts.get("judge") if is_published(store, "pairs") else None
