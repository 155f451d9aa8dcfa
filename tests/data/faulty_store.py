"""Storage in memory with exact semantics and a fault at any step: a POSIX disk, and a bucket behind fsspec.

The real LocalStore and ObjectStore run on top of it, so their own code is what is tested. A `World` is
what survives a crash; a `Process` is one driver's life on it: its steps are counted, some have faults.
"""

import errno
import hashlib
import io
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from moaa_ray.data.local_store import Disk, LocalStore
from moaa_ray.data.object_store import ObjectStore
from moaa_ray.data.store import Store

ROOT = "/run"


class CrashError(BaseException):
    """The process is gone: no handler and no clean-up of the code under test may do anything after it."""


@dataclass
class World:
    """Files by absolute path, and the folders of the POSIX kind."""

    files: dict[str, bytes] = field(default_factory=dict)
    folders: set[str] = field(default_factory=lambda: {ROOT})

    def copy(self) -> "World":
        return World(dict(self.files), set(self.folders))

    def become(self, other: "World") -> None:
        """Takes over the other's content; temporary files, whose names differ, stay where their folder does."""
        mine = {path: data for path, data in self.files.items() if ".tmp-" in path and _parent(path) in other.folders}
        self.files.clear()
        self.files.update({path: data for path, data in other.files.items() if ".tmp-" not in path} | mine)
        self.folders.clear()
        self.folders.update(other.folders)

    def state(self) -> tuple[frozenset, frozenset]:
        """Equal for worlds that differ in the random names of temporary files alone."""
        files = frozenset((re.sub(r"\.tmp-\S+", ".tmp", path), data) for path, data in self.files.items())
        return files, frozenset(self.folders)

    def under(self, folder: str) -> dict[str, bytes]:
        prefix = f"{ROOT}/{folder}/"
        return {path.removeprefix(prefix): data for path, data in self.files.items() if path.startswith(prefix)}


@dataclass
class Process:
    """One driver's life: faults maps the number of a step to what happens there; hit lists those that did."""

    faults: dict[int, str] = field(default_factory=dict)
    takeover: Callable[[], None] = lambda: None
    watch: Callable[[], None] = lambda: None
    steps: list[str] = field(default_factory=list)
    hit: list[str] = field(default_factory=list)
    is_dead: bool = False

    def step(self, name: str, do: Callable[[], Any], *, torn: Callable[[], None] | None = None) -> Any:
        if self.is_dead:
            raise CrashError
        number = len(self.steps)
        self.steps.append(name)
        fault = self.faults.get(number)
        if fault is None:
            result = do()
        else:
            self.hit.append(fault)
            result = self._faulty(fault, do, torn)
        if name in CHANGES:
            self.watch()
        return result

    def _faulty(self, fault: str, do: Callable[[], Any], torn: Callable[[], None] | None) -> Any:
        if fault in ("no space", "i/o error"):
            raise OSError(errno.ENOSPC if fault == "no space" else errno.EIO, fault)
        if fault == "slow":
            self.takeover()
            return do()
        if fault == "crash after":
            do()
        if fault == "torn" and torn:
            torn()
        if fault == "lost reply":
            do()
            raise OSError(errno.EIO, fault)
        self.is_dead = True
        raise CrashError


CHANGES = {"mkdir", "write", "replace", "link", "rename", "remove", "rmdir", "put", "create", "swap", "delete"}
TAKES_SPACE = {"mkdir", "write", "link", "put", "create", "swap"}


def faults_for(step: str) -> list[str]:
    """What can go wrong at a step, without those that equal another one there."""
    faults = ["crash before", "i/o error", "slow"]
    faults += ["crash after", "lost reply"] if step in CHANGES else []
    faults += ["no space"] if step in TAKES_SPACE else []
    faults += ["torn"] if step == "write" else []
    return faults


