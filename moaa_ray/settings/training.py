"""The training half of a recipe: the student, and how SFT and DPO train it. Defaults are the paper's, section 4.1.

Where the paper contradicts itself (an SFT rate of 8.0e-6 in section 4.1 and of 8.0e-7 in appendix A; a "batch size of
128" and a "gradient accumulation of 128") the first of each stands here: 8.0e-7 is also the DPO rate, so probably a
slip of the pen, and 128 is what the recipe that the paper follows (SimPO) fixes. What the paper does not state
(schedule, warm-up, length, weight decay, precision, mask) is filled in from that recipe.
"""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from moaa_ray.settings.base import Config, Execution, LabelKey, LabelValue

TrackerName = Literal["tensorboard", "wandb", "mlflow"]
BestBy = Literal["loss", "accuracy", "margin"]


class StudentConfig(Config):
    """The model to be trained."""

    model: str
    """A Hugging Face folder with safetensors, a hub id, or a URI; relative paths count from the recipe's folder."""
    revision: str = ""
    """Commit or tag of a hub id; empty: the newest."""
    chat_template: str = ""
    """A file with the template to train and export with; empty: the tokenizer's own."""


class TrainingData(Config):
    """One dataset of a training stage. A pack or pair comes at most once in each pass over its dataset."""

    path: str
    """Folder, file, pattern or URI of Parquet, JSON Lines or Arrow with the columns of RUN/sft or RUN/pairs.

    RUN/... is a folder of this run, as in RUN/baselines/random-5. A finish_reason of length, in a column of this name
    (of pairs chosen_finish_reason, rejected_finish_reason) or beside a message's content, says that a completion was
    cut: its end is then not taught."""
    rows: int | None = Field(default=None, ge=1)
    """Train on so many of its rows, drawn by the seed; unset: all."""
    weight: float = Field(default=1.0, gt=0, le=100)
    """Part of it that an epoch takes: 0.5 is half of it, and the next epoch the other half; 2 is all of it twice."""
    epochs: int | None = Field(default=None, ge=1)
    """Only in the first so many epochs; unset: in all."""


class LoraConfig(Config):
    """Low-rank adapters instead of all weights; the exported model has them merged. `lora: {}` takes these defaults."""

    rank: int = Field(default=16, ge=1)
    alpha: float = Field(default=32.0, gt=0)
    """An adapter's output is multiplied by alpha / rank."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Part of an adapter's inputs that is set to 0 in training. Workers draw their own: above 0, another number of
    them, or another micro_batch, trains a slightly different model."""
    targets: list[str] = Field(default_factory=list)
    """Names of linear layers, as in [q_proj, v_proj]; empty: all of the decoder layers."""


