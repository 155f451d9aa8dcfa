"""The sections `sft` and `dpo`: what a strategy does not do is refused, not ignored."""

import pytest
from pydantic import ValidationError

from moaa_ray.settings.training import DpoConfig, SftConfig


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"strategy": "ddp", "sharding": "all"}, "sharding = all with strategy = ddp: only fsdp2 has the choice"),
        ({"cpu_offload": True}, "cpu_offload = true with strategy = fsdp2: only deepspeed offloads"),
        ({"strategy": "deepspeed", "compile": True}, "compile = true with strategy = deepspeed: its hooks split"),
        ({"strategy": "deepspeed", "keep_gathered": True}, "keep_gathered = true with strategy = deepspeed"),
        ({"strategy": "deepspeed", "lora": {}}, "lora with strategy = deepspeed: not supported; choose fsdp2"),
    ],
)
def test_what_a_strategy_does_not_do_is_refused(settings, said):
    with pytest.raises(ValidationError, match=said):
        DpoConfig.model_validate(settings)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"label_smoothing": 0.1}, "label_smoothing = 0.1 with loss = sigmoid: only robust has it"),
        ({"loss": "ipo", "gamma": 1.0}, "gamma = 1.0 with loss = ipo: only simpo has it"),
    ],
)
def test_what_a_loss_does_not_have_is_refused(settings, said):
    with pytest.raises(ValidationError, match=said):
        DpoConfig.model_validate(settings)


def test_what_it_does_is_taken():
    assert DpoConfig(loss="robust", label_smoothing=0.1, gamma=0.5).label_smoothing == 0.1
    assert DpoConfig(loss="simpo", gamma=1.2).gamma == 1.2
    assert SftConfig(strategy="deepspeed", cpu_offload=True, sharding="node").cpu_offload
    assert SftConfig(sharding="all", keep_gathered=True, compile=True).sharding == "all"
