"""From the recipe's training section to the plain values that training/ works with."""

from collections.abc import Mapping, Sequence

from moaa_ray.core.batches import BatchPlan
from moaa_ray.core.packing_gpus import Cluster
from moaa_ray.data.student_files import student_folder
from moaa_ray.errors import ConfigError
from moaa_ray.loading import LoadedTraining
from moaa_ray.planning.counting import part_of_epoch
from moaa_ray.planning.pools import labelled_nodes
from moaa_ray.planning.training import TrainingPlan, plan_training
from moaa_ray.settings.training import DpoConfig, SftConfig, TrainingData
from moaa_ray.training.checkpoint import Checkpoints
from moaa_ray.training.export import check_generation
from moaa_ray.training.job import Cadence, Job, Rates
from moaa_ray.training.lora import LoraSettings, add_adapters
from moaa_ray.training.losses import LossSettings
from moaa_ray.training.optimizer import AdamWSettings
from moaa_ray.training.preparing import ChunkTask, tokenizer_of
from moaa_ray.training.step import PreferenceSettings
from moaa_ray.training.strategies.base import Numerics
from moaa_ray.training.student import check_attention
from moaa_ray.training.trainer import Workers
from moaa_ray.training.weights import build_student, check_weights
from moaa_ray.training_stage.card import model_card
from moaa_ray.training_stage.datasets import Dataset, Prepared, Stage, StudentFiles


def workers_of(stage: Stage, config: SftConfig | DpoConfig, cluster: Cluster) -> Workers:
    """The processes that this cluster gives the stage. Raises ConfigError where it has too little, with the sum."""
    there = labelled_nodes(f"{stage}.node_labels", frozenset(config.node_labels.items()), cluster)
    num_gpus, num_cpus = there.num_gpus, there.num_cpus
    where = "the nodes with its node_labels have" if config.node_labels else "the cluster has"
    use_gpu = config.device == "gpu" or (config.device == "auto" and num_gpus > 0)
    num = config.workers if config.workers != "auto" else (max(1, num_gpus) if use_gpu else 1)
    num = 1 if config.strategy == "single" else num
    if use_gpu and num > num_gpus:
        raise ConfigError(f"{stage}.workers = {num} on GPUs: {where} {num_gpus}; lower workers, or set device: cpu")
    if num * config.num_cpus > num_cpus:
        raise ConfigError(
            f"{stage}.workers = {num} x num_cpus = {config.num_cpus:g}: {where} {num_cpus:g} CPU slots; lower one"
        )
    return Workers(
        num=num,
        use_gpu=use_gpu,
        num_cpus=config.num_cpus,
        max_restarts=config.max_restarts,
        node_labels=config.node_labels,
    )


def lora_of(config: SftConfig | DpoConfig, *, seed: int) -> LoraSettings | None:
    """The adapters to train; None: all weights."""
    lora = config.lora
    if lora is None:
        return None
    return LoraSettings(rank=lora.rank, alpha=lora.alpha, dropout=lora.dropout, targets=tuple(lora.targets), seed=seed)


def check_student(config: SftConfig | DpoConfig, student: StudentFiles, task: ChunkTask) -> None:
    """Raise ConfigError for a tokenizer, model or lora.targets that cannot be trained, before anything starts.

    Also for what would only be told at the export, when mending it makes another student of the folder.
    """
    folder = student_folder(student.place, student.revision)
    model = build_student(folder)  # first: tokenizers too are loaded by way of the config, and are then said to be bad
    tokenizer_of(task)
    check_generation(folder)
    check_attention(model)
    check_weights(model, folder)
    if (lora := lora_of(config, seed=0)) is not None:
        add_adapters(model, lora, is_bf16=False)


def check_checkpoints(run_dir: str, stage: Stage, fingerprint: Mapping[str, str]) -> None:
    """Raise ConfigError, before anything starts, where the newest checkpoint is of another run or recipe."""
    Checkpoints(f"{run_dir}/checkpoints/{stage}", fingerprint=fingerprint).newest()


def plan_of_stage(
    loaded: LoadedTraining, stage: Stage, cluster: Cluster, prepared: Sequence[tuple[TrainingData, Prepared]]
) -> TrainingPlan | None:
    """What `moaa plan` says of the stage with so many rows as there are; None where it says that it cannot fit."""
    epochs = (loaded.recipe.sft if stage == "sft" else loaded.recipe.dpo).epochs
    rows = sum((found.num_rows - sum(found.dropped.values())) * part_of_epoch(data, epochs) for data, found in prepared)
    try:
        return plan_training(
            loaded.recipe, stage, loaded.recipe.student, cluster, max(1, round(rows)), base_dir=loaded.base_dir
        )
    except ConfigError:  # it knows by sums what training is about to find out, and is not always right
        return None


def make_job(
    loaded: LoadedTraining,
    stage: Stage,
    config: SftConfig | DpoConfig,
    student: StudentFiles,
    datasets: list[Dataset],
    plan: BatchPlan,
    *,
    fingerprint: Mapping[str, str],
    epoch: int,
    num_held_out: int,
    checkpoint_every: int,
) -> Job:
    """The stage in plain values."""
    adamw = AdamWSettings(betas=(config.betas[0], config.betas[1]), eps=config.eps, weight_decay=config.weight_decay)
    return Job(
        stage=stage,
        run_uri=loaded.run_dir,
        epoch=epoch,
        student=student.place,
        revision=student.revision,
        student_digest=student.digest,
        chat_template=student.chat_template,
        units=tuple(dataset.folder for dataset in datasets),
        validation=tuple(dataset.validation_folder for dataset in datasets) if num_held_out else (),
        plan=plan,
        micro_batch=config.micro_batch,
        strategy=config.strategy,
        cpu_offload=config.cpu_offload,
        lora=lora_of(config, seed=loaded.recipe.seed),
        numerics=Numerics(
            is_bf16=config.precision == "bf16",
            activation_checkpointing=config.activation_checkpointing,
            compile=config.compile,
            keep_gathered=config.keep_gathered,
            sharding=config.sharding,
            max_grad_norm=config.max_grad_norm,
            adamw=adamw,
        ),
        rates=Rates(peak=config.learning_rate, kind=config.schedule, warmup_ratio=config.warmup_ratio),
        cadence=Cadence(
            validate_every=config.validate_every,
            checkpoint_every=checkpoint_every,
            keep_checkpoints=config.keep_checkpoints,
            early_stopping=config.early_stopping,
            export=config.export,
            best_by=config.judged_by,
        ),
        preference=_preference(config) if isinstance(config, DpoConfig) else None,
        fingerprint=fingerprint,
        card=model_card(loaded, stage, student, datasets, fingerprint),
    )


def _preference(config: DpoConfig) -> PreferenceSettings:
    loss = LossSettings(
        beta=config.beta,
        label_smoothing=config.label_smoothing,
        gamma=config.gamma,
        length_normalized=config.length_normalized,
    )
    return PreferenceSettings(
        kind=config.loss,
        loss=loss,
        sft_weight=config.sft_weight,
        ld_alpha=config.ld_alpha,
        share_prompt=config.share_prompt,
    )