class TrainingConfig(Config):
    """What SFT and DPO have in common."""

    data: list[TrainingData] = Field(default_factory=list)
    """Empty: what the stage before has left in the run directory."""
    epochs: int = Field(default=5, ge=1)
    batch: int = Field(default=128, ge=1)
    """Units per optimizer step over all workers: packs in SFT (documents without packing), pairs in DPO."""
    max_tokens: int = Field(default=2048, ge=8)
    """Tokens of a pack, or of one completion with its prompt."""
    over_long: Literal["drop", "truncate"] = "drop"
    """Documents above max_tokens, or above the student's own window, are dropped, or lose the end of their completion,
    without an end-of-turn token."""
    validation_fraction: float = Field(default=0.0, ge=0, lt=1)
    """Part of the prompts that is kept for validation, by the hash of their ids: the same in SFT and DPO."""

    lora: LoraConfig | None = None
    """Train adapters on the frozen student; unset: all weights. They want about ten times the learning rate."""
    learning_rate: float = Field(gt=0)
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    warmup_ratio: float = Field(default=0.1, ge=0, le=1)
    """Part of the steps in which the rate rises from 0."""
    weight_decay: float = Field(default=0.0, ge=0)
    betas: list[Annotated[float, Field(ge=0, lt=1)]] = Field(default=[0.9, 0.95], min_length=2, max_length=2)
    eps: float = Field(default=1e-8, gt=0)
    max_grad_norm: float = Field(default=1.0, gt=0)
    precision: Literal["bf16", "float32"] = "bf16"
    """bf16: bfloat16 arithmetic on float32 master weights."""

    strategy: Annotated[Literal["fsdp2", "ddp", "deepspeed", "single"], Execution] = "fsdp2"
    workers: Annotated[Annotated[int, Field(ge=1)] | Literal["auto"], Execution] = "auto"
    """Processes, one GPU each; auto: every GPU of the nodes with node_labels, or one process without any."""
    device: Annotated[Literal["auto", "gpu", "cpu"], Execution] = "auto"
    micro_batch: Annotated[int, Execution] = Field(default=1, ge=1)
    """Units that one worker computes at once; the rest of the batch is accumulated."""
    cpu_offload: Annotated[bool, Execution] = False
    """deepspeed only: optimizer states and weights live in host memory."""
    activation_checkpointing: Annotated[bool, Execution] = True
    compile: Annotated[bool, Execution] = False
    keep_gathered: Annotated[bool, Execution] = False
    """fsdp2: every worker keeps the whole weights in bfloat16 through a step, instead of gathering them twice for every
    microbatch: faster, where 2 bytes a weight more fit."""
    sharding: Annotated[Literal["node", "all"], Execution] = "node"
    """fsdp2: weights, gradients and optimizer are sharded over the workers of one node, each node having a replica
    (HSDP), or over all workers, where a node is too small for the model; that sends more between nodes."""
    num_cpus: Annotated[float, Execution] = Field(default=1.0, gt=0)
    """CPU slots of one worker."""
    node_labels: Annotated[dict[LabelKey, LabelValue], Execution] = Field(default={})
    """Labels that a node must have for a worker to stand on it; as models.NAME.node_labels. Where GPU types differ,
    {ray.io/accelerator-type: H100} takes those alone."""

    validate_every: Annotated[int | None, Execution] = Field(default=None, ge=1)
    """Steps between validations, beside those at the end of every epoch."""
    checkpoint_every: Annotated[int | None, Execution] = Field(default=None, ge=1)
    """Steps between checkpoints; unset: a twentieth of the run. The end of every epoch and every validation that is
    the best so far have one too."""
    keep_checkpoints: Annotated[int, Execution] = Field(default=2, ge=1)
    """Newest checkpoints to keep, beside the best one and those at the ends of epochs."""
    export: Annotated[Literal["last", "best"], Execution] = "last"
    """Which state becomes the model: after the last step, or at the best validation."""
    early_stopping: int | None = Field(default=None, ge=1)
    """Stop after so many validations without a better one; unset: never."""
    track: Annotated[list[TrackerName], Execution] = Field(default=["tensorboard"])
    """Who is told of every step's metrics, beside metrics/<stage>.jsonl; wandb and mlflow have to be installed."""
    max_restarts: Annotated[int, Execution] = Field(default=3, ge=0)
    """How often lost workers or nodes are replaced before the stage fails."""

    @property
    def judged_by(self) -> BestBy:
        """The metric of validation by which one step is better than another."""
        return "loss"

    @property
    def cpu_slots(self) -> float:
        """CPU slots of all processes; as many as the cluster has GPUs count as one."""
        return self.num_cpus * (self.workers if self.workers != "auto" else 1)

    @model_validator(mode="after")
    def _validation_is_there(self) -> Self:
        needs = {"export = best": self.export == "best", "early_stopping": self.early_stopping is not None}
        lacking = [name for name, is_wanted in needs.items() if is_wanted]
        if lacking and not self.validation_fraction:
            raise ValueError(f"{lacking[0]} needs validation; set validation_fraction, e.g. to 0.02")
        return self

    @model_validator(mode="after")
    def _strategy_does_it(self) -> Self:
        is_fsdp2, is_deepspeed = self.strategy == "fsdp2", self.strategy == "deepspeed"
        for setting, is_refused, why in (
            ("keep_gathered = true", self.keep_gathered and not is_fsdp2, "only fsdp2 gathers; leave it out"),
            ("sharding = all", self.sharding == "all" and not is_fsdp2, "only fsdp2 has the choice; leave it out"),
            ("cpu_offload = true", self.cpu_offload and not is_deepspeed, "only deepspeed offloads; leave it out"),
            ("compile = true", self.compile and is_deepspeed, "its hooks split compiled graphs; choose fsdp2"),
            ("lora", self.lora is not None and is_deepspeed, "not supported; choose fsdp2, ddp or single"),
        ):
            if is_refused:
                raise ValueError(f"{setting} with strategy = {self.strategy}: {why}")
        return self

    @model_validator(mode="after")
    def _one_process(self) -> Self:
        if self.strategy == "single" and self.workers not in ("auto", 1):
            raise ValueError(f"strategy = single with workers = {self.workers}: it is one process; choose fsdp2")
        return self


