"""One prompt in the stages that make data: generate, sample, judge. Each part says whether it knows the prompt."""

import json
from collections.abc import Mapping, Sequence

from moaa_ray.data.manifest import MANIFEST
from moaa_ray.data.schemas import Record
from moaa_ray.data.store import Store
from moaa_ray.reporting.cards import candidates_of
from moaa_ray.reporting.comparisons import Meeting, meetings, score_text, why_dropped, why_pair
from moaa_ray.reporting.judge_files import JudgeFiles, judge_files, judges_of
from moaa_ray.reporting.layout import Layout
from moaa_ray.reporting.lookup import FoundRow, committed_failure, find_failure, find_row
from moaa_ray.run_record import read_run

_OUTCOMES = {1.0: "first", 0.0: "second", 0.5: "tie", None: "missing"}


def generate_part(store: Store, row_id: str, out: Layout) -> bool:
    """The prompt, every proposal, the synthesis."""
    prompt, row = find_row(store, "prompts", row_id), find_row(store, "sft", row_id)
    failure = None if row else find_failure(store, "generate", row_id) or committed_failure(store, "generate", row_id)
    if prompt is None and row is None and failure is None:
        return False
    known = next(found for found in (row, failure, prompt) if found is not None)
    out.title(f"GENERATE   {_state(store, 'generate', row, failure)}")
    out.line(f"source {known.record['source']}{_flags(known.record)}")
    _conversation(known.record["messages"], known.record.get("proposals") or (), out, is_done=row is not None)
    if prompt is not None:
        _published(store, prompt, out)
    if row is not None:
        _published(store, row, out)
    _made_by(read_run(store).get("fingerprint", {}), out)
    return True


def sample_part(store: Store, row_id: str, out: Layout, *, with_prompt: bool = False) -> bool:
    """The student's candidates."""
    row = find_row(store, "candidates", row_id)
    failure = None if row else find_failure(store, "sample", row_id) or committed_failure(store, "sample", row_id)
    if row is None and failure is None:
        return False
    out.title(f"SAMPLE   {_state(store, 'sample', row, failure)}")
    _prompt(row or failure, out, is_wanted=with_prompt)
    if row is not None:
        for index, one in enumerate(row.record["candidates"]):
            text = one["error"] or one["completion"]
            out.entry(f"candidate {index}  {_tokens(one)}  {one['finish_reason'] or 'failed'}", text)
        _published(store, row, out)
    _made_by(read_run(store).get("made_with", {}).get("sample", {}), out)
    return True


def judge_parts(store: Store, row_id: str, out: Layout, *, with_prompt: bool = False) -> bool:
    """Every judge's verdicts and the pair made of them, or the rule that dropped it."""
    known = False
    for name in judges_of(store):
        known |= _judge_part(judge_files(store, name), row_id, out, with_prompt=with_prompt and not known)
    return known


def _judge_part(files: JudgeFiles, row_id: str, out: Layout, *, with_prompt: bool) -> bool:
    row = find_row(files.own, "judgments", row_id)
    pair = find_row(files.pairs, "pairs", row_id)
    failure = None
    if pair is None:
        failure = find_failure(files.pairs, files.failures, row_id) or find_failure(files.own, "judge", row_id)
    if pair is None and row is None and failure is None:
        failure = committed_failure(files.own, "judge", row_id)
    if row is None and pair is None and failure is None:
        return False
    in_use = "in use" if files.is_in_use else "not in use"
    state = _state(files.own, "judge", row, None if row else failure)
    out.title(f"JUDGE {files.name}   {state}; {in_use}, in judges/{files.name}")
    _prompt(row or failure, out, is_wanted=with_prompt)
    if judged := row or find_row(files.own, "undecided", row_id):
        _judged(judged.record, out)
        _published(files.own, judged, out)
    _made_by(read_run(files.own).get("made_with", {}).get("judge", {}), out)
    if pair is not None:
        chosen, rejected = pair.record["chosen_index"], pair.record["rejected_index"]
        out.title(f"PAIR   chosen {chosen}, rejected {rejected}, margin {pair.record['margin']:.4g}; {pair.place}")
        if row is not None:
            out.line(why_pair(row.record, chosen, rejected))
        _published(files.pairs, pair, out)
    elif failure is not None and row is not None:
        out.title(f"NO PAIR   {failure.record['status']}: {failure.record['reason']}; {failure.place}")
        out.line(why_dropped(failure.record["reason"], row.record))
    return True


