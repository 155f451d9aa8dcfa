"""Who may write, and what counts: epochs, committed blocks, and the newest record of every row.

Each driver takes the next epoch and writes only under it. The committed block files are the only
ledger: those under the driver's own epoch, and of older epochs those it adopted, once, when it began
with a stage. Whatever an older driver writes after that never counts. Blocks are immutable: the first
commit of a key stands, and delivering it again changes nothing.
"""

import io
import json
import os
import re
import socket
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from moaa_ray.data.ledger import BlockFile, Statuses, read_block, read_rows, read_statuses
from moaa_ray.data.store import Store
from moaa_ray.errors import FencedError

__all__ = [
    "BlockFile",
    "Epoch",
    "Statuses",
    "adopt",
    "check_owner",
    "commit_block",
    "committed",
    "committed_so_far",
    "owner_record",
    "read_block",
    "read_rows",
    "read_statuses",
    "renew_epoch",
    "take_epoch",
]

EPOCHS = "work/epochs"
_BLOCK = re.compile(r"(?P<round>\d+)\.(?P<phase>\d+)/e(?P<epoch>\d+)/(?P<key>[A-Za-z0-9._-]+)\.parquet")
_ADOPTED = re.compile(r"adopted/(\d+)\.json")
_STAGE = re.compile(r"[a-z0-9_-]+")
_ZSTD_LEVEL = 1


@dataclass(frozen=True, kw_only=True)
class Epoch:
    """A driver's right to write: the newest epoch of a run is the only one that may."""

    number: int
    owner: Mapping[str, Any]


def owner_record() -> dict[str, Any]:
    """Host, process id and start time of this driver, for the people who read a FencedError."""
    return {
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def take_epoch(store: Store, owner: Mapping[str, Any]) -> Epoch:
    """The next epoch, which fences every older driver; two drivers never get the same one."""
    while True:
        number = max(_epochs(store), default=0) + 1
        record = json.dumps({**owner, "epoch": number}, sort_keys=True).encode()
        if store.put_if_absent(f"{EPOCHS}/{number}.json", record):
            return Epoch(number=number, owner=dict(owner))


def renew_epoch(store: Store, epoch: Epoch) -> Epoch:
    """The next epoch for the driver of this one, which fences the workers it has had so far.

    Raises FencedError when another driver has taken the run over.
    """
    number = epoch.number + 1
    record = json.dumps({**epoch.owner, "epoch": number}, sort_keys=True).encode()
    path = f"{EPOCHS}/{number}.json"
    if not store.put_if_absent(path, record) and store.read(path) != record:
        check_owner(store, epoch)
    return Epoch(number=number, owner=epoch.owner)


def check_owner(store: Store, epoch: Epoch) -> None:
    """Raises FencedError unless `epoch` is the newest of the run."""
    numbers = _epochs(store)
    newest = max(numbers, default=0)
    if newest > epoch.number:
        owner = json.loads(store.read(f"{EPOCHS}/{newest}.json"))
        raise FencedError(
            f"epoch {epoch.number} of {store.uri} is over: the driver on host {owner.get('host', '?')}, pid "
            f"{owner.get('pid', '?')}, started {owner.get('started', '?')}, took epoch {newest}, and only the newest "
            f"may write; let that one finish, or stop it and run the same command again"
        )
    if epoch.number not in numbers:
        raise FencedError(
            f"the record {EPOCHS}/{epoch.number}.json of {store.uri} is gone: the run was cleaned under this "
            f"driver; run the same command again to start anew"
        )


def commit_block(store: Store, stage: str, part: str, epoch_number: int, key: str, table: pa.Table) -> str:
    """The path of the block's file, made in one step without a listing; the first commit of a key stands.

    So what stands may be an earlier attempt's rows: what is told to others must come from the file when
    attempts can differ. part is "<round>.<phase>"; the table holds the columns id and status, and its
    schema's metadata is kept.
    """
    name = f"{part}/e{epoch_number}/{key}.parquet"
    if not _BLOCK.fullmatch(name) or not _STAGE.fullmatch(stage):
        raise ValueError(
            f"stage {stage!r}, part {part!r}, key {key!r}: want e.g. 'sft', '0.1' and letters, digits, . _ -"
        )
    assert {"id", "status"} <= set(table.column_names), f"a block needs id and status, has {table.column_names}"
    path = f"work/{stage}/{name}"
    out = io.BytesIO()
    pq.write_table(table, out, compression="zstd", compression_level=_ZSTD_LEVEL)
    store.put_if_absent(path, out.getvalue())
    return path


def adopt(store: Store, stage: str, epoch: Epoch, *, only: Set[str] | None = None) -> list[str]:
    """The older epochs' blocks that count under `epoch`, recorded durably by the first call.

    To be called before the stage's first write; `committed` does it. only: of those no others. Raises FencedError.
    """
    record = f"work/{stage}/adopted/{epoch.number}.json"
    if not store.exists(record):
        check_owner(store, epoch)
        paths = _legitimate(store, stage, before=epoch.number)
        kept = [path for path in paths if only is None or path in only]
        store.put_if_absent(record, json.dumps(kept).encode())
    return json.loads(store.read(record))


def committed(store: Store, stage: str, epoch: Epoch) -> list[BlockFile]:
    """The blocks that count for the driver of `epoch`, in ascending order."""
    adopted = adopt(store, stage, epoch)
    own = [path for path in store.list(f"work/{stage}") if _epoch_of(stage, path) == epoch.number]
    return _block_files(stage, [*adopted, *own])


def committed_so_far(store: Store, stage: str) -> list[BlockFile]:
    """The blocks that count at this moment, for those who only look; takes no epoch and writes nothing."""
    return _block_files(stage, _legitimate(store, stage, before=max(_epochs(store), default=0) + 1))


def _legitimate(store: Store, stage: str, *, before: int) -> list[str]:
    """What counted for the newest driver below `before` that adopted at all; the others wrote no blocks."""
    paths = store.list(f"work/{stage}")
    names = (_ADOPTED.fullmatch(path.removeprefix(f"work/{stage}/")) for path in paths)
    newest = max((int(name[1]) for name in names if name and int(name[1]) < before), default=None)
    if newest is None:
        return []
    adopted = json.loads(store.read(f"work/{stage}/adopted/{newest}.json"))
    return [*adopted, *(path for path in paths if _epoch_of(stage, path) == newest)]


def _epochs(store: Store) -> list[int]:
    names = (path.removeprefix(f"{EPOCHS}/").removesuffix(".json") for path in store.list(EPOCHS))
    return [int(name) for name in names if name.isdecimal()]


def _epoch_of(stage: str, path: str) -> int | None:
    found = _BLOCK.fullmatch(path.removeprefix(f"work/{stage}/"))
    return int(found["epoch"]) if found else None


def _block_files(stage: str, paths: Sequence[str]) -> list[BlockFile]:
    files = []
    for path in paths:
        found = _BLOCK.fullmatch(path.removeprefix(f"work/{stage}/"))
        assert found, path
        part = {name: int(found[name]) for name in ("round", "phase", "epoch")}
        files.append(BlockFile(path=path, key=found["key"], **part))
    return sorted(files, key=lambda file: file.order)
