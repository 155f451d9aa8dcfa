"""Contenders that run by turns, all others frozen, so that a machine whose speed drifts is fair to all.

Where the speed changes by half in a minute, whole runs one after the other compare minutes, not programs.
Here every contender is a process tree of its own. It loads alone, says so at its gate, and waits; then the trees take
turns, each stopped and continued as a whole (SIGSTOP, SIGCONT), and a contender's seconds are those of its own turns.
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psutil

TURN_S = 2.0
_GATE = "MOAA_BENCHMARK_GATE"
_POLL_S = 0.01
_LOAD_LIMIT_S = 300.0


def pass_gate() -> None:
    """In any process of a contender: say that all is loaded, and wait for the first turn."""
    say_ready()
    wait_for_go()


def say_ready() -> None:
    (_gate() / "ready").touch()


def wait_for_go() -> None:
    while not (_gate() / "go").exists():
        time.sleep(_POLL_S)


def has_turns() -> bool:
    """Whether this process is a contender's."""
    return _GATE in os.environ


def is_over() -> bool:
    """Whether this contender has had the turns that it was to have."""
    return (_gate() / "over").exists()


def _gate() -> Path:
    return Path(os.environ[_GATE])


@dataclass(frozen=True)
class Turned:
    """What a contender printed last, a JSON object, and its turns on time.monotonic()'s clock."""

    found: dict
    turns: list[tuple[float, float]]

    def seconds_until(self, ended: float) -> float:
        """How much of the time from the first turn on was this contender's own."""
        return sum(max(0.0, min(stop, ended) - start) for start, stop in self.turns)


@dataclass
class _Tree:
    """A contender's process with all its descendants, and when they ran."""

    root: psutil.Process
    child: subprocess.Popen
    gate: Path
    turns: list[tuple[float, float]] = field(default_factory=list)
    _frozen: list[psutil.Process] = field(default_factory=list)

    def run_for(self, seconds: float) -> None:
        """One turn; it ends early when the contender does."""
        began = time.monotonic()
        self._signal(reversed(self._frozen), signal.SIGCONT)
        while self.is_running() and time.monotonic() - began < seconds:
            time.sleep(_POLL_S)
        self.turns.append((began, time.monotonic()))
        self.freeze()

    def freeze(self) -> None:
        """Stop every process of the tree, those too that were born meanwhile."""
        self._signal(self._frozen, signal.SIGSTOP)
        while found := self._running():
            self._signal(found, signal.SIGSTOP)
            self._frozen = [process for process in [*self._frozen, *found] if process.is_running()]

    def end(self) -> None:
        """Leave nothing of it behind."""
        for process in self._frozen:
            self._signal([process], signal.SIGKILL)
        self.child.kill()

    def is_running(self) -> bool:
        return self.child.poll() is None

    def _running(self) -> list[psutil.Process]:
        known = set(self._frozen)
        try:
            return [p for p in (self.root, *self.root.children(recursive=True)) if p not in known]
        except psutil.NoSuchProcess:
            return []

    @staticmethod
    def _signal(processes, number: signal.Signals) -> None:
        for process in processes:
            try:
                process.send_signal(number)
            except psutil.NoSuchProcess:
                continue


def take_turns(
    commands: Mapping[str, Sequence[str]], *, turn_s: float = TURN_S, num_turns: int | None = None
) -> dict[str, Turned]:
    """Run `python <command>` of every contender by turns, each of which passes its gate once.

    They run to their ends, or with num_turns so many turns and then as long as they take to see that it is over. Exits
    where one fails.
    """
    with tempfile.TemporaryDirectory(prefix="moaa-turns-") as scratch:
        trees: dict[str, _Tree] = {}
        try:
            for name, command in commands.items():
                trees[name] = _loaded(command, Path(scratch) / name)
            for tree in trees.values():
                (tree.gate / "go").touch()
            while waiting := [tree for tree in trees.values() if tree.is_running()]:
                for tree in waiting:
                    if len(tree.turns) == num_turns:
                        (tree.gate / "over").touch()
                    tree.run_for(turn_s)
            return {name: _turned(tree) for name, tree in trees.items()}
        finally:
            for tree in trees.values():
                tree.end()


def _loaded(command: Sequence[str], gate: Path) -> _Tree:
    """A contender at its gate, frozen."""
    gate.mkdir()
    with (gate / "stdout").open("w") as out, (gate / "stderr").open("w") as err:
        environment = os.environ | {_GATE: str(gate)}
        child = subprocess.Popen([sys.executable, *command], stdout=out, stderr=err, env=environment)
    tree = _Tree(psutil.Process(child.pid), child, gate)
    deadline = time.monotonic() + _LOAD_LIMIT_S
    while not (gate / "ready").exists():
        if not tree.is_running() or time.monotonic() > deadline:
            tree.end()
            sys.exit(f"{' '.join(command)} did not come to its gate:\n{_tail(gate / 'stderr')}")
        time.sleep(_POLL_S)
    tree.freeze()
    return tree


def _turned(tree: _Tree) -> Turned:
    if tree.child.returncode:
        sys.exit(f"{tree.child.args} ended with {tree.child.returncode}:\n{_tail(tree.gate / 'stderr')}")
    return Turned(json.loads((tree.gate / "stdout").read_text().strip().splitlines()[-1]), tree.turns)


def _tail(path: Path) -> str:
    return path.read_text(errors="replace")[-4000:]
