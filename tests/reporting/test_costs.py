import json

from moaa_ray.data.local_store import LocalStore
from moaa_ray.reporting.costs import costs_of, render_costs

POOL = {"name": "decide.qwen", "calls": 1200, "prompt_tokens": 900_000, "completion_tokens": 60_000, "gpu_s": 1800.0}
TRAINING = {"num_steps": 40, "num_workers": 8, "trained_tokens": 5_000_000, "gpu_s": 5400.0, "cost_usd": 3.0}


def write(folder, **stages) -> str:
    LocalStore(str(folder)).put("summary.json", json.dumps(stages).encode())
    return str(folder)


def test_the_slots_of_every_stage_are_listed_and_summed(tmp_path):
    """1,800 s and 5,400 s of GPUs are 0.5 h and 1.5 h; 1.25 and 3 USD are 4.25."""
    run = write(tmp_path, judge={"usage": [{**POOL, "cost_usd": 1.25}]}, dpo=TRAINING)
    costs = [*costs_of(run, "judge", title="judge, round 2"), *costs_of(run, "dpo", title="dpo")]
    assert render_costs(costs).splitlines() == [
        "stage           slot         calls  tokens in  tokens out  GPU-h   USD",
        "judge, round 2  decide.qwen  1,200    900,000      60,000   0.50  1.25",
        "dpo             8 workers       40  5,000,000           0   1.50  3.00",
        "in all                       1,240  5,900,000      60,000   2.00  4.25",
    ]


def test_without_prices_there_is_no_column_of_money(tmp_path):
    run = write(tmp_path, sample={"usage": [POOL]})
    text = render_costs(costs_of(run, "sample", title="sample"))
    assert "USD" not in text
    assert costs_of(run, "judge", title="judge") == []
    assert costs_of(str(tmp_path / "elsewhere"), "judge", title="judge") == []
