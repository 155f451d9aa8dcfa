"""A run directory on a POSIX file system: files written under a temporary name, then moved into place.

Also the two helpers every store shares: `checked` paths and `told` errors.
"""

import contextlib
import errno
import os
import re
import stat
import uuid
from collections.abc import Iterator
from typing import IO

from moaa_ray.errors import ConfigError, StageError

_TEMPORARY = ".tmp-"
_BAD_PATH = re.compile(r"^$|^/|/$|//|\\|\0|(^|/)\.{1,2}(/|$)")


def checked(path: str) -> str:
    """The path, or ValueError where it could leave the root or has two spellings."""
    if _BAD_PATH.search(path):
        raise ValueError(f"store path {path!r} is not a relative path with '/' and without '.', '..' and empty parts")
    return path


@contextlib.contextmanager
def told(uri: str, path: str) -> Iterator[None]:
    """Turns what the operating system says into one line; a file that is absent or present stays what it is."""
    try:
        yield
    except (FileNotFoundError, FileExistsError):
        raise
    except OSError as error:
        if os.path.isfile(uri):
            raise ConfigError(f"{uri} is a file; name a folder, such as that of a run") from error
        where = f"{uri.rstrip('/')}/{path}"
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            what = f"no space left for {where}: the disk or the quota is full; free space"
        else:
            what = f"{where}: {error.strerror or error}; repair the storage or its permissions"
        raise StageError(f"{what} and run the same command again, it goes on where it stopped") from error


Names = list[tuple[str, bool]]


class Disk:
    """Each step a LocalStore takes on a disk; tests put a disk with faults in its place."""

    def make_folders(self, folder: str) -> None:
        if not os.path.isdir(folder):
            parent = os.path.dirname(folder)
            self.make_folders(parent)
            if os.path.islink(folder) and not os.path.exists(folder):
                raise NotADirectoryError(errno.ENOTDIR, f"{folder} is a link to nowhere")
            try:
                os.mkdir(folder)
            except FileExistsError:
                pass  # another process was first
            except FileNotFoundError as error:  # its parent is there, as in /proc, and takes no folders
                raise PermissionError(errno.EACCES, f"no folder can be made in {parent}") from error
            self.sync_folder(parent)

    def write(self, file: str, data: bytes) -> None:
        """Writes a new file and makes its content durable."""
        with open(file, "xb") as out:
            out.write(data)
            out.flush()
            os.fsync(out.fileno())

    def sync_folder(self, folder: str) -> None:
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)

    def replace(self, src: str, dst: str) -> None:
        os.replace(src, dst)

    def link(self, src: str, dst: str) -> None:
        os.link(src, dst)

    def rename_folder(self, src: str, dst: str) -> None:
        os.rename(src, dst)

    def remove(self, file: str) -> None:
        os.unlink(file)

    def remove_folder(self, folder: str) -> None:
        os.rmdir(folder)

    def open(self, file: str) -> IO[bytes]:
        return open(file, "rb")

    def is_file(self, file: str) -> bool:
        try:
            return stat.S_ISREG(os.stat(file).st_mode)
        except (FileNotFoundError, NotADirectoryError):
            return False

    def names(self, folder: str) -> Names:
        """(name, whether it is a folder) of everything in the folder; FileNotFoundError if there is none."""
        with os.scandir(folder) as entries:
            return [(entry.name, entry.is_dir(follow_symlinks=False)) for entry in entries]


class LocalStore:
    """A folder on a POSIX file system. Files are written under a temporary name beside their place, then moved."""

    can_rename = True
    can_swap = False

    def __init__(self, root: str, *, disk: Disk | None = None) -> None:
        self.uri = os.path.abspath(root)
        self._disk = disk or Disk()

    def put(self, path: str, data: bytes) -> None:
        with self._written(path, data) as (temporary, file):
            self._disk.replace(temporary, file)
            self._disk.sync_folder(os.path.dirname(file))

    def put_if_absent(self, path: str, data: bytes) -> bool:
        with self._written(path, data) as (temporary, file):
            try:
                self._disk.link(temporary, file)
            except FileExistsError:
                return False
            except OSError as error:
                if error.errno in (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK):
                    raise ConfigError(
                        f"{self.uri} is on a file system without hard links, so two drivers could not be told apart; "
                        f"use another folder or an s3:// or gs:// URI"
                    ) from error
                raise
            finally:
                with contextlib.suppress(FileNotFoundError):
                    self._disk.remove(temporary)
            self._disk.sync_folder(os.path.dirname(file))
            return True

    def swap(self, path: str, data: bytes, *, old: bytes | None) -> bool:
        raise NotImplementedError("a LocalStore renames folders instead")

    def read(self, path: str) -> bytes:
        with self.open(path) as file, told(self.uri, path):
            return file.read()

    def open(self, path: str) -> IO[bytes]:
        with told(self.uri, path):
            return self._disk.open(self._file(path))

    def exists(self, path: str) -> bool:
        with told(self.uri, path):
            return self._disk.is_file(self._file(path))

    def list(self, prefix: str = "") -> list[str]:
        found: list[str] = []
        folders = [prefix]
        with told(self.uri, prefix):
            while folders:
                folder = folders.pop()
                for name, is_folder in self._names(folder):
                    if not name.startswith(_TEMPORARY):
                        (folders if is_folder else found).append(f"{folder}/{name}" if folder else name)
        return sorted(found)

    def delete(self, path: str) -> None:
        with told(self.uri, path), contextlib.suppress(FileNotFoundError):
            self._disk.remove(self._file(path))

    def delete_folder(self, path: str) -> None:
        with told(self.uri, path):
            for name, is_folder in sorted(self._names(path)):
                if is_folder:
                    self.delete_folder(f"{path}/{name}")
                else:
                    with contextlib.suppress(FileNotFoundError):
                        self._disk.remove(self._file(f"{path}/{name}"))
            with contextlib.suppress(FileNotFoundError):
                self._disk.remove_folder(self._file(path))

    def rename_folder(self, src: str, dst: str) -> None:
        with told(self.uri, dst):
            self._disk.rename_folder(self._file(src), self._file(dst))
            for folder in {os.path.dirname(self._file(src)), os.path.dirname(self._file(dst))}:
                with contextlib.suppress(FileNotFoundError):  # moved away itself meanwhile
                    self._disk.sync_folder(folder)

    def _file(self, path: str) -> str:
        return f"{self.uri}/{checked(path)}"

    def _names(self, folder: str) -> Names:
        try:
            return self._disk.names(self._file(folder) if folder else self.uri)
        except (FileNotFoundError, NotADirectoryError):
            return []

    @contextlib.contextmanager
    def _written(self, path: str, data: bytes) -> Iterator[tuple[str, str]]:
        """(temporary file that holds the data, the file it is for); an error leaves no temporary file."""
        file = self._file(path)
        folder = os.path.dirname(file)
        temporary = f"{folder}/{_TEMPORARY}{os.getpid()}-{uuid.uuid4().hex}"
        with told(self.uri, path):
            try:
                self._disk.make_folders(folder)
                self._disk.write(temporary, data)
                yield temporary, file
            except OSError:
                with contextlib.suppress(OSError):
                    self._disk.remove(temporary)
                raise
