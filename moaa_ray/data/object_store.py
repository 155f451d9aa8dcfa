"""A run directory in an object store: every PUT is atomic, and creation can be made exclusive."""

import contextlib
import inspect
from collections.abc import Iterator
from typing import IO, Any

from moaa_ray.data.local_store import checked, told
from moaa_ray.errors import ConfigError, MoaaError, StageError

_CREATES_EXCLUSIVELY = {"s3", "s3a", "gs", "gcs", "memory"}  # their servers refuse a second creation
_CONFLICT_TRIES = 8  # S3 answers 409 while two conditional writes of one key are under way
_REMOTE_BLOCK_BYTES = 256 * 1024
_MAX_ONE_PUT_BYTES = 5 * 2**30  # above it S3 needs a multipart upload, which has no If-Match


class ObjectStore:
    """A bucket and prefix behind fsspec, where a PUT is atomic and can be made to create only."""

    can_rename = False

    def __init__(self, fs: Any, root: str, *, uri: str) -> None:
        protocols = {fs.protocol} if isinstance(fs.protocol, str) else set(fs.protocol)
        pipe_file = getattr(fs, "_pipe_file", fs.pipe_file)
        if not protocols & _CREATES_EXCLUSIVELY or "mode" not in inspect.signature(pipe_file).parameters:
            raise ConfigError(
                f"{uri}: {type(fs).__name__} cannot create a file only if it is absent, so two drivers on one run "
                f"could not be told apart; use s3://, gs:// or a folder on a POSIX file system"
            )
        self.uri, self._fs, self._root = uri, fs, root.rstrip("/")
        self.can_swap = bool(protocols & {"s3", "s3a"})

    def put(self, path: str, data: bytes) -> None:
        key = self._key(path)
        with _told(self.uri, path):
            self._fs.pipe_file(key, data)

    def put_if_absent(self, path: str, data: bytes) -> bool:
        key = self._key(path)
        with _told(self.uri, path):
            return self._put_conditionally(key, data, mode="create")

    def swap(self, path: str, data: bytes, *, old: bytes | None) -> bool:
        if not self.can_swap:
            raise NotImplementedError(f"{self.uri} has no conditional replacement")
        if old is None:
            return self.put_if_absent(path, data)
        key = self._key(path)
        with _told(self.uri, path):
            try:
                etag = self._fs.info(key)["ETag"]
                if self._fs.cat_file(key) != old:
                    return False
            except FileNotFoundError:
                return False
            return self._put_conditionally(key, data, IfMatch=etag, chunksize=_MAX_ONE_PUT_BYTES)

    def read(self, path: str) -> bytes:
        key = self._key(path)
        with _told(self.uri, path):
            return self._fs.cat_file(key)

    def open(self, path: str) -> IO[bytes]:
        key = self._key(path)
        with _told(self.uri, path):
            return self._fs.open(key, "rb", block_size=_REMOTE_BLOCK_BYTES)

    def exists(self, path: str) -> bool:
        key = self._key(path)
        with _told(self.uri, path):
            return self._fs.isfile(key)

    def list(self, prefix: str = "") -> list[str]:
        folder = f"{self._key(prefix) if prefix else self._root}/"
        with _told(self.uri, prefix):
            self._fs.invalidate_cache()
            keys = [str(key).lstrip("/") for key in self._fs.find(folder)]
        root = f"{self._root}/".lstrip("/")
        return sorted(key.removeprefix(root) for key in keys if key.startswith(folder.lstrip("/")))

    def delete(self, path: str) -> None:
        key = self._key(path)
        with _told(self.uri, path), contextlib.suppress(FileNotFoundError):
            self._fs.rm_file(key)

    def delete_folder(self, path: str) -> None:
        for file in self.list(path):
            self.delete(file)

    def rename_folder(self, src: str, dst: str) -> None:
        raise NotImplementedError(f"{self.uri} is an object store: it cannot rename a folder in one step")

    def _key(self, path: str) -> str:
        return f"{self._root}/{checked(path)}"

    def _put_conditionally(self, key: str, data: bytes, **condition: Any) -> bool:
        """True when the server took the write, False when its condition did not hold."""
        for attempt in range(_CONFLICT_TRIES):
            try:
                self._fs.pipe_file(key, data, **condition)
                return True
            except FileExistsError:
                return False
            except OSError as error:
                code = _server_code(error)
                if code in ("PreconditionFailed", "412", "NoSuchKey"):
                    return False
                if code not in ("ConditionalRequestConflict", "409") or attempt == _CONFLICT_TRIES - 1:
                    raise
        raise AssertionError("the loop returns or raises")


@contextlib.contextmanager
def _told(uri: str, path: str) -> Iterator[None]:
    """As `told`, also of what the clients of stores raise by themselves, e.g. where they find no credentials."""
    with told(uri, path):
        try:
            yield
        except (OSError, MoaaError):
            raise
        except Exception as error:  # each client has kinds of its own, and none is imported here
            said = " ".join(str(error).split())[:300]
            raise StageError(
                f"{uri.rstrip('/')}/{path}: {type(error).__name__}: {said}; check the address, the credentials and the "
                "rights, and run the same command again, it goes on where it stopped"
            ) from error


def _server_code(error: OSError) -> str:
    response = getattr(error.__cause__, "response", None) or {}
    return str(response.get("Error", {}).get("Code", ""))
