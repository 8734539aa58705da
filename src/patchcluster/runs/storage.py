"""Files that survive a kill at any instant: atomic writes, a lock, arrays without pickle."""

import json
import math
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import torch
from filelock import FileLock, Timeout
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..errors import RunError
from ..images.inputs import reason

LOCK_FILE = ".lock"
_DTYPES = {  # as safetensors names them
    torch.complex64: "C64",
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
_ADVICE = "Make room or choose another -o; the same command resumes"


def part_path(path: Path) -> Path:
    """Where a file is written before it gets its name; a kill can leave it there."""
    return path.with_name(f".{path.name}.part")


@contextmanager
def writing(path: Path, advice: str = _ADVICE) -> Iterator[None]:
    """Turn what a file system refuses, while a file or folder is changed, into a RunError."""
    try:
        yield
    except OSError as error:
        raise RunError(f"cannot write {str(path)!r}: {reason(error)}. {advice}") from error


def write_bytes(path: Path, data: bytes, durable: bool = True) -> None:
    """Write a file so that it is there whole or not at all, whenever the process is killed.

    `durable`: even after a power cut, which costs a wait for the disk.

    Raises RunError if the file system refuses.
    """
    with _replacing(path, durable) as file:
        file.write(data)


@contextmanager
def _replacing(path: Path, durable: bool = True) -> Iterator[BinaryIO]:
    """A file to write to, which gets its name when all is written; parameters as of `write_bytes`.

    Raises RunError if the file system refuses.
    """
    temporary = part_path(path)
    with writing(path):
        try:
            with _create(temporary) as file:
                yield file
                if durable:
                    file.flush()
                    os.fsync(file.fileno())
            os.replace(temporary, path)
        except BaseException:
            with suppress(OSError):  # the first one says more
                temporary.unlink()
            raise


def _create(path: Path) -> BinaryIO:
    """A new file, in a folder that is made if it is not there."""
    try:
        return open(path, "wb")
    except FileNotFoundError:
        path.parent.mkdir(parents=True, exist_ok=True)
        return open(path, "wb")


def write_json(path: Path, value: Any) -> None:
    """Write JSON in ASCII: file names that are not valid UTF-8 survive as escapes."""
    write_bytes(path, (json.dumps(value, indent=1, allow_nan=False) + "\n").encode("ascii"))


def _parse_json(text: str | bytes) -> Any:
    """The value of a JSON text. Raises ValueError also for what `write_json` would not write."""
    try:
        return json.loads(text, parse_float=_parse_finite, parse_constant=_parse_finite)
    except RecursionError as error:
        raise ValueError("nested too deep") from error


def _parse_finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text[:20]} is not a finite number")
    return value


def _unreadable(path: Path, error: Exception) -> RunError:
    return RunError(f"cannot read {str(path)!r} ({reason(error)}): scan again into another folder")


def read_json(path: Path) -> Any:
    """Read a JSON file. Raises RunError if it is missing or damaged."""
    try:
        return _parse_json(path.read_bytes())
    except (OSError, ValueError) as error:
        raise _unreadable(path, error) from error


def write_tensors(path: Path, tensors: Mapping[str, Tensor], note: Any = None) -> None:
    """Write tensors as safetensors, with a note (any JSON) in the header."""
    shapes = {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()}
    with stream_tensors(path, shapes, note) as add:
        for name, tensor in tensors.items():
            add(name, tensor)


class Add(Protocol):
    """What `stream_tensors` gives."""

    def __call__(self, name: str, part: Tensor, row: int | None = None) -> None: ...