class MemoryDisk(Disk):
    """A POSIX disk: rename is atomic and needs a free name and an existing folder; link never replaces."""

    def __init__(self, world: World, process: Process) -> None:
        self._world, self._process = world, process

    def make_folders(self, folder: str) -> None:
        if folder in self._world.folders:
            return
        self.make_folders(_parent(folder))
        self._process.step("mkdir", lambda: self._world.folders.add(folder))

    def write(self, file: str, data: bytes) -> None:
        def do(content: bytes) -> None:
            self._need_folder(file)
            if file in self._world.files:
                raise FileExistsError(errno.EEXIST, file)
            self._world.files[file] = content

        self._process.step("write", lambda: do(data), torn=lambda: do(data[: len(data) // 2]))

    def sync_folder(self, folder: str) -> None:
        def do() -> None:
            if folder not in self._world.folders:
                raise FileNotFoundError(errno.ENOENT, folder)

        self._process.step("sync", do)

    def replace(self, src: str, dst: str) -> None:
        def do() -> None:
            self._need_folder(dst)
            self._world.files[dst] = self._taken(src)

        self._process.step("replace", do)

    def link(self, src: str, dst: str) -> None:
        def do() -> None:
            self._need_folder(dst)
            if dst in self._world.files:
                raise FileExistsError(errno.EEXIST, dst)
            self._world.files[dst] = self._content(src)

        self._process.step("link", do)

    def rename_folder(self, src: str, dst: str) -> None:
        def do() -> None:
            files, folders = self._world.files, self._world.folders
            self._need_folder(dst)
            if src not in folders:
                raise FileNotFoundError(errno.ENOENT, src)
            if dst in folders and any(_parent(path) == dst for path in (*files, *folders)):
                raise OSError(errno.ENOTEMPTY, dst)
            for path in [path for path in files if path.startswith(f"{src}/")]:
                files[dst + path.removeprefix(src)] = files.pop(path)
            for path in [path for path in folders if path == src or path.startswith(f"{src}/")]:
                folders.remove(path)
                folders.add(dst + path.removeprefix(src))

        self._process.step("rename", do)

    def remove(self, file: str) -> None:
        self._process.step("remove", lambda: self._taken(file))

    def remove_folder(self, folder: str) -> None:
        def do() -> None:
            if folder not in self._world.folders:
                raise FileNotFoundError(errno.ENOENT, folder)
            if any(_parent(path) == folder for path in (*self._world.files, *self._world.folders)):
                raise OSError(errno.ENOTEMPTY, folder)
            self._world.folders.remove(folder)

        self._process.step("rmdir", do)

    def open(self, file: str) -> io.BytesIO:
        return self._process.step("read", lambda: io.BytesIO(self._content(file)))

    def is_file(self, file: str) -> bool:
        return self._process.step("stat", lambda: file in self._world.files)

    def names(self, folder: str) -> list[tuple[str, bool]]:
        def do() -> list[tuple[str, bool]]:
            if folder not in self._world.folders:
                raise FileNotFoundError(errno.ENOENT, folder)
            inside = [(path, False) for path in self._world.files] + [(path, True) for path in self._world.folders]
            return [(path.rpartition("/")[2], is_folder) for path, is_folder in inside if _parent(path) == folder]

        return self._process.step("names", do)

    def _need_folder(self, file: str) -> None:
        if _parent(file) not in self._world.folders:
            raise FileNotFoundError(errno.ENOENT, file)

    def _content(self, file: str) -> bytes:
        if file not in self._world.files:
            raise FileNotFoundError(errno.ENOENT, file)
        return self._world.files[file]

    def _taken(self, file: str) -> bytes:
        data = self._content(file)
        del self._world.files[file]
        return data


class ServerError(Exception):
    """What s3fs keeps as the cause of its OSError."""

    def __init__(self, code: str) -> None:
        super().__init__(code)
        self.response = {"Error": {"Code": code}}


class MemoryBucket:
    """A bucket as s3fs shows it: atomic PUT, create-only PUT, and PUT on condition of the ETag. No rename."""

    def __init__(self, world: World, process: Process, *, protocol: str) -> None:
        self.protocol = protocol
        self._world, self._process = world, process

    def pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **options: Any) -> None:
        files = self._world.files

        def do() -> None:
            if mode == "create" and path in files:
                raise FileExistsError(errno.EEXIST, path)
            if "IfMatch" in options and (path not in files or _etag(files[path]) != options["IfMatch"]):
                raise OSError(errno.EINVAL, "PreconditionFailed") from ServerError("PreconditionFailed")
            files[path] = value

        self._process.step("create" if mode == "create" else "swap" if options else "put", do)

    def cat_file(self, path: str) -> bytes:
        return self._process.step("read", lambda: self._content(path))

    def open(self, path: str, mode: str, **options: Any) -> io.BytesIO:
        return self._process.step("read", lambda: io.BytesIO(self._content(path)))

    def info(self, path: str) -> dict[str, str]:
        return self._process.step("stat", lambda: {"ETag": _etag(self._content(path))})

    def isfile(self, path: str) -> bool:
        return self._process.step("stat", lambda: path in self._world.files)

    def find(self, folder: str) -> list[str]:
        return self._process.step("names", lambda: [path for path in self._world.files if path.startswith(folder)])

    def rm_file(self, path: str) -> None:
        self._process.step("delete", lambda: self._world.files.pop(path, None))

    def invalidate_cache(self) -> None:
        """Nothing is cached here."""

    def _content(self, path: str) -> bytes:
        if path not in self._world.files:
            raise FileNotFoundError(errno.ENOENT, path)
        return self._world.files[path]


def store_on(kind: str, world: World, process: Process | None = None) -> Store:
    """A store of the kind on the world: "posix", "object" (s3), or "object without swap" (only create-exclusive)."""
    process = process or Process()
    if kind == "posix":
        return LocalStore(ROOT, disk=MemoryDisk(world, process))
    bucket = MemoryBucket(world, process, protocol="s3" if kind == "object" else "gs")
    return ObjectStore(bucket, ROOT, uri=f"{bucket.protocol}:/{ROOT}")


KINDS = ("posix", "object", "object without swap")


def _parent(path: str) -> str:
    return path.rpartition("/")[0]


def _etag(data: bytes) -> str:
    return hashlib.md5(data).hexdigest()
