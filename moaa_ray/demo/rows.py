"""Rows of a run as text: a conversation with the proposals that each answer was made of."""


def sample_rows(run_dir: str, *, num_rows: int = 2) -> str:
    """The first rows of sft/ as text: the conversation with each turn's proposals before its synthesis."""
    from moaa_ray.data.publish import read_batches
    from moaa_ray.data.store import open_store

    shown: list[str] = []
    for table in read_batches(open_store(run_dir), "sft", batch_rows=num_rows):
        for record in table.slice(0, num_rows - len(shown)).to_pylist():
            shown.append(_shown(record))
        if len(shown) >= num_rows:
            break
    return "\n\n".join(shown)


def _shown(record: dict) -> str:
    lines = [f"--- row {record['id']} " + "-" * max(0, 84 - len(record["id"]))]
    turn = 0
    for message in record["messages"]:
        if message["role"] == "assistant":
            for proposal in record["proposals"]:
                if proposal["turn"] == turn:
                    lines.append(_line(f"  {proposal['proposer']}", proposal["completion"] or proposal["error"]))
            lines.append(_line("synthesis", message["content"]))
            turn += 1
        else:
            lines.append(_line(message["role"], message["content"]))
    return "\n".join(lines)


def _line(who: str, text: str, *, width: int = 160) -> str:
    flat = " ".join(text.split())
    return f"{who:<12} {flat if len(flat) <= width else flat[: width - 3] + '...'}"
