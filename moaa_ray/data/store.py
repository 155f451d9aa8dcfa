"""Where a run's files live: a POSIX folder or an object store, with the few operations that commits need.

Every file appears whole or not at all, and every operation can be repeated. Paths are relative to the
store's root and separated by '/'. Left out on purpose: appending, locks, modification times.
"""

import json
import re
from pathlib import Path
from typing import IO, Any, Protocol

import fsspec

from moaa_ray.data.local_store import LocalStore
from moaa_ray.data.object_store import ObjectStore
from moaa_ray.errors import ConfigError

_SCHEME = re.compile(r"^([A-Za-z0-9+.-]+)://")


class Store(Protocol):
    """The storage interface of commit.py and publish.py; `open_store(uri)` makes one, also in a worker."""

    uri: str
    can_rename: bool
    """rename_folder is one atomic step; otherwise publishing goes through swap or put."""
    can_swap: bool
    """swap is one atomic step."""

    def put(self, path: str, data: bytes) -> None:
        """Makes or replaces the file in one step."""
        ...

    def put_if_absent(self, path: str, data: bytes) -> bool:
        """True when this call made the file, False when it was there; never two winners, never a torn file."""
        ...

    def swap(self, path: str, data: bytes, *, old: bytes | None) -> bool:
        """Replaces the file only while it still holds `old` (None: is absent); False when it does not."""
        ...

    def read(self, path: str) -> bytes: ...

    def open(self, path: str) -> IO[bytes]:
        """A seekable file, for reading a few columns only."""
        ...

    def exists(self, path: str) -> bool: ...

    def list(self, prefix: str = "") -> list[str]:
        """Every file under the folder, at any depth, sorted, as paths of this store; [] if there is none."""
        ...

    def delete(self, path: str) -> None: ...

    def delete_folder(self, path: str) -> None: ...

    def rename_folder(self, src: str, dst: str) -> None:
        """Moves a folder to a name that is free, in an existing folder; FileNotFoundError when either is gone."""
        ...


def open_store(uri: str, storage_options: dict[str, Any] | None = None) -> Store:
    """The store at a folder, a file:// URI or an s3:// or gs:// URI; cheap, so every worker opens its own."""
    scheme = _SCHEME.match(uri)
    if scheme is None or scheme[1] in ("file", "local"):
        path = uri if scheme is None else uri[scheme.end() :]
        if not path:
            raise ConfigError("the run directory is empty; give a folder or a URI such as s3://bucket/run")
        return LocalStore(str(Path(path).expanduser()))
    try:
        options = {"use_listings_cache": False, **(storage_options or {})}
        fs, root = fsspec.core.url_to_fs(uri, **options)
    except Exception as error:  # clients that are not installed, or look for their server at once, raise any kind
        said = " ".join(str(error).split())[:300]
        raise ConfigError(
            f"cannot open {uri}: {said}; install moaa_ray[s3] or moaa_ray[gcs], or fix the URI"
        ) from error
    return ObjectStore(fs, root, uri=uri)


def read_record(store: Store, path: str) -> dict[str, Any]:
    """The JSON object in a file. Raises ConfigError where it is damaged, FileNotFoundError where there is none."""
    try:
        found = json.loads(store.read(path))
        if not isinstance(found, dict):
            raise ValueError("no JSON object")
    except ValueError as error:
        raise ConfigError(f"{store.uri}/{path}: damaged ({error}); restore it, or give another run_dir") from error
    return found
