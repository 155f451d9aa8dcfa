"""From the recipe's datasets to stores of training units: found, checked, tokenised and packed once, by Ray Data."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from hashlib import sha256
from io import BytesIO
from pathlib import Path
from typing import Literal, cast

import pyarrow as pa
import pyarrow.parquet as pq

from moaa_ray.core.batches import Source
from moaa_ray.data import schemas
from moaa_ray.data.chunks import check_columns, digest_of_files, drawn_rows, find_chunks
from moaa_ray.data.locations import SourceFiles, find_files
from moaa_ray.data.manifest import MANIFEST, read_manifest
from moaa_ray.data.store import Store
from moaa_ray.data.unit_store import UnitStore, finish
from moaa_ray.data.units import UnitSettings
from moaa_ray.errors import ConfigError, DataError
from moaa_ray.loading import RUN
from moaa_ray.settings.training import DpoConfig, SftConfig, TrainingData
from moaa_ray.training.preparing import NEEDED, ChunkResult, ChunkTask

CHUNK_ROWS = 4096
"""Rows that are tokenised and packed together: enough for whole documents to fill packs to a percent or so."""

Stage = Literal["sft", "dpo"]
PUBLISHED: dict[Stage, tuple[str, str]] = {"sft": ("sft", "sft/1"), "dpo": ("pairs", "pairs/1")}
"""Where the stage before leaves its data in the run, and in which schema."""


@dataclass(frozen=True, kw_only=True)
class StudentFiles:
    """The model that is trained: where it is, a hash of its files, the text of another chat template."""

    place: str
    """A folder that every node sees, a URI or a hub id; each machine makes its own local copy of the latter two."""
    revision: str = ""
    digest: str
    chat_template: str = ""
    window: int | None = None
    """Tokens that it reads at once; None: its config does not say."""


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """One dataset of a stage, and the folder of the run that its units get."""

    config: TrainingData
    place: str
    """Where it is: its path, in this run's own folder for RUN/..."""
    digest: str
    """For people: a hash of its manifest, where moaa_ray has published it, else of its files."""
    folder: str
    tasks: tuple[ChunkTask, ...]

    @property
    def validation_folder(self) -> str:
        """The folder of its validation units."""
        return f"{self.folder}-validation"

    def is_prepared(self, store: Store) -> bool:
        """Whether its units are there, whole."""
        return all(store.exists(f"{folder}/units.json") for folder in (self.folder, self.validation_folder))

    def source(self, store: Store) -> Source:
        """Its part in the batch plan."""
        return self._source(len(UnitStore(store, self.folder)))

    def most(self) -> Source:
        """What its part can be at most where a row makes no more than one unit, as a pair does."""
        taken = (task.chunk.stop - task.chunk.start if task.rows is None else len(task.rows) for task in self.tasks)
        return self._source(sum(taken))

    def _source(self, num_units: int) -> Source:
        return Source(num_units, weight=self.config.weight, epochs=self.config.epochs)


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """What became of the rows of a dataset: rows = rows in units + dropped."""

    num_rows: int
    num_units: int
    num_validation_units: int
    num_tokens: int
    dropped: Counter = field(default_factory=Counter)


def find_datasets(
    store: Store, stage: Stage, config: SftConfig | DpoConfig, student: StudentFiles, *, seed: int, base_dir: Path
) -> list[Dataset]:
    """The stage's datasets, checked. Raises ConfigError and DataError before anything starts."""
    settings = UnitSettings(
        max_tokens=config.max_tokens,
        document_tokens=min(config.max_tokens, student.window or config.max_tokens),
        over_long=config.over_long,
        validation_fraction=config.validation_fraction,
        packing=isinstance(config, SftConfig) and config.packing,
        all_tokens=isinstance(config, SftConfig) and config.all_tokens,
    )
    if not config.data:
        _check_published(store, stage)
    own = TrainingData(path=f"{store.uri}/{PUBLISHED[stage][0]}")
    datasets = []
    for i, part in enumerate(config.data or [own]):
        place = f"{store.uri}/{part.path.removeprefix(RUN)}" if part.path.startswith(RUN) else part.path
        files = find_files(place, field=f"{stage}.data.{i}.path", base_dir=str(base_dir))
        check_columns(files, NEEDED[stage], schema=PUBLISHED[stage][1])
        chunks = find_chunks(files, chunk_rows=CHUNK_ROWS)
        num_rows = sum(chunk.stop - chunk.start for chunk in chunks)
        taken = None if part.rows is None else drawn_rows(num_rows, part.rows, seed=seed, name=part.path)
        digest = digest_of_files(files)
        about = [digest, student.digest, student.chat_template, settings, CHUNK_ROWS]
        about += ["all" if taken is None else sorted(taken)]
        key = sha256("\n".join(map(repr, about)).encode()).hexdigest()[:16]
        folder = f"work/{stage}/units/{key}"
        task = ChunkTask(
            stage=stage,
            run_uri=store.uri,
            folder=folder,
            files=files,
            chunk=chunks[0],
            rows=None,
            tokenizer=student.place,
            revision=student.revision,
            chat_template=student.chat_template,
            settings=settings,
        )
        tasks = []
        for chunk in chunks:
            mine = range(chunk.first, chunk.first + chunk.stop - chunk.start)
            rows = None if taken is None else frozenset(number for number in mine if number in taken)
            tasks.append(replace(task, chunk=chunk, rows=rows))
        told = _manifest_hash(files) or f"hash of its files `{digest}`"
        datasets.append(Dataset(config=part, place=place, digest=told, folder=folder, tasks=tuple(tasks)))
    return datasets


