"""Finding the files of a source: a file, a folder, a pattern, on this machine or in an object store.

Nothing is read here but names, and the state.json in which `datasets` lists a saved folder's own files. Only local
paths, also as file://, and the object stores of SCHEMES are reached.
"""

import glob
import json
import os
import re
from dataclasses import dataclass
from typing import Literal, cast

import fsspec

from moaa_ray.errors import ConfigError

SCHEMES = ("s3", "gs", "gcs", "az", "abfs", "abfss", "hdfs", "hf", "memory")

FileFormat = Literal["jsonl", "csv", "parquet", "arrow"]
_SUFFIXES: dict[str, FileFormat] = {".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "jsonl"}
_SUFFIXES |= {".csv": "csv", ".parquet": "parquet", ".arrow": "arrow"}

_HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-]+")

Place = tuple[int, int]  # number of the file, line or row


@dataclass(frozen=True, kw_only=True)
class SourceFiles:
    """The files of one source, in reading order, all of one format."""

    fs: fsspec.AbstractFileSystem
    paths: tuple[str, ...]
    format: FileFormat

    def place(self, place: Place) -> str:
        """Where a record stands, for messages."""
        return f"{self.paths[place[0]]}, {'line' if self.format in ('jsonl', 'csv') else 'row'} {place[1]}"


def without_file_scheme(path: str) -> str:
    """The local path that a file:// URI names; every other path or URI as it is."""
    return re.sub(r"^(file|local)://", "", path)


def find_files(path: str, *, field: str, file_format: str | None = None, base_dir: str = ".") -> SourceFiles:
    """The files that a path, folder, glob pattern or URI names. `field` is what messages call the path.

    file_format: what the setting `format` beside the path says; None: there is none, and the suffix decides.

    Of a folder the files of one format are taken, at any depth; hidden ones and .json sidecars are
    left out. Raises ConfigError, with the way out, when there is nothing to read.
    """
    told = f"{field} = {_without_secret(path)!r}"
    fs, root = _file_system(path, base_dir=base_dir, told=told)
    try:
        names, is_folder = _listing(fs, root)
    except FileNotFoundError:
        hub = f"; a data set of the hub is written hf://datasets/{path}/..." if _HUB_ID.fullmatch(path) else ""
        said = f"{told}: no such file, folder or match; relative paths count from {base_dir}{hub}"
        raise ConfigError(said) from None
    except Exception as error:  # every object store raises its own types
        said = _without_secret(f"{type(error).__name__}: {error}")
        raise ConfigError(f"{told} cannot be listed: {said}; check the path, the credentials and the rights") from error
    if is_folder:
        names = _without_strays(fs, names)
    names, found = _of_one_format(names, file_format=file_format, is_folder=is_folder, told=told)
    return SourceFiles(fs=fs, paths=tuple(names), format=found)


def _file_system(path: str, *, base_dir: str, told: str) -> tuple[fsspec.AbstractFileSystem, str]:
    """Where to look. Only object stores are reached: http could be pointed at metadata services and inner hosts."""
    path = without_file_scheme(path)
    if not path or "\0" in path:
        raise ConfigError(f"{told}: must be a path without NUL; name a file, folder, pattern or URI")
    scheme = re.match(r"([A-Za-z][A-Za-z0-9+.-]*):", path)
    if scheme is None:
        base, path = os.path.abspath(base_dir), os.path.expanduser(path)
        plain = os.path.join(base, path)  # what is a file's name is no pattern, and the folder's name never is one
        return fsspec.filesystem("file"), plain if os.path.exists(plain) else os.path.join(glob.escape(base), path)
    if scheme[1] not in SCHEMES or "::" in path or not path.startswith("//", scheme.end()):
        allowed = ", ".join(f"{name}://" for name in ("file", *SCHEMES))
        raise ConfigError(f"{told}: must be a local path or one of {allowed}; copy the data to such a place")
    if path != _without_secret(path):
        raise ConfigError(f"{told}: holds a password; remove it, and give credentials by the environment or a role")
    try:
        return fsspec.core.url_to_fs(path)
    except (ImportError, ValueError) as error:
        raise ConfigError(f"{told}: {error}; install the file system, e.g. pip install 'moaa_ray[s3]'") from error


