"""A lack of memory: how it is told from other errors, and which settings make room."""

from typing import TYPE_CHECKING

from moaa_ray.errors import StageError

if TYPE_CHECKING:
    from moaa_ray.training.job import Job

_SAID = ("out of memory", "can't allocate memory", "not enough memory", "CUBLAS_STATUS_ALLOC_FAILED")
"""By CUDA, by torch's allocator for CPUs on Linux and elsewhere, by cuBLAS; all but the first as plain RuntimeError."""


def is_lack_of_memory(error: BaseException) -> bool:
    """Whether an allocation failed, on a GPU or in the host's memory."""
    is_told = isinstance(error, RuntimeError) and any(said in str(error) for said in _SAID)
    return is_told or isinstance(error, MemoryError)


def out_of_memory(job: "Job", what: str) -> StageError:
    """What happened, and the settings that make room, those that can still be turned only."""
    ways = []
    if job.micro_batch > 1:
        ways.append(f"lower {job.stage}.micro_batch (now {job.micro_batch})")
    if not job.numerics.activation_checkpointing:
        ways.append("set activation_checkpointing: true")
    if job.numerics.keep_gathered:
        ways.append("set keep_gathered: false")
    if job.strategy == "fsdp2" and job.numerics.sharding == "node":
        ways.append("spread the model over more workers, with sharding: all over several nodes")
    elif job.strategy in ("fsdp2", "deepspeed"):
        ways.append("spread the model over more workers")
    else:
        ways.append("set strategy: fsdp2 with more workers")
    return StageError(
        f"{job.stage}: {what}; {', '.join(ways)}: the same command then goes on from the last checkpoint. Or lower "
        "max_tokens, in another run_dir"
    )
