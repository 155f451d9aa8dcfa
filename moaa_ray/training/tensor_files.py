"""safetensors files written and read piece by piece, on a disk or in an object store.

A header of JSON (name -> dtype, shape, place in the file), then the tensors' bytes: a tensor is written as it comes,
so a file larger than memory is no trouble, and a range of a tensor's rows is read without the rest. The safetensors
library does neither for object stores.
"""

import io
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from typing import IO, cast

import fsspec
import torch
from torch import Tensor

from moaa_ray.data.local_store import told
from moaa_ray.errors import DataError

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "BF16": torch.bfloat16,
    "F16": torch.float16,
    "I64": torch.int64,
    "I32": torch.int32,
}
_NAMES = {dtype: name for name, dtype in DTYPES.items()}
_PIECE_BYTES = 64 * 2**20
_MAX_HEADER_BYTES = 100 * 2**20  # the safetensors library's own limit


@dataclass(frozen=True, kw_only=True)
class Layout:
    """What a file says of one tensor."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int = 0
    """Byte of the file where it begins; set when a header is read."""

    @property
    def num_bytes(self) -> int:
        """Bytes of its elements."""
        return prod(self.shape) * self.dtype.itemsize


@contextmanager
def new_file(folder_uri: str, name: str) -> Iterator[IO[bytes]]:
    """A stream into a new file, which is durable when the block ends. Raises StageError where it cannot be written."""
    fs, folder = fsspec.core.url_to_fs(folder_uri)
    with told(folder_uri, name):
        if "file" in ([fs.protocol] if isinstance(fs.protocol, str) else fs.protocol):
            os.makedirs(folder, exist_ok=True)
            with open(f"{folder}/{name}", "xb") as stream:
                yield stream
                stream.flush()
                os.fsync(stream.fileno())
            handle = os.open(folder, os.O_RDONLY)
            try:
                os.fsync(handle)
            finally:
                os.close(handle)
            return
        with cast("IO[bytes]", fs.open(f"{folder}/{name}", "wb")) as stream:
            yield stream


def write_header(stream: IO[bytes], layouts: Mapping[str, Layout]) -> int:
    """Write the header of a file that will hold these tensors in this order; returns the whole file's bytes to be."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, layout in layouts.items():
        header[name] = {
            "dtype": _NAMES[layout.dtype],
            "shape": list(layout.shape),
            "data_offsets": [end, end + layout.num_bytes],
        }
        end += layout.num_bytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    stream.write(len(text).to_bytes(8, "little") + text)
    return 8 + len(text) + end


def write_tensor(stream: IO[bytes], tensor: Tensor) -> None:
    """Append a tensor's bytes."""
    view = _bytes_of(tensor.detach().cpu().contiguous())
    for start in range(0, len(view), _PIECE_BYTES):
        stream.write(view[start : start + _PIECE_BYTES])


def read_header(stream: IO[bytes]) -> dict[str, Layout]:
    """The tensors of a seekable file. Raises DataError where it is none of ours."""
    size = int.from_bytes(stream.read(8), "little")
    if size > _MAX_HEADER_BYTES:
        raise DataError(f"not a safetensors file: a header of {size} bytes; the file is damaged, delete it")
    try:
        header = json.loads(stream.read(size))
        header.pop("__metadata__", None)
        return {
            name: Layout(
                dtype=DTYPES[entry["dtype"]], shape=tuple(entry["shape"]), start=8 + size + entry["data_offsets"][0]
            )
            for name, entry in header.items()
        }
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"not a safetensors file: {error!r} in its header; the file is damaged, delete it") from error


def read_part(stream: IO[bytes], layout: Layout, offsets: Sequence[int], sizes: Sequence[int]) -> Tensor:
    """The box of `sizes` at `offsets` of a stored tensor, on the CPU; whole rows are read.

    Raises DataError where the file ends before.
    """
    rows, first = (sizes[0], offsets[0]) if layout.shape else (1, 0)
    row_shape = layout.shape[1:]
    row_bytes = prod(row_shape) * layout.dtype.itemsize
    read = torch.empty((rows, *row_shape) if layout.shape else (), dtype=layout.dtype)
    stream.seek(layout.start + first * row_bytes)
    if _read_into(stream, _bytes_of(read)) < read.nbytes:
        raise DataError(f"a safetensors file ends before its tensor of shape {list(layout.shape)}; it is damaged")
    for dim in range(1, len(layout.shape)):
        read = read.narrow(dim, offsets[dim], sizes[dim])
    return read


def _bytes_of(tensor: Tensor) -> memoryview:
    """The memory of a contiguous CPU tensor."""
    return memoryview(tensor.reshape(-1).view(torch.uint8).numpy())  # pyright: ignore


def _read_into(stream: IO[bytes], view: memoryview) -> int:
    done = 0
    while done < len(view):
        num = cast(io.BufferedIOBase, stream).readinto(view[done : done + _PIECE_BYTES])
        if not num:
            break
        done += num
    return done
