"""The keys that clients show: read once where requests are taken, kept as hashes, compared in constant time."""

import hmac
import os
from collections.abc import Iterable
from hashlib import sha256

from moaa_ray.errors import ConfigError
from moaa_ray.model_folders import resolve_path
from moaa_ray.settings.serving import ServeConfig

_MIN_CHARS = 16


class Keys:
    """Whom to let in. Without keys everybody."""

    def __init__(self, keys: Iterable[str]):
        self._digests = [sha256(key.encode()).digest() for key in keys]

    def admits(self, authorization: str) -> bool:
        """Whether the value of an Authorization header holds one of the keys; takes the same time for every answer."""
        scheme, _, shown = authorization.partition(" ")
        digest = sha256(shown.strip().encode("utf-8", "surrogatepass")).digest()
        matches = [hmac.compare_digest(digest, known) for known in self._digests]
        return not self._digests or (any(matches) and scheme.lower() == "bearer")


def read_keys(config: ServeConfig, base_dir: str) -> Keys:
    """The keys that the recipe names, from this process's environment or from a file.

    Raises ConfigError where they are named and not there, or shorter than 16 characters; it shows none of them.
    """
    if not config.has_keys:
        return Keys(())
    if config.api_keys:
        name = config.api_keys[2:-1]
        field, keys = f"serve.api_keys = ${{{name}}}", os.environ.get(name, "").split(",")
        way_out = f"set {name} to keys separated by commas, where the server's own process runs"
    else:
        path = resolve_path(base_dir, config.api_keys_file or "")
        field, way_out = f"serve.api_keys_file = {path!r}", "write one key per line into it"
        try:
            with open(path, encoding="utf-8") as file:
                keys = file.read().splitlines()
        except (OSError, UnicodeDecodeError) as error:
            why = getattr(error, "strerror", None) or "not UTF-8"
            raise ConfigError(f"{field}: {why}; {way_out}") from None
    keys = [key.strip() for key in keys if key.strip()]
    if not keys:
        raise ConfigError(f"{field}: holds no key; {way_out}")
    if any(len(key) < _MIN_CHARS or not (key.isascii() and key.isprintable()) for key in keys):
        raise ConfigError(
            f"{field}: a key has fewer than {_MIN_CHARS} characters, or others than printable ASCII; {way_out}"
        )
    return Keys(keys)
