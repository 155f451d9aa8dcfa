"""The command `moaa train` with real Ray: killed, gone on with, refused."""

import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

from rich.console import Console

from moaa_ray.data.store import open_store
from moaa_ray.errors import ConfigError, DataError
from moaa_ray.generation import session
from moaa_ray.loading import load_training
from moaa_ray.training.checkpoint import Checkpoints
from moaa_ray.training.metrics import read_metrics
from moaa_ray.training.strategies.base import Numerics, World
from moaa_ray.training.strategies.build import build_strategy
from moaa_ray.training.trainer import Workers
from moaa_ray.training_stage import stage
from moaa_ray.training_stage.stage import train_stage
from tests.cluster import nodes
from tests.generation import runs, servers
from tests.training.jobs import make_student, pair_rows, sft_rows, text


def long_rows(num: int) -> list[dict]:
    rows = sft_rows(num)
    for i, row in enumerate(rows):
        row["messages"][1]["content"] = text(i, 120)
    return rows


def write_recipe(folder: Path, name: str = "run", *, data=None, sft: str = "", dpo: str = "") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(long_rows(160) if data is None else data), folder / f"{name}.parquet")
    path = folder / f"{name}.yaml"
    path.write_text(
        f"name: {name}\nrun_dir: {folder / name}\nstudent: {{model: {folder / 'student'}}}\n"
        f"sft: {{data: [{{path: {name}.parquet}}], epochs: 2, batch: 8, max_tokens: 512, learning_rate: 1.0e-3, "
        f"precision: float32, workers: 2, checkpoint_every: 3, validation_fraction: 0.1{sft}}}\n"
        f"dpo: {{data: [{{path: {name}.parquet}}], epochs: 2, batch: 8, max_tokens: 512, precision: float32, workers: 2"
        f", student: {folder / 'student'}{dpo}}}\nray: {{address: local}}\n",
        encoding="utf-8",
    )
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("training")
    make_student(folder / "student")
    return folder


def start(recipe: Path, *overrides: str, stage: str = "sft") -> subprocess.Popen:
    command = [sys.executable, "-m", "moaa_ray", "train", stage, str(recipe), *overrides]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True, env=env
    )


def train(recipe: Path, *overrides: str, stage: str = "sft") -> str:
    code, output = runs.finish(start(recipe, *overrides, stage=stage))
    assert code == 0, output
    return output


def metrics(run: Path, stage: str = "sft") -> list[dict]:
    path = run / "metrics" / f"{stage}.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def curve(run: Path) -> list[tuple]:
    return [(line["step"], line["loss"], line["grad_norm"]) for line in metrics(run)]


def wait_for_step(run: Path, step: int, process: subprocess.Popen) -> None:
    wait_until(lambda: any(line["step"] >= step for line in metrics(run)), process)


def wait_until(claim: Callable[[], object], process: subprocess.Popen) -> None:
    end = time.monotonic() + 300
    while not claim():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < end
        time.sleep(0.05)


def assert_same_bits(run: Path, unbroken: Path) -> None:
    assert curve(run) == curve(unbroken)
    ours, theirs = (path / "models" / "sft" / "model.safetensors" for path in (run, unbroken))
    assert ours.read_bytes() == theirs.read_bytes()


def saved_steps(run: Path) -> list[int]:
    return sorted(int(path.parent.name.split("-")[1]) for path in run.glob("checkpoints/sft/*/complete.json"))


def workers_of(process: subprocess.Popen) -> list[int]:
    found = []
    for pid in runs.descendants(process.pid):
        try:
            if b"RayTrainWorker" in Path(f"/proc/{pid}/cmdline").read_bytes():
                found.append(pid)
        except OSError:
            continue
    return found


@pytest.fixture(scope="module")
def unbroken(folder) -> Path:
    output = train(write_recipe(folder, "unbroken"))
    assert "models/sft" in output
    return folder / "unbroken"


