"""Small benchmark files in their published shapes, for tests."""

import json
from pathlib import Path

NUM_QUESTIONS = 6
CATEGORIES = ("writing", "math")


def write_benchmarks(folder: Path, num: int = NUM_QUESTIONS) -> None:
    """alpaca.json, arena.jsonl and arena_answers.jsonl, mt.jsonl and mt_answers.jsonl; baselines say "base ..."."""
    alpaca = [
        {"instruction": f"Say {i}.", "output": f"base {i}", "generator": "old-model", "dataset": "d"}
        for i in range(num)
    ]
    (folder / "alpaca.json").write_text(json.dumps(alpaca, indent=2), encoding="utf-8")
    put_lines(
        folder / "arena.jsonl",
        [{"question_id": f"q{i}", "category": "c", "turns": [{"content": f"Solve {i}."}]} for i in range(num)],
    )
    put_lines(
        folder / "arena_answers.jsonl",
        [
            {
                "question_id": f"q{i}",
                "model_id": "old-4",
                "choices": [{"index": 0, "turns": [{"content": f"base {i}"}]}],
            }
            for i in range(num)
        ],
    )
    put_lines(
        folder / "mt.jsonl",
        [
            {"question_id": 81 + i, "category": CATEGORIES[i % 2], "turns": [f"Write {i}.", f"Again {i}."]}
            for i in range(num)
        ],
    )
    put_lines(
        folder / "mt_answers.jsonl",
        [
            {"question_id": 81 + i, "model_id": "old-4", "choices": [{"index": 0, "turns": [f"one {i}", f"two {i}"]}]}
            for i in range(num)
        ],
    )


def put_lines(path: Path, records: list[dict]) -> None:
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