def _judged(record: Record, out: Layout) -> None:
    met = meetings(record["judgments"])
    titles = ("place", "candidate", "score", *(("won", "lost", "tied", "missing") if met else ()))
    out.line("".join(f"{name:>10}" for name in titles))
    for one in sorted(candidates_of(record, {}), key=lambda one: (one.place is None, one.place, one.index)):
        counts = (one.tally.won, one.tally.lost, one.tally.tied, one.tally.missing) if met else ()
        values = (one.place or "-", one.index, one.score, *counts)
        same = "" if one.same_as is None else f"   same text as {one.same_as}"
        out.line("".join(f"{value!s:>10}" for value in values) + same + (f"   {one.error}" if one.error else ""))
    for each in met:
        _met(each, out)
    for rating in record["ratings"]:
        if rating["aspect"]:
            value = rating["error"] if rating["value"] is None else score_text(rating["value"])
            out.entry(f"candidate {rating['candidate']}  {rating['aspect']}  {value}", rating["text"] or "")


def _met(each: Meeting, out: Layout) -> None:
    i, j = each.pair
    first = {
        k: ", ".join("-" if q.winner is None else str(q.winner) for q in each.questions if q.first == k) for k in (i, j)
    }
    outcome = {"first": f"{i} won", "second": f"{j} won"}.get(_OUTCOMES[each.result], _OUTCOMES[each.result])
    criteria = ", ".join(each.criteria) + (" (fallback)" if each.is_fallback else "")
    turn = f"  round {each.round}" if each.round > 1 else ""
    head = f"{i} and {j}{turn}  {i} first: {first[i] or '-'}  {j} first: {first[j] or '-'}"
    out.line(f"{head:<34}  {outcome:<8}  {criteria}".rstrip())
    if out.is_full:
        for q in each.questions:
            out.entry(f"{q.judge}, {q.first} shown first: {q.letter} {q.error}".rstrip(), q.text, indent=6)
            for name, text in q.assessments:
                out.entry(f"assessment by {name}", text, indent=8)


def _prompt(row: FoundRow | None, out: Layout, *, is_wanted: bool) -> None:
    """The conversation that was answered, where no earlier stage has shown it."""
    if row is not None and is_wanted:
        _conversation(row.record["messages"], (), out, is_done=False)


def _conversation(messages: Sequence[Mapping], proposals: Sequence[Record], out: Layout, *, is_done: bool) -> None:
    """The messages, and before each synthesised one its proposals; answers that the dataset had come first."""
    answers = sum(message["role"] == "assistant" for message in messages)
    num_turns = 1 + max((proposal["turn"] for proposal in proposals), default=0)
    turn = num_turns - answers - (0 if is_done else 1)
    for message in messages:
        if message["role"] != "assistant":
            out.entry(message["role"], message["content"])
            continue
        _proposals(turn, proposals, out)
        out.entry("synthesis" if turn >= 0 else "answer in the dataset", message["content"])
        turn += 1
    if not is_done:
        _proposals(turn, proposals, out)


def _proposals(turn: int, proposals: Sequence[Record], out: Layout) -> None:
    for one in sorted((p for p in proposals if p["turn"] == turn), key=lambda p: p["layer"]):
        used = "used" if one["used"] else "unused"
        model = "" if one["model"] == one["proposer"] else f" ({one['model']})"
        how = f"FAILED {one['error']}" if one["error"] else f"{_tokens(one)}  {one['finish_reason']}  {used}"
        out.entry(f"layer {one['layer']}  {one['proposer']}{model}  {how}", one["completion"] or "", indent=4)


def _state(store: Store, stage: str, row: FoundRow | None, failure: FoundRow | None) -> str:
    if row is not None:
        return f"ok; {row.place}"
    if failure is not None:
        record = failure.record
        told = (
            record["detail"]
            if record["detail"].startswith(record["reason"])
            else f"{record['reason']}: {record['detail']}"
        )
        return f"{record['status']}: {told or record['reason']}; {failure.place}"
    status = read_run(store).get("stages", {}).get(stage, {}).get("status")
    return f"not answered yet; the stage is {status or 'not begun'}"


def _published(store: Store, row: FoundRow, out: Layout) -> None:
    """What made the folder that a row is in."""
    folder, name = row.path.split("/")
    manifest = json.loads(store.read(f"{folder}/{MANIFEST}"))
    shard = next(shard["sha256"] for shard in manifest["shards"] if shard["name"] == name)
    facts = ", ".join(f"{key} {out.digest(str(value))}" for key, value in manifest["facts"].items())
    out.line(
        f"{folder}: manifest {out.digest(manifest['sha256'])}, {name} sha256 {out.digest(shard)}"
        + (f"; {facts}" if facts else "")
    )


def _made_by(fields: Mapping[str, str], out: Layout) -> None:
    """The hashes of the models asked, the seed, the wording."""
    wanted = [name for name in fields if name.endswith((".files", ".version")) or name in ("student", "seed")]
    told = [f"{name} {out.digest(fields[name].strip(chr(34)))}" for name in wanted]
    if told:
        out.line("made with " + ", ".join(told))


def _tokens(one: Record) -> str:
    return f"{one['prompt_tokens'] or 0:,} + {one['completion_tokens'] or 0:,} tokens"


def _flags(record: Record) -> str:
    flags = record.get("flags") or ()
    return f"; flags: {', '.join(flags)}" if flags else ""
