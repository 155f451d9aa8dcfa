"""The student's files on this machine: a local folder as it is, a cloud URI or a hub id copied once."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from tempfile import TemporaryDirectory

import fsspec

from moaa_ray.data.local_store import told
from moaa_ray.data.store import open_store
from moaa_ray.engines.base import EngineStartError
from moaa_ray.engines.weights import local_weights
from moaa_ray.errors import ConfigError

FILES = "files:"
"""How the mark of a model with files of its own begins; its digest follows."""
_END_BYTES = 2**20


def student_folder(model: str, revision: str = "", *, field: str = "student.model") -> str:
    """The local folder of a model. Raises ConfigError, naming the field, for a URI or a hub id that cannot be had."""
    try:
        folder = local_weights(model)
    except EngineStartError as error:
        raise ConfigError(f"{field} = {error}") from error
    if os.path.isdir(folder):
        return folder
    from huggingface_hub import snapshot_download

    try:
        return snapshot_download(folder, revision=revision or None, ignore_patterns=["*.bin", "*.pt", "*.pth", "*.py"])
    except Exception as error:  # the hub's client raises many kinds
        said = " ".join(str(error).split())[:300]
        raise ConfigError(
            f"{field} = {model!r}: is no folder here, and the hub does not give it ({type(error).__name__}: "
            f"{said}); correct the name, or copy the model into a folder"
        ) from error


@contextmanager
def fetched(folder_uri: str) -> Iterator[str]:
    """A local folder with the files of a model; from an object store they are copied, until the block ends.

    The copy goes to TMPDIR. Raises StageError where it cannot be made.
    """
    store = open_store(folder_uri)
    if store.can_rename:
        yield store.uri
        return
    with TemporaryDirectory(prefix="moaa-model-") as folder:
        fs, path = fsspec.core.url_to_fs(folder_uri, use_listings_cache=False)
        with told(folder, "*"):
            fs.get(path.rstrip("/") + "/", f"{folder}/", recursive=True)
        yield folder


def digest_of_model(folder: str) -> str:
    """A hash of a model folder: its small files, and names, sizes and ends of its weights.

    Raises ConfigError for a file that cannot be read, as a link to one that was left behind.
    """
    digest = sha256()
    for path in sorted(Path(folder).glob("*")):
        if path.suffix not in (".json", ".jinja", ".model", ".txt", ".safetensors"):
            continue
        try:
            digest.update(_name_and_ends(path))
        except OSError as error:
            why = "is a link to nothing" if path.is_symlink() and not path.exists() else f"{error.strerror}"
            raise ConfigError(f"model {folder}: {path.name}: {why}; copy the model once more") from error
    return digest.hexdigest()[:16]


def _name_and_ends(path: Path) -> bytes:
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(_END_BYTES)
        file.seek(max(len(start), size - _END_BYTES))
        return f"{path.name} {size} ".encode() + start + file.read()
