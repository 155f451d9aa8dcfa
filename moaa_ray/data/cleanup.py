"""Freeing what a finished run no longer needs under work/: what never counted, and what newer records replaced.

A cleaner is a driver like any other: it takes the next epoch, adopts only the blocks that are still
needed, and deletes the others once it has seen that it is still the newest. A kill in between leaves
files that no later driver counts. What stays is every row's newest record, from which the same command
publishes and asks failed rows again, and its first, which says what it was asked. Left out: epochs (tiny),
and everything outside work/.
"""

import re
from collections.abc import Set
from dataclasses import dataclass

from moaa_ray.data import commit
from moaa_ray.data.publish import fence_publish
from moaa_ray.data.store import Store, read_record
from moaa_ray.errors import ConfigError, StageError

CLEANER = "moaa clean"
_STAGED = "work/publish/"
_ADOPTED = re.compile(r"work/[a-z0-9_-]+/adopted/\d+\.json")
_BLOCK = re.compile(r"work/[^/]+/\d+\.\d+/e\d+/[^/]+\.parquet")
"""Committed rows; other Parquet files under work/ are a training stage\'s units."""


@dataclass(frozen=True, kw_only=True)
class Cleaning:
    """What was freed, or would be."""

    uri: str
    num_files: int
    num_bytes: int
    num_kept: int
    """Committed blocks that stay."""
    is_done: bool

    def text(self) -> str:
        """One line for people."""
        verb = "freed" if self.is_done else "would free"
        files = "1 file" if self.num_files == 1 else f"{self.num_files} files"
        return f"{self.uri}: {verb} {self.num_bytes:,} bytes in {files}; {self.num_kept} blocks stay"


def clean_run(store: Store, *, dry_run: bool = False, force: bool = False) -> Cleaning:
    """Delete what the run at `store` no longer needs; with dry_run only say what that is, and write nothing.

    Raises StageError where a driver may be at work on the run, unless force says that none is; ConfigError where
    there is no run; FencedError, with nothing deleted, where a driver takes the run over meanwhile.
    """
    _check_finished(store, force=force)
    if dry_run:
        return _cleaning(store, _needed(store), is_done=False)
    epoch = commit.take_epoch(store, commit.owner_record() | {"command": CLEANER})
    needed = _needed(store)
    for stage in _stages(store):
        commit.adopt(store, stage, epoch, only=needed)
    needed |= {f"work/{stage}/adopted/{epoch.number}.json" for stage in _stages(store)}
    cleaning = _cleaning(store, needed, is_done=True)
    commit.check_owner(store, epoch)  # after the adoption: a driver that comes now adopts what is kept, and no more
    fence_publish(store, epoch)
    for path in _spare(store, needed):
        store.delete(path)
    return cleaning


def runs_inside(store: Store) -> list[str]:
    """The run directories inside a run: its judges', further rounds and iterations; paths relative to it."""
    return sorted(path.removesuffix("/run.json") for path in store.list() if path.endswith("/run.json"))


def _check_finished(store: Store, *, force: bool) -> None:
    try:
        stages = read_record(store, "run.json").get("stages", {})
    except FileNotFoundError:
        raise ConfigError(f"{store.uri}: no run.json there; it is no run directory of moaa_ray") from None
    numbers = (path.removeprefix(f"{commit.EPOCHS}/") for path in store.list(commit.EPOCHS))
    owners = [read_record(store, f"{commit.EPOCHS}/{number}") for number in numbers]
    drivers = [owner for owner in owners if owner.get("command") != CLEANER]
    newest = max(drivers, key=lambda owner: owner["epoch"], default={})
    ended = [stage.get("epoch") for stage in stages.values() if stage.get("status") == "done"]
    if force or not newest or newest["epoch"] in ended:
        return
    raise StageError(
        f"{store.uri} is not finished, and its driver may be alive: host {newest.get('host', '?')}, pid "
        f"{newest.get('pid', '?')}, started {newest.get('started', '?')}; run it to its end, or, where that driver is "
        "gone for sure, clean with --force"
    )


def _stages(store: Store) -> list[str]:
    names = {path.split("/")[1] for path in store.list("work") if path.count("/") > 2}
    return sorted(names - {"epochs", "publish"})


def _needed(store: Store) -> Set[str]:
    """The committed blocks that hold some row's newest or first record."""
    needed: set[str] = set()
    for stage in _stages(store):
        files = commit.committed_so_far(store, stage)
        needed |= {file.path for file in files if (file.round, file.phase) == (0, 0)}
        needed |= {file.path for _, (file, _, _) in commit.read_statuses(store, files).items()}
    return needed


def _spare(store: Store, needed: Set[str]) -> list[str]:
    """Blocks and lists of blocks that are not needed, of every stage."""
    paths = [path for stage in _stages(store) for path in store.list(f"work/{stage}")]
    return [path for path in paths if path not in needed and (_BLOCK.fullmatch(path) or _ADOPTED.fullmatch(path))]


def _cleaning(store: Store, needed: Set[str], *, is_done: bool) -> Cleaning:
    spare = [*_spare(store, needed), *store.list(_STAGED.rstrip("/"))]
    num_kept = sum(path.endswith(".parquet") for path in needed)
    num_bytes = sum(_size(store, path) for path in spare)
    return Cleaning(uri=store.uri, num_files=len(spare), num_bytes=num_bytes, num_kept=num_kept, is_done=is_done)


def _size(store: Store, path: str) -> int:
    with store.open(path) as file:
        return file.seek(0, 2)