@pytest.mark.slow
def test_killed_worker_and_killed_driver_leave_the_bits_of_an_unbroken_run(folder, unbroken):
    recipe = write_recipe(folder, "killed")
    process = start(recipe)
    wait_for_step(folder / "killed", 4, process)
    workers = workers_of(process)
    assert len(workers) == 2
    os.kill(workers[0], signal.SIGKILL)
    wait_for_step(folder / "killed", 8, process)
    assert set(workers_of(process)).isdisjoint(workers)
    runs.kill_all(process)
    assert not (folder / "killed" / "models").exists()
    train(recipe)
    assert_same_bits(folder / "killed", unbroken)


@pytest.mark.long
def test_a_worker_that_the_kernel_kills_is_told_with_the_settings_that_make_room(folder):
    process = start(write_recipe(folder, "full"), "sft.max_restarts=0")
    wait_for_step(folder / "full", 1, process)
    os.kill(workers_of(process)[0], signal.SIGKILL)
    code, output = runs.finish(process)
    assert code == 4, output
    assert "killed or crashed. The kernel kills where a node's memory is full" in " ".join(output.split())


def replace(cluster, node: nodes.Node, process: subprocess.Popen) -> None:
    """Lose the node, let another one join, and wait for a good end."""
    node.lose()
    nodes.Node(cluster, 1)
    code, output = runs.finish(process)
    assert code == 0, output


@pytest.mark.long
def test_a_lost_node_is_made_up_for_by_one_that_joins_and_the_bits_are_those_of_an_unbroken_run(folder, unbroken):
    with nodes.cluster(head_cpus=1, with_dashboard=True) as cluster:
        node = nodes.Node(cluster, 1)
        process = start(write_recipe(folder, "lost"), f"ray.address={cluster.address}")
        try:
            wait_for_step(folder / "lost", 4, process)
            assert len(node.processes("RayTrainWorker")) == 1
            replace(cluster, node, process)
        finally:
            runs.kill_all(process)
    assert_same_bits(folder / "lost", unbroken)


@pytest.mark.long
def test_workers_stand_on_nodes_with_the_labels_that_the_recipe_names(folder):
    with nodes.cluster(head_cpus=4, with_dashboard=True) as cluster:
        labelled = [nodes.Node(cluster, 1, labels={"pool": "big"}) for _ in range(2)]
        process = start(
            write_recipe(folder, "labelled"), f"ray.address={cluster.address}", "sft.node_labels={pool: big}"
        )
        try:
            wait_for_step(folder / "labelled", 1, process)
            assert [len(node.processes("RayTrainWorker")) for node in labelled] == [1, 1]
        finally:
            runs.kill_all(process)


@pytest.mark.long
def test_a_node_that_goes_after_a_notice_leaves_a_checkpoint_of_the_step_at_which_it_came(
    folder, unbroken, monkeypatch
):
    monkeypatch.setenv("RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S", "1")
    run = folder / "noticed"
    with nodes.cluster(head_cpus=1, with_dashboard=True) as cluster:
        node = nodes.Node(cluster, 1)
        recipe = write_recipe(folder, "noticed")
        process = start(recipe, f"ray.address={cluster.address}", "sft.checkpoint_every=1000")
        try:
            wait_until(lambda: node.processes("RayTrainWorker"), process)
            node.give_notice(seconds=600)
            wait_until(lambda: saved_steps(run), process)
            assert saved_steps(run)[0] < len(curve(unbroken)) // 2, "no epoch is over"
            replace(cluster, node, process)
        finally:
            runs.kill_all(process)
    assert_same_bits(run, unbroken)


@pytest.mark.long
def test_another_number_of_workers_and_another_strategy_go_on_with_the_same_curve(folder, unbroken):
    recipe = write_recipe(folder, "moved")
    process = start(recipe)
    wait_for_step(folder / "moved", 6, process)
    runs.kill_all(process)
    train(recipe, "sft.workers=1", "sft.strategy=single")
    for ours, theirs in zip(curve(folder / "moved"), curve(unbroken), strict=True):
        assert ours == pytest.approx(theirs, rel=1e-5)


