"""`moaa trace`: one prompt followed through a run, its rounds and its iterations."""

from moaa_ray.data.store import Store, open_store
from moaa_ray.errors import DataError
from moaa_ray.reporting.layout import WIDTH, Layout
from moaa_ray.reporting.lookup import all_ids, nearest
from moaa_ray.reporting.trace_data import generate_part, judge_parts, sample_part
from moaa_ray.reporting.trace_training import training_part
from moaa_ray.reporting.visible import on_one_line
from moaa_ray.run_folders import iteration_folder, round_folder
from moaa_ray.run_record import read_run

_FOLDERS = ("prompts", "sft", "candidates", "pairs")


def trace_prompt(run: str, row_id: str, *, full: bool = False) -> str:
    """What became of a prompt at every stage, as text.

    Raises ConfigError where there is no run, DataError where no stage knows the prompt, with the ids most like it.
    """
    if not row_id.isprintable() and any("\ud800" <= char <= "\udfff" for char in row_id):
        raise DataError(f"the id {ascii(row_id)[:200]} is not UTF-8, as every prompt's id is; copy one of RUN/sft")
    store = open_store(run)
    out = Layout(is_full=full)
    out.title(f"{row_id}   {read_run(store).get('name', '?')}   {store.uri}")
    out.line("-" * WIDTH, indent=0)
    if not _trace(store, row_id, out):
        raise DataError(_unknown(store, row_id))
    out.title(_code(store))
    return out.text()


def _trace(store: Store, row_id: str, out: Layout) -> bool:
    """The stages of a run directory in their order, then the directories inside it."""
    known = generate_part(store, row_id, out)
    known |= training_part(store, "sft", row_id, out)
    known |= sample_part(store, row_id, out, with_prompt=not known)
    known |= judge_parts(store, row_id, out, with_prompt=not known)
    known |= training_part(store, "dpo", row_id, out)
    for kind, folder_of in (("ROUND", round_folder), ("ITERATION", iteration_folder)):
        number = 2
        while (inner := open_store(folder_of(store.uri, number))).exists("run.json"):
            part = Layout(is_full=out.is_full)
            if _trace(inner, row_id, part):
                out.title(f"{kind} {number}   {inner.uri}")
                out.add(part)
                known = True
            number += 1
    return known


def _code(store: Store) -> str:
    """Which versions of this package have worked on the run."""
    versions = [session.get("versions", {}) for session in read_run(store).get("sessions", ())]
    told = [f"{one.get('moaa_ray', '?')} at {one.get('commit', '?')[:12]}" for one in versions]
    return f"worked on by moaa_ray {', '.join(dict.fromkeys(told)) or '?'}"


def _unknown(store: Store, row_id: str) -> str:
    ids = dict.fromkeys(known for folder in _FOLDERS for known in all_ids(store, folder))
    like = ", ".join(on_one_line(known) for known in nearest(row_id, ids))
    shown = on_one_line(row_id) if len(row_id) <= 200 else f"{on_one_line(row_id[:200])}..."
    if not ids:
        return f"{store.uri}: no prompt {shown!r}, and no stage has published any; run `moaa generate` first"
    return f"{store.uri}: no prompt {shown!r} among {len(ids):,}; do you mean one of {like}?"
