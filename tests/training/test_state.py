"""What a checkpoint carries beside tensors."""

import json
from dataclasses import asdict

import pytest

pytest.importorskip("torch")

from moaa_ray.errors import StageError
from moaa_ray.training.state import State, state_of


def test_a_state_comes_back_from_a_checkpoint_as_it_was():
    state = State(next_step=3, num_tokens=7, kl_estimate=(0.5, 0.25), best_score=-1.5, best_step=2)
    assert state_of(json.loads(json.dumps(asdict(state)))) == state


def test_a_checkpoint_of_another_version_is_told_with_the_way_out():
    known = asdict(State())
    known["best_loss"] = known.pop("best_score")
    with pytest.raises(StageError, match=r"written by another version of moaa_ray; go on with that version, or delete"):
        state_of(known)