@pytest.mark.long
def test_a_run_in_an_object_store_goes_on_after_a_kill_and_has_the_bits_of_a_local_one(folder, unbroken):
    pytest.importorskip("moto.server", reason="moto serves S3 on this machine")
    with servers.s3_bucket("bucket"):
        store = open_store("s3://bucket/runs/sft")
        recipe = write_recipe(folder, "stored")
        process = start(recipe, f"run_dir={store.uri}")
        wait_until(lambda: len(read_metrics(store, "metrics/sft.jsonl")) > 4, process)
        runs.kill_all(process)
        assert not store.exists("models/sft/model.safetensors")
        train(recipe, f"run_dir={store.uri}")
        lines = read_metrics(store, "metrics/sft.jsonl")
        assert [(line["step"], line["loss"], line["grad_norm"]) for line in lines] == curve(unbroken)
        weights = (unbroken / "models" / "sft" / "model.safetensors").read_bytes()
        assert store.read("models/sft/model.safetensors") == weights
    assert not (folder / "stored").exists()


@pytest.mark.slow
def test_dpo_starts_at_ln_2_and_the_model_serves_with_transformers(folder):
    recipe = write_recipe(folder, "pairs", data=pair_rows(40), dpo=", beta: 0.5, learning_rate: 1.0e-3")
    output = train(recipe, "dpo.workers=1", stage="dpo")
    assert "40 rows, 40 pairs" in output
    lines = metrics(folder / "pairs", "dpo")
    assert lines[0]["loss"] == pytest.approx(0.693147, abs=1e-5)
    assert lines[-1]["loss"] < lines[0]["loss"]
    card = (folder / "pairs" / "models" / "dpo" / "README.md").read_text()
    assert "| loss |" in card
    assert "arXiv 2505.03059" in card


@pytest.mark.long
def test_a_file_that_turns_out_to_be_damaged_is_told_as_such(folder):
    recipe = write_recipe(folder, "damaged")
    path = folder / "damaged.parquet"
    whole = path.read_bytes()
    path.write_bytes(whole[:4] + b"\xff" * 60 + whole[64:])
    code, output = runs.finish(start(recipe))
    assert code == 3, output
    assert f"{path}: cannot be read: " in output
    assert output.strip().endswith("; mend the file")


def refused(recipe: Path, *overrides: str, stage: str = "sft") -> str:
    with pytest.raises((ConfigError, DataError)) as error:
        train_stage(load_training(recipe, overrides), stage)
    return str(error.value)


