"""Keeps the chatter of Ray and the engines off the terminal: it goes to a file, ours stays on the screen."""

import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console


@contextmanager
def chatter_to(path: Path) -> Iterator[Console]:
    """For the time of the block everything written to stderr, by C++ too, goes to the file; yields the real stderr."""
    path.parent.mkdir(parents=True, exist_ok=True)
    sys.stderr.flush()
    screen_fd = os.dup(2)
    with open(path, "ab") as log, os.fdopen(screen_fd, "w", encoding="utf-8", closefd=False) as screen:
        os.dup2(log.fileno(), 2)
        try:
            yield Console(file=screen, highlight=False)
        finally:
            sys.stderr.flush()
            screen.flush()
            os.dup2(screen_fd, 2)
    os.close(screen_fd)


@contextmanager
def quiet(name: str) -> Iterator[Console]:
    """The same into a file of the run's name; it stays where the block fails. To be entered before Ray is imported."""
    # Both are read by `import ray`: no second Ray while a run ends, and nothing of Ray's on stdout when a worker dies.
    os.environ.setdefault("RAY_ENABLE_AUTO_CONNECT", "0")
    os.environ.setdefault("RAY_DEDUP_LOGS_SKIP_REGEX", ".")
    log = Path(tempfile.gettempdir()) / "moaa_ray" / f"{name}-{os.getpid()}.log"
    with chatter_to(log) as console:
        yield console
    log.unlink(missing_ok=True)
