"""Where a model's files lie on this machine: local folders and hub ids as they are, cloud URIs copied once."""

import hashlib
import os
from pathlib import Path

from filelock import FileLock

from moaa_ray.engines.base import EngineStartError

_FACTS = ("size", "ETag", "etag", "mtime", "LastModified", "updated", "created")
"""What stores say of a file that changes with its content."""
SCHEMES = ("s3://", "gs://", "gcs://", "az://", "abfs://", "abfss://", "hdfs://")


def local_weights(model: str) -> str:
    """A local folder for a cloud URI, copied once per machine and content; any other name is returned unchanged.

    The copy goes to MOAA_WEIGHTS_DIR (default: ~/.cache/moaa_ray/weights). Workers of one machine
    wait for each other's copy; a copy that broke off is never taken for a whole one. Raises EngineStartError where
    no file is to be had.
    """
    if not model.startswith(SCHEMES):
        return model
    import fsspec

    try:
        fs, path = fsspec.core.url_to_fs(model, use_listings_cache=False)
        files = {name: [fact.get(key) for key in _FACTS] for name, fact in fs.find(path, detail=True).items()}
        if not files:
            raise FileNotFoundError("no file is there")
    except (FileNotFoundError, PermissionError, ImportError) as error:
        raise EngineStartError(
            f"{model}: cannot be read ({type(error).__name__}: {error}); correct the address, and see to it that the "
            "workers have the rights and the library for it"
        ) from error

    cache = Path(os.environ.get("MOAA_WEIGHTS_DIR", Path.home() / ".cache" / "moaa_ray" / "weights"))
    cache.mkdir(parents=True, exist_ok=True)
    folder = cache / hashlib.sha256(f"{model} {sorted(files.items())}".encode()).hexdigest()[:24]
    with FileLock(f"{folder}.lock"):
        if not folder.exists():
            part = Path(f"{folder}.part")
            fs.get(path.rstrip("/") + "/", f"{part}/", recursive=True)
            part.rename(folder)
    return str(folder)