def _check_published(store: Store, stage: Stage) -> None:
    """Whether the stage before has left anything to train on."""
    published, maker = PUBLISHED[stage][0], {"sft": "generate", "dpo": "judge"}[stage]
    if not store.list(published):
        raise ConfigError(
            f"{store.uri}/{published}: nothing there to train on; run `moaa {maker}` first, or name data under "
            f"{stage}.data"
        )
    if store.exists(f"{published}/{MANIFEST}") and not read_manifest(store, published).rows:
        rules = {"sft": "`filters`", "dpo": "`filters` or `judge`, or take another judge"}[stage]
        raise DataError(
            f"{store.uri}/{published}: {maker} has left no row to train on; failures/{maker}.parquet says why for "
            f"every prompt: loosen the rules under {rules}"
        )


def _manifest_hash(files: SourceFiles) -> str:
    """The SHA-256 of the manifest beside a dataset's files, which holds those of all its shards; "" without one."""
    path = f"{files.paths[0].rsplit('/', 1)[0]}/{MANIFEST}"
    if not files.fs.exists(path):
        return ""
    return f"SHA-256 of its {MANIFEST} `{sha256(cast(bytes, files.fs.cat_file(path))).hexdigest()}`"


def close_dataset(store: Store, stage: Stage, dataset: Dataset, results: Sequence[ChunkResult]) -> Prepared:
    """Make a dataset's units readable, and write down the rows that are in none."""
    dropped: Counter = Counter()
    for result in results:
        dropped.update(result.dropped)
    prepared = Prepared(
        num_rows=sum(result.num_rows for result in results),
        num_units=sum(result.num_units for result in results),
        num_validation_units=sum(result.num_validation_units for result in results),
        num_tokens=sum(result.num_tokens for result in results),
        dropped=dropped,
    )
    if not prepared.num_units:
        causes = [f"{rule} {n:,}" for rule, n in dropped.most_common(5)]
        if prepared.num_validation_units:
            causes.append("all others are kept for validation")
        why = ", ".join(causes)
        raise DataError(
            f"{dataset.config.path}: no row of {prepared.num_rows:,} can be trained on ({why}); {_first(results)}"
        )
    _write_failures(store, stage, dataset, results)  # first: once finished, a dataset is not looked at again
    facts = {"path": dataset.config.path, "rows": prepared.num_rows, "dropped": dict(dropped)}
    finish(store, dataset.folder, facts)
    finish(store, dataset.validation_folder, facts)
    return prepared


def _first(results: Sequence[ChunkResult]) -> str:
    row_id, rule, detail = next((bad for result in results for bad in result.bad), ("", "", ""))
    return f"the first: {row_id}: {detail} ({rule})" if rule else "lower validation_fraction"


def _write_failures(store: Store, stage: Stage, dataset: Dataset, results: Sequence[ChunkResult]) -> None:
    records = [
        {
            "id": row_id,
            "source": dataset.config.path,
            "status": "dropped",
            "reason": rule,
            "detail": detail,
            "messages": [],
            "proposals": [],
        }
        for result in results
        for row_id, rule, detail in result.bad
    ]
    file = BytesIO()
    pq.write_table(pa.Table.from_pylist(records, schema=schemas.FAILURES), file, compression="zstd")
    name = dataset.folder.rsplit("/", 1)[-1]
    store.put(f"failures/{stage}-{name}.parquet", file.getvalue())


def known_facts(store: Store, dataset: Dataset) -> Prepared:
    """What close_dataset said of a dataset that was prepared by an earlier start."""
    units, held_out = UnitStore(store, dataset.folder), UnitStore(store, dataset.validation_folder)
    facts = units.manifest.facts
    return Prepared(
        num_rows=facts["rows"],
        num_units=len(units),
        num_validation_units=len(held_out),
        num_tokens=int(units.num_tokens.sum()),
        dropped=Counter(facts["dropped"]),
    )