class SftConfig(TrainingConfig):
    """Supervised fine-tuning on RUN/sft."""

    learning_rate: float = Field(default=8e-6, gt=0)
    epochs: int = Field(default=6, ge=1)
    packing: bool = True
    """Lay whole documents together into packs of max_tokens; none sees another."""
    all_tokens: bool = False
    """Train on prompts too, instead of completions and their end-of-turn tokens only."""


class DpoConfig(TrainingConfig):
    """Preference training on RUN/pairs, from the SFT model, which is also the reference."""

    learning_rate: float = Field(default=8e-7, gt=0)
    loss: Literal["sigmoid", "ipo", "hinge", "robust", "simpo", "orpo", "kto"] = "sigmoid"
    beta: float = Field(default=0.01, gt=0)
    label_smoothing: float = Field(default=0.0, ge=0, lt=0.5)
    """robust: assumed part of the pairs whose verdict is wrong."""
    gamma: float = Field(default=0.5, ge=0)
    """simpo: target margin of beta x the mean log-probability."""
    length_normalized: bool = False
    """sigmoid, hinge, robust: log-ratios per token; beta is then larger by about a completion's length, e.g. 5."""
    sft_weight: float = Field(default=0.0, ge=0)
    """Weight of the chosen completions' loss per token, added to the preference loss."""
    ld_alpha: float | None = Field(default=None, ge=0, le=1)
    """Weight of the tokens beyond the length of the pair's shorter completion (LD-DPO); unset: 1."""
    best_by: BestBy = "loss"
    """Of validation: what the best step has least of (loss) or most of; early stopping goes by it too."""
    share_prompt: Annotated[bool, Execution] = True
    """A pair's prompt is computed once for both completions, with the same log-probabilities."""
    student: str = ""
    """The model to start from, RUN/... one of this run; empty: RUN/models/sft."""

    @property
    def judged_by(self) -> BestBy:
        """See TrainingConfig."""
        return self.best_by

    @model_validator(mode="after")
    def _weights_are_of_sums(self) -> Self:
        if self.ld_alpha is not None and self.loss in ("ipo", "simpo", "orpo"):
            raise ValueError(
                f"ld_alpha = {self.ld_alpha} with loss = {self.loss}: it weighs sums, and this loss compares means "
                "per token; leave ld_alpha out, or choose sigmoid"
            )
        if self.length_normalized and self.loss not in ("sigmoid", "hinge", "robust"):
            raise ValueError(
                f"length_normalized = true with loss = {self.loss}: it is of sigmoid, hinge and robust; ipo, simpo and "
                "orpo are per token as they are, kto is of sums; leave it out"
            )
        if self.length_normalized and self.ld_alpha is not None:
            raise ValueError(
                f"length_normalized = true with ld_alpha = {self.ld_alpha}: one goes by means, the other weighs sums; "
                "leave one of them out"
            )
        return self

    @model_validator(mode="after")
    def _loss_has_it(self) -> Self:
        for name, owner in (("label_smoothing", "robust"), ("gamma", "simpo")):
            value = getattr(self, name)
            if self.loss != owner and value != type(self).model_fields[name].default:
                raise ValueError(
                    f"{name} = {value} with loss = {self.loss}: only {owner} has it; leave it out, or choose {owner}"
                )
        return self
