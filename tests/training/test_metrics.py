"""Each step stands once in the metrics file, also after a run that was cut off behind its last checkpoint."""

from pathlib import Path

from moaa_ray.data.store import open_store
from moaa_ray.training.metrics import MetricsLog, read_metrics


def test_lines_behind_the_checkpoint_are_written_anew(tmp_path: Path):
    store = open_store(str(tmp_path))
    assert read_metrics(store, "metrics/sft.jsonl") == []
    log = MetricsLog(store, "metrics/sft.jsonl", next_step=0)
    for step in range(4):
        log.add({"step": step, "loss": 1.0})
    log.flush()
    again = MetricsLog(store, "metrics/sft.jsonl", next_step=2)
    again.add({"step": 2, "loss": 2.0})
    again.flush()
    assert [(line["step"], line["loss"]) for line in read_metrics(store, "metrics/sft.jsonl")] == [
        (0, 1),
        (1, 1),
        (2, 2),
    ]
