"""What a browser wants to hear before a page of another origin may ask (CORS). Pure.

A server that says nothing of it is closed to such pages; one that names origins is open to theirs alone. Whoever asks
still has to show a key where keys are wanted: only the preflight, in which browsers send none, is answered without.
"""

import re
from collections.abc import Mapping, Sequence

_NAMES = re.compile(r"[\w, -]{1,2000}", re.ASCII)
_MAX_AGE_S = 600


def cors_headers(origin: str, allowed: Sequence[str], *, exposed: Sequence[str]) -> Mapping[str, str]:
    """Headers of every reply to a page of this origin ("": not from a browser's page); none where none is allowed."""
    if not allowed:
        return {}
    if not origin or not {"*", origin} & set(allowed):
        return {"vary": "origin"}
    names = ", ".join(exposed)
    return {"access-control-allow-origin": origin, "access-control-expose-headers": names, "vary": "origin"}


def preflight_headers(wanted: str) -> Mapping[str, str]:
    """What a page may send. wanted: the header names that it asks for; clients of OpenAI have several of their own."""
    names = wanted if _NAMES.fullmatch(wanted) else "authorization, content-type"
    return {
        "access-control-allow-methods": "GET, HEAD, POST",
        "access-control-allow-headers": names,
        "access-control-max-age": str(_MAX_AGE_S),
    }