def _without_secret(text: str) -> str:
    return re.sub(r"://[^/\s]*:[^/\s]*@", "://***@", text)


def _listing(fs: fsspec.AbstractFileSystem, root: str) -> tuple[list[str], bool]:
    """The files, sorted, and whether they are a folder's. Raises FileNotFoundError."""
    try:
        info = fs.info(root)
    except FileNotFoundError:
        found = fs.glob(root) if re.search(r"[*?\[]", root) else []
        names = sorted(str(name) for name in found if not fs.isdir(str(name)))
        if not names:
            raise
        return names, False
    if info["type"] != "directory":
        return [root], False
    base = str(info["name"]).rstrip("/")
    parts = {name: str(name)[len(base) :].strip("/").split("/") for name in fs.find(base)}
    return sorted(name for name in parts if not any(part.startswith((".", "_")) for part in parts[name])), True


def _without_strays(fs: fsspec.AbstractFileSystem, names: list[str]) -> list[str]:
    """The names without what lies beside a dataset that `datasets` saved: its caches, shards of an earlier saving.

    Raises ConfigError where a file of the dataset is missing.
    """
    for state in [name for name in names if os.path.basename(name) == "state.json"]:
        folder = os.path.dirname(state)
        try:
            own = {f"{folder}/{entry['filename']}" for entry in json.loads(fs.cat_file(state))["_data_files"]}
        except (ValueError, TypeError, LookupError):
            continue  # somebody else's state.json
        if lacking := sorted(own - set(names)):
            raise ConfigError(f"{state}: lists {lacking[0]}, which is not there; copy the folder whole")
        names = [name for name in names if name in own or os.path.dirname(name) != folder or name.endswith(".json")]
    return names


def _of_one_format(
    names: list[str], *, file_format: str | None, is_folder: bool, told: str
) -> tuple[list[str], FileFormat]:
    """The names that are read, and as what."""
    by_format: dict[FileFormat | Literal["other"], list[str]] = {}
    for name in names:
        stem = re.sub(r"\.(gz|zst)$", "", name)
        if not (is_folder and stem.endswith(".json")):
            by_format.setdefault(_SUFFIXES.get(os.path.splitext(stem)[1].lower(), "other"), []).append(name)
    if is_folder:
        by_format.pop("other", None)
    if is_folder and any(os.path.basename(name) == "dataset_dict.json" for name in names):
        splits = sorted({os.path.basename(os.path.dirname(name)) for name in by_format.get("arrow", [])})
        raise ConfigError(f"{told}: holds several splits; add one of {splits} to the path")
    if file_format == "hf":
        by_format = {kind: by_format[kind] for kind in by_format if kind in ("arrow", "parquet")}
    elif file_format not in (None, "auto"):
        wanted = cast(FileFormat, file_format)
        by_format = {wanted: by_format.get(wanted, []) if is_folder else names}
    kinds: list[FileFormat] = [kind for kind in ("jsonl", "csv", "parquet", "arrow") if by_format.get(kind)]
    if len(kinds) == 1 and "other" not in by_format:
        return by_format[kinds[0]], kinds[0]
    found = sorted({os.path.splitext(name)[1] for name in names})
    known, way_out = ", ".join(_SUFFIXES), "give them such a suffix" if file_format is None else "set format"
    raise ConfigError(
        f"{told}: must be files of one format ({known}; .gz, .zst), not {found}; {way_out}, or narrow it by a pattern"
    )


def source_name(path: str) -> str:
    """The file's name without its suffixes, or the folder's; of a pattern, the last part without wildcards."""
    parts = [part for part in re.split(r"[/\\]", path) if part and not re.search(r"[*?\[]", part)]
    known = "|".join(suffix[1:] for suffix in _SUFFIXES)
    return re.sub(rf"(?i)(\.({known}))?(\.(gz|zst))?$", "", parts[-1]) if parts else "prompts"