def test_what_cannot_be_trained_on_is_told_before_anything_starts(folder, tmp_path):
    recipe = write_recipe(folder, "bad", data=[{"id": "a", "text": "x"}])
    assert "has no column 'messages'" in refused(recipe)
    assert "has no column 'prompt'" in refused(recipe, stage="dpo")
    assert refused(write_recipe(folder, "three"), "sft.workers=3").startswith(
        "sft.batch = 8 is not a multiple of workers x micro_batch = 3 x 1 = 3"
    )
    assert "no such file, folder or match" in refused(write_recipe(folder, "away"), "sft.data.0.path=nowhere.parquet")
    no_model = refused(write_recipe(folder, "no-sft"), 'dpo.student=""', stage="dpo")
    assert "no model there to start dpo from; run `moaa train sft` first" in no_model
    not_there = refused(write_recipe(folder, "no-start"), "dpo.student=RUN/models/none", stage="dpo")
    assert not_there.startswith("dpo.student = ")
    nothing = refused(write_recipe(folder, "no-pairs"), "dpo.data=[]", stage="dpo")
    assert "no-pairs/pairs: nothing there to train on; run `moaa judge` first, or name data under dpo.data" in nothing
    kept = refused(write_recipe(folder, "one"), "sft.strategy=ddp", "sft.keep_gathered=true")
    assert "keep_gathered = true with strategy = ddp: only fsdp2 gathers" in kept
    assert "sft.lora.rank = 0: must be at least 1; raise it to 1 or more" in refused(
        write_recipe(folder, "one"), "sft.lora.rank=0"
    )
    targets = refused(write_recipe(folder, "targets"), "sft.lora.targets=[q_proj, query]")
    assert "lora.targets = query: no linear layer of the decoder layers has this name, there are down_proj" in targets
    assert "lora with strategy = deepspeed: not supported; choose fsdp2, ddp or single" in refused(
        write_recipe(folder, "one"), "sft.lora.rank=4", "sft.strategy=deepspeed"
    )
    assert "sft.strategy = deepspeed with run_dir = memory://run: it saves to file systems only" in refused(
        write_recipe(folder, "one"), "sft.strategy=deepspeed", "run_dir=memory://run"
    )
    assert "strategy = single with workers = 2" in refused(write_recipe(folder, "one"), "sft.strategy=single")
    assert "export = best needs validation" in refused(
        write_recipe(folder, "best"), "sft.export=best", "sft.validation_fraction=0"
    )
    for dpo, said in (
        ("dpo.loss=ipo", "length_normalized = true with loss = ipo: it is of sigmoid, hinge and robust"),
        ("dpo.ld_alpha=0.5", "length_normalized = true with ld_alpha = 0.5: one goes by means"),
    ):
        assert said in refused(write_recipe(folder, "one"), "dpo.length_normalized=true", dpo, stage="dpo")
    assert "dpo.all_tokens" in refused(write_recipe(folder, "one"), "dpo.all_tokens=true", stage="dpo")
    assert "sft.betas.1 = 1.0: must be below 1.0; lower it" in refused(
        write_recipe(folder, "one"), "sft.betas=[0.9, 1.0]"
    )
    (folder / "empty.jinja").write_text(" ")
    (folder / "latin.jinja").write_bytes(b"\xe4")
    for name, why in (("no", "No such file"), ("empty", "is empty; leave it out"), ("latin", "is not UTF-8 text")):
        said = refused(write_recipe(folder, "one"), f"student.chat_template={name}.jinja")
        assert f"{name}.jinja: {why}" in said
    schema = pa.schema([("messages", pa.string())], metadata={"moaa_ray.schema": "pairs/1"})
    pq.write_table(pa.table({"messages": ["x"]}, schema=schema), folder / "away.parquet")
    assert "holds schema 'pairs/1', where 'sft/1' is expected" in refused(folder / "away.yaml")
    assert not (folder / "bad" / "work").exists()


@pytest.mark.parametrize(
    ("file", "text", "said"),
    [
        ("tokenizer.json", "{", "its tokenizer cannot be loaded (JSONDecodeError"),
        ("tokenizer_config.json", '{"auto_map": {"AutoTokenizer": ["x.Y", null]}}', "its tokenizer cannot be loaded"),
        ("config.json", '{"model_type": "gpt2", "vocab_size": 2000}', "has no list of decoder layers"),
        ("config.json", '{"model_type": "stablelm", "vocab_size": 2000}', "its layers call attention in another way"),
        ("config.json", {"vocab_size": 2001}, "the two are not of one model"),
        ("config.json", {"num_hidden_layers": 9}, "has no tensor for model.layers."),
        ("config.json", {"rms_norm_eps": "1e-6"}, "transformers cannot build it: StrictDataclassFieldValidationError"),
        ("generation_config.json", "{", "generation_config.json is no JSON mapping: Expecting property name"),
        ("generation_config.json", "[]", "generation_config.json is no JSON mapping"),
        ("generation_config.json", '{"eos_token_id": ["</s>"]}', "eos_token_id = ['</s>'], want a token's number"),
    ],
)
def test_a_student_that_cannot_be_trained_is_refused_before_its_data_is_tokenised(file, text, said, folder, tmp_path):
    make_student(tmp_path / "student")
    path = tmp_path / "student" / file
    path.write_text(text if isinstance(text, str) else json.dumps(json.loads(path.read_text()) | text))
    assert said in refused(write_recipe(tmp_path, "other"))
    assert not (tmp_path / "other" / "work" / "sft").exists()


