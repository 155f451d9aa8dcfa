"""Contenders of a benchmark that take turns: fair, and nothing of the others moves meanwhile."""

import itertools
from pathlib import Path

import pytest

from benchmarks import _turns

TICKING = """
import json, subprocess, sys, time
sys.path.insert(0, {folder!r})
import _turns
CHILD = "import time\\nwhile True: print(time.monotonic(), flush=True); time.sleep(0.004)"
_turns.say_ready()
_turns.wait_for_go()
child = subprocess.Popen([sys.executable, "-c", CHILD], stdout=subprocess.PIPE, text=True)  # born in the first turn
ticks = []
while not _turns.is_over():
    ticks.append(time.monotonic())
    time.sleep(0.004)
child.kill()
print(json.dumps({{"ticks": ticks, "of_child": [float(line) for line in child.stdout if line.endswith("\\n")]}}))
"""
FOLDER = str(Path(_turns.__file__).parent)


def test_every_process_of_a_contender_moves_in_its_own_turns_alone():
    command = ["-c", TICKING.format(folder=FOLDER)]
    found = _turns.take_turns({"a": command, "b": command, "c": command}, turn_s=0.3, num_turns=3)
    for name, turned in found.items():
        assert 3 <= len(turned.turns) <= 5, name  # those that it was to have, and what it takes to see that it is over
        for kind in ("ticks", "of_child"):
            ticks = turned.found[kind]
            assert len(ticks) > 20, (name, kind)
            own = sum(any(begin <= t <= end for begin, end in turned.turns) for t in ticks)
            assert own >= len(ticks) - 2 * len(turned.turns), (name, kind)  # a turn's end is noted, then it is stopped
    every = sorted(turn for turned in found.values() for turn in turned.turns)
    assert all(end <= begin for (_, end), (begin, _) in itertools.pairwise(every))
    assert all(0.25 < end - begin < 0.5 for turned in found.values() for begin, end in turned.turns[:3])


def test_seconds_are_those_of_own_turns():
    turned = _turns.Turned({}, [(0.0, 2.0), (10.0, 12.0), (20.0, 21.0)])
    assert [turned.seconds_until(t) for t in (0.0, 1.0, 5.0, 11.0, 30.0)] == [0.0, 1.0, 2.0, 3.0, 5.0]


def test_a_contender_that_fails_ends_all_with_what_it_said():
    wait = f"import sys; sys.path.insert(0, {FOLDER!r}); import _turns; _turns.pass_gate(); "
    with pytest.raises(SystemExit, match="no such luck"):
        _turns.take_turns({"a": ["-c", wait + "raise ValueError('no such luck')"], "b": ["-c", wait + "print('{}')"]})
    with pytest.raises(SystemExit, match="did not come to its gate"):
        _turns.take_turns({"a": ["-c", "raise ValueError"]})