@contextmanager
def stream_tensors(
    path: Path, shapes: Mapping[str, tuple[torch.dtype, Sequence[int]]], note: Any = None
) -> Iterator["Add"]:
    """Write tensors as safetensors, part by part, so that they need not be in memory as a whole.

    shapes: type and shape of each. Gives add(name, part): the next rows of a tensor, or all of it;
    add(name, part, row): those from a row on, each once.
    Raises RunError if the file system refuses.
    """
    # Those of larger values first, so that all are aligned, as the library does.
    names = sorted(shapes, key=lambda name: (-shapes[name][0].itemsize, name))
    header: dict[str, Any] = {"__metadata__": {"note": json.dumps(note)}}
    starts, sizes, end = {}, {}, 0
    for name in names:
        dtype, shape = shapes[name]
        starts[name], sizes[name] = end, math.prod(shape) * dtype.itemsize
        end += sizes[name]
        offsets = [starts[name], end]
        header[name] = {"dtype": _DTYPES[dtype], "shape": list(shape), "data_offsets": offsets}
    written = dict.fromkeys(names, 0)
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    start = 8 + len(text)
    with _replacing(path) as file:

        def add(name: str, part: Tensor, row: int | None = None) -> None:
            dtype, shape = shapes[name]
            if part.dtype != dtype:
                raise ValueError(f"{name} is {dtype}, not {part.dtype}")
            if not part.numel():  # its strides may be any, so that its bytes cannot be looked at
                return
            data = part.detach().contiguous().cpu().reshape(-1).view(torch.uint8).numpy()
            before = written[name] if row is None else row * math.prod(shape[1:]) * dtype.itemsize
            file.seek(start + starts[name] + before)
            file.write(data.data)
            written[name] += len(data)

        file.write(len(text).to_bytes(8, "little") + text)
        yield add
        if written != sizes:
            raise ValueError("parts of a tensor are missing, or there are too many")


def read_tensors(path: Path) -> tuple[dict[str, Tensor], Any]:
    """Read what `write_tensors` wrote: tensors by name, and the note. Raises RunError."""
    try:
        with safe_open(path, framework="pt") as file:
            note = _parse_json((file.metadata() or {}).get("note", "null"))
            return {name: file.get_tensor(name) for name in file.keys()}, note  # noqa: SIM118
    except (OSError, ValueError, SafetensorError) as error:
        raise _unreadable(path, error) from error


def read_tensor(path: Path, name: str, rows: slice | None = None) -> Tensor:
    """One tensor of such a file, or some of its rows; nothing else is read. Raises RunError."""
    try:
        with safe_open(path, framework="pt") as file:
            part: Tensor = file.get_tensor(name) if rows is None else file.get_slice(name)[rows]
            return part.clone()  # or the file would stay in memory with it
    except (OSError, ValueError, SafetensorError) as error:
        raise _unreadable(path, error) from error


def read_shapes(path: Path) -> tuple[dict[str, tuple[int, ...]], Any]:
    """Shapes of the tensors of such a file by name, and its note. Raises RunError."""
    try:
        with safe_open(path, framework="pt") as file:
            note = _parse_json((file.metadata() or {}).get("note", "null"))
            names = file.keys()
            return {name: tuple(file.get_slice(name).get_shape()) for name in names}, note
    except (OSError, ValueError, SafetensorError) as error:
        raise _unreadable(path, error) from error


def read_note(path: Path) -> Any:
    """Only the note of a file that `write_tensors` wrote; None if it is missing or damaged."""
    try:
        with safe_open(path, framework="pt") as file:
            return _parse_json((file.metadata() or {}).get("note", "null"))
    except (OSError, ValueError, SafetensorError):
        return None


def remove(path: Path) -> None:
    """Remove a folder and all that is in it, if it is there."""
    shutil.rmtree(path, ignore_errors=True)


@contextmanager
def lock(folder: Path) -> Iterator[None]:
    """Hold a folder against other processes, and remove it at the end if nothing was made in it.

    Raises RunError if another process holds it.
    """
    path = folder / LOCK_FILE
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    taken = f"{str(folder)!r} is in use by another process: wait for it, or choose another -o"
    with hold(path, taken):
        try:
            yield
        finally:
            with suppress(OSError):  # another process can open the lock again in between
                if os.listdir(folder) == [path.name]:
                    path.unlink()
                    folder.rmdir()


@contextmanager
def hold(path: Path, taken: str, advice: str = _ADVICE) -> Iterator[None]:
    """Hold a file against other processes; a killed process lets go by itself.

    taken: what to say if another process holds it; advice: as of `writing`. Raises RunError.
    """
    with writing(path, advice):
        try:
            held = FileLock(path, timeout=0).acquire()
        except Timeout as error:
            raise RunError(taken) from error
    with held:
        yield


def is_held(folder: Path) -> bool:
    """Say whether a folder is held by `lock`, in this process or another one."""
    path = folder / LOCK_FILE
    if not path.is_file():  # to look would make it
        return False
    try:
        with FileLock(path, timeout=0):
            return False
    except OSError as error:  # others: who may not write there cannot look
        return isinstance(error, Timeout)


def is_at(path: Path, descriptor: int) -> bool:
    """Say whether an open file still has its name."""
    try:
        return os.path.samestat(os.stat(path), os.fstat(descriptor))
    except FileNotFoundError:
        return False
