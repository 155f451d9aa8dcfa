"""Seeds from names, so that replicas, restarts and order change nothing."""

import hashlib

_SEED_BITS = 53  # survives JSON readers that hold numbers as doubles


def seed_for(run_seed: int, *parts: str | int) -> int:
    """A seed in [0, 2**53) that depends on the run seed and every part, and on nothing else.

    Parts are length-prefixed, so ("ab", "c") and ("a", "bc") differ.
    """
    digest = hashlib.blake2b(digest_size=8)
    for part in (run_seed, *parts):
        text = f"{type(part).__name__}:{part}".encode("utf-8", "surrogatepass")
        digest.update(len(text).to_bytes(8, "big") + text)
    return int.from_bytes(digest.digest(), "big") >> (64 - _SEED_BITS)


def hex_for(run_seed: int, *parts: str | int, num_chars: int = 12) -> str:
    """Hexadecimal text of the same kind, for fences and keys; num_chars <= 12."""
    return f"{seed_for(run_seed, *parts):014x}"[-num_chars:]
