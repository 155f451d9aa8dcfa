"""What the accelerators that MoAA usually runs on can do, as their vendor's data sheets say.

Dense figures throughout: where a data sheet prints a figure "with sparsity", half of it stands here.
Prices are left out: they change by the week and by the buyer, so the recipe says what a GPU-hour costs.
"""

from dataclasses import dataclass
from difflib import get_close_matches

from moaa_ray.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class GpuType:
    """One kind of GPU. Bytes are decimal (80 GB = 80e9), as printed; most cards report a little more."""

    name: str  # Ray's accelerator_type where Ray has one
    memory_bytes: float
    bf16_flops: float  # dense FLOP/s; fp16 where the card has no bf16 (T4, V100)
    fp8_flops: float  # dense FLOP/s; 0: no FP8 arithmetic
    bandwidth: float  # bytes/s between the GPU and its memory
    gpus_per_node: int  # in the usual server or cloud instance


def _gpu(name: str, memory_gb: float, bf16_tflops: float, fp8_tflops: float, gb_per_s: float, per_node: int) -> GpuType:
    return GpuType(
        name=name,
        memory_bytes=memory_gb * 1e9,
        bf16_flops=bf16_tflops * 1e12,
        fp8_flops=fp8_tflops * 1e12,
        bandwidth=gb_per_s * 1e9,
        gpus_per_node=per_node,
    )


GPU_TYPES: dict[str, GpuType] = {
    gpu.name: gpu
    for gpu in (
        #    name          GB    bf16   fp8    GB/s  per node
        _gpu("A100-40G", 40, 312, 0, 1555, 8),
        _gpu("A100-80G", 80, 312, 0, 2039, 8),
        _gpu("H100", 80, 989, 1979, 3350, 8),
        _gpu("H200", 141, 989, 1979, 4800, 8),
        _gpu("B200", 180, 2250, 4500, 7700, 8),
        _gpu("L40S", 48, 362, 733, 864, 8),
        _gpu("A10G", 24, 70, 0, 600, 4),
        _gpu("L4", 24, 121, 242, 300, 8),
        _gpu("T4", 16, 65, 0, 300, 4),
        _gpu("V100", 16, 125, 0, 900, 8),
        _gpu("MI300X", 192, 1307, 2615, 5300, 8),
    )
}
"""By name. Sources, the vendor's data sheet of that name unless said:
A100: "NVIDIA A100 Tensor Core GPU" (SXM). H100, H200: "NVIDIA H100 / H200 Tensor Core GPU" (SXM).
B200: "NVIDIA Blackwell" (HGX B200: 180 GB, 7.7 TB/s, 4.5 and 9 PFLOP/s sparse).
L40S: "NVIDIA L40S". L4: "NVIDIA L4" (sparse 242 and 485).
T4: "NVIDIA T4" (fp16, there is no bf16; 300 GB/s in the product brief). A10G: AWS's sheet of it (G5 instances).
V100: "NVIDIA V100" (SXM2 16 GB, fp16, no bf16). MI300X: "AMD Instinct MI300X".
Usual nodes: HGX boards have 8 (as AWS p4d, p5, p6); g6.48xlarge 8 L4, g6e.48xlarge 8 L40S, g5.12xlarge 4 A10G,
g4dn.12xlarge 4 T4, p3.16xlarge 8 V100.
"""

_ALIASES = {"A100": "A100-40G", "A100-40GB": "A100-40G", "A100-80GB": "A100-80G", "H100-80G": "H100"}
"""Other names in use; plain "A100" is what Ray says where it cannot tell, so the smaller one is taken."""


def gpu_type(name: str) -> GpuType:
    """The type called so; case, spaces and a leading "NVIDIA" do not matter. Unknown names raise ConfigError."""
    plain = name.strip().upper().replace("NVIDIA", "").strip(" -_").replace(" ", "-").replace("_", "-")
    plain = _ALIASES.get(plain, plain)
    if plain in GPU_TYPES:
        return GPU_TYPES[plain]
    near = get_close_matches(plain, [*GPU_TYPES, *_ALIASES], n=1, cutoff=0.4)
    hint = f"did you mean {near[0]}? " if near else ""
    raise ConfigError(f"gpu = {name!r} is not a GPU type known here; {hint}Known: {', '.join(GPU_TYPES)}")