def test_a_checkpoint_of_another_recipe_is_refused_before_ray_starts(folder, monkeypatch):
    uri = str(folder / "begun" / "checkpoints" / "sft")
    student = build_strategy("single", folder / "student", World(), Numerics())
    Checkpoints(uri, fingerprint={"batch": "4"}).save(1, student, {}, is_async=False)
    monkeypatch.setattr(session, "session", None)
    said = refused(write_recipe(folder, "begun"))
    assert "step-00000001 is a checkpoint of another run: " in said
    assert "batch was 4, is 8" in said


def trains(loaded, *_):
    """What a training of one step leaves."""
    run = Path(loaded.run_dir)
    (run / "models" / "sft").mkdir(parents=True, exist_ok=True)
    (run / "models" / "sft" / "config.json").write_text("{}")
    (run / "metrics").mkdir(exist_ok=True)
    line = {"step": 0, "num_steps": 1, "loss": 1.0, "seconds": 1.0, "time": 0.0, "tokens": 9, "learning_rate": 0.1}
    (run / "metrics" / "sft.jsonl").write_text(json.dumps(line) + "\n")
    return [], Workers(num=1, use_gpu=False, num_cpus=1.0, max_restarts=0), None


def test_a_finished_stage_is_gone_on_with_only_where_another_state_is_to_become_the_model(folder, monkeypatch):
    exported = []

    def counts(loaded, *more):
        exported.append(loaded.recipe.sft.export)
        return trains(loaded, *more)

    monkeypatch.setattr(stage, "_train", counts)
    recipe = write_recipe(folder, "again")
    for export in ("last", "last", "best", "best", "last"):
        assert train_stage(load_training(recipe, [f"sft.export={export}"]), "sft").num_steps == 1
    assert exported == ["last", "best", "last"]
    assert (folder / "again" / "metrics" / "sft.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"summary": {"color": 1}, "fingerprint": {}}'])
def test_a_damaged_record_of_a_finished_stage_is_told_as_such(text, folder):
    (folder / "torn" / "metrics").mkdir(parents=True, exist_ok=True)
    (folder / "torn" / "metrics" / "sft.json").write_text(text)
    with pytest.raises(DataError, match=r"torn/metrics/sft.json: damaged, or of another version \(.*remove it: the"):
        train_stage(load_training(write_recipe(folder, "torn")), "sft")


def test_without_the_library_that_draws_a_stage_ends_well_and_says_what_is_lacking(folder, monkeypatch):
    monkeypatch.setattr(stage, "_train", trains)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    console = Console(file=io.StringIO(), width=200)
    summary = train_stage(load_training(write_recipe(folder, "undrawn")), "sft", console=console)
    assert "sft: its curve is not drawn (ModuleNotFoundError: " in console.file.getvalue()
    assert "metrics/sft.jsonl has every step" in console.file.getvalue()
    assert "curve:" not in summary.text()
    assert not (folder / "undrawn" / "metrics" / "sft.png").exists()
    assert (folder / "undrawn" / "metrics" / "sft.json").exists()


def test_a_model_folder_without_weights_is_refused(folder, tmp_path):
    (tmp_path / "student").mkdir()
    for file in (folder / "student").glob("*.json"):
        (tmp_path / "student" / file.name).write_bytes(file.read_bytes())
    assert "no *.safetensors weights" in refused(write_recipe(tmp_path, "empty"))
