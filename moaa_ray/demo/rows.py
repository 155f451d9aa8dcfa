"""The demo: tiny models made on the spot, then the whole of MoAA on this machine's CPUs, on real vLLM and training."""

from pathlib import Path

from moaa_ray.loading import RUN
from moaa_ray.model_folders import resolve_path
from moaa_ray.pipeline import Views, load_run
from moaa_ray.tiny import make_tiny_model

_TEMPLATES = ("chatml", "llama3", "gemma", "chatml", "llama3")


def prepare_demo(recipe: Path, overrides: list[str]) -> Views:
    """The demo's recipe, with every model folder that it names made where it is missing."""
    for seed, (folder, template) in enumerate(zip(_folders(recipe), _TEMPLATES, strict=True)):
        make_tiny_model(folder, seed=seed, template=template)
    return load_run(recipe, overrides)


def _folders(recipe: Path) -> list[str]:
    import yaml

    data = yaml.safe_load(recipe.read_text(encoding="utf-8"))
    places = [model["model"] for model in data["models"].values() if model["engine"] == "vllm"]
    places = [place for place in places if not place.startswith(RUN)] + [data["student"]["model"]]
    return [resolve_path(recipe.parent, place) for place in places]


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
