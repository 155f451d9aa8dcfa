"""The safetensors files of a Hugging Face folder: which tensor is where, and of what shape. No pickles are read."""

import json
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from moaa_ray.errors import ConfigError

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")
_FLOATS = ("F64", "F32", "F16", "BF16")


def weight_map_of(folder: Path) -> dict[str, str]:
    """Tensor -> file, for a folder of one or several safetensors files."""
    from safetensors import SafetensorError, safe_open

    index = folder / INDEX
    if index.is_file():
        try:
            weight_map = dict(json.loads(index.read_text(encoding="utf-8"))["weight_map"])
            if odd := [file for file in weight_map.values() if not isinstance(file, str)]:
                raise TypeError(f"{odd[0]!r:.40} instead of the name of a file")
        except (ValueError, KeyError, TypeError) as error:
            raise ConfigError(f"{index} is no index of weights: {error!r}; copy the model once more") from error
        for file in sorted(set(weight_map.values())):
            if Path(file).name != file or not (folder / file).is_file():
                raise ConfigError(f"{index} names {file!r}, which is not in the folder; copy the model once more")
        return weight_map
    if (folder / SINGLE).is_file():
        try:
            with safe_open(folder / SINGLE, framework="pt") as file:
                return dict.fromkeys(file.keys(), SINGLE)
        except (SafetensorError, OSError) as error:
            raise ConfigError(f"{folder / SINGLE} cannot be read: {error}; copy the model once more") from error
    pickles = sorted(path.name for pattern in _PICKLES for path in folder.glob(pattern))
    if pickles:
        raise ConfigError(
            f"student {folder} has its weights as pickles ({pickles[0]}), which can run code when read; convert it to "
            "safetensors with transformers' save_pretrained, where it is trusted"
        )
    raise ConfigError(f"student {folder} has neither {SINGLE} nor {INDEX}; name a folder with weights in safetensors")


def stored_shapes(folder: str | Path) -> dict[str, tuple[int, ...]]:
    """The shape of every tensor in the folder's safetensors files."""
    return {name: shape for name, (_, shape) in _stored(Path(folder)).items()}


def check_precision(folder: str | Path) -> None:
    """Raise ConfigError where tensors hold integers or bytes: read as weights, these would be others than meant."""
    for name, (dtype, _) in _stored(Path(folder)).items():
        if dtype not in _FLOATS:
            raise ConfigError(
                f"student {folder}: {name} is stored as {dtype}, want {', '.join(_FLOATS)}: training needs unquantised "
                "weights; choose those"
            )


def _stored(folder: Path) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Of every tensor in the folder's safetensors files what it is stored as, and its shape."""
    weight_map = weight_map_of(folder)
    with WeightFiles(folder) as files:
        slices = {name: files.slice_of(file, name) for name, file in weight_map.items()}
        return {name: (one.get_dtype(), tuple(one.get_shape())) for name, one in slices.items()}


class WeightFiles:
    """The safetensors files of a folder, each opened once, closed at the end of the `with` block."""

    def __init__(self, folder: Path):
        self._folder = folder
        self._open: dict[str, Any] = {}
        self._stack = ExitStack()

    def __enter__(self) -> "WeightFiles":
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def slice_of(self, file: str, name: str) -> Any:
        """A tensor of a file, of which parts can be read (safetensors' PySafeSlice)."""
        from safetensors import SafetensorError, safe_open

        try:
            if file not in self._open:
                self._open[file] = self._stack.enter_context(safe_open(self._folder / file, framework="pt"))
            return self._open[file].get_slice(name)
        except (SafetensorError, OSError) as error:
            raise ConfigError(
                f"{self._folder / file}: cannot read {name}: {error}; copy the model once more"
            ) from error
