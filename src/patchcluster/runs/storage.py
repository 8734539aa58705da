"""Files that survive a kill at any instant: atomic writes, a lock, arrays without pickle."""

import json
import math
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from ..errors import RunError
from ..images.inputs import reason

if TYPE_CHECKING:
    from torch import Tensor

LOCK_FILE = ".lock"
_ADVICE = "Make room or choose another -o; the same command resumes"


def part_path(path: Path) -> Path:
    """Return where a file is written before it gets its name; a kill can leave it there."""
    return path.with_name(f".{path.name}.part")


@contextmanager
def writing(path: Path, advice: str = _ADVICE) -> Iterator[None]:
    """Turn what a file system refuses, while a file or folder is changed, into a RunError."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        raise RunError(f"cannot write {str(path)!r}: {reason(error)}. {advice}") from error


def write_bytes(path: Path, data: bytes, durable: bool = True) -> None:
    """Write a file so that it is there whole or not at all, whenever the process is killed.

    durable: even after a power cut, which costs a wait for the disk.
    Raises RunError if the file system refuses.
    """
    part = part_path(path)
    with writing(path):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with open(part, "wb") as file:
                file.write(data)
                if durable:
                    file.flush()
                    os.fsync(file.fileno())
            os.replace(part, path)
        except BaseException:
            with suppress(OSError):  # the first one says more
                part.unlink()
            raise


def write_json(path: Path, value: Any) -> None:
    """Write JSON in ASCII: file names that are not valid UTF-8 survive as escapes."""
    write_bytes(path, (json.dumps(value, indent=1, allow_nan=False) + "\n").encode("ascii"))


def clean(path: str) -> str:
    """Return a path as valid UTF-8, with question marks for bytes that are not."""
    return path.encode("utf-8", "replace").decode()


def _parse_json(text: str | bytes) -> Any:
    """Parse a JSON text. Raises ValueError also for what `write_json` would not write."""
    try:
        return json.loads(text, parse_float=_parse_finite, parse_constant=_parse_finite)
    except RecursionError as error:
        raise ValueError("nested too deep") from error


def _parse_finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text[:20]} is not a finite number")
    return value


def damaged(path: Path, why: str | Exception) -> RunError:
    """Make the error of a file of a run whose content cannot be used."""
    words = why if isinstance(why, str) else repr(why)  # of a KeyError the text is the key alone
    return RunError(f"{str(path)!r} is damaged ({words}): scan again into another folder")


def unreadable(path: Path, error: Exception) -> RunError:
    """Make the error of a file of a run that cannot be read."""
    return RunError(f"cannot read {str(path)!r} ({reason(error)}): scan again into another folder")


def read_json(path: Path) -> Any:
    """Read a JSON file. Raises RunError if it is missing or damaged."""
    try:
        return _parse_json(path.read_bytes())
    except (OSError, ValueError) as error:
        raise unreadable(path, error) from error


def write_tensors(path: Path, tensors: Mapping[str, "Tensor"], note: Any = None) -> None:
    """Write tensors as safetensors, with a note (any JSON) in the header.

    Raises RunError if the file system refuses.
    """
    from safetensors.torch import save_file  # loads torch

    whole = {name: tensor.contiguous() for name, tensor in tensors.items()}
    owners = {tensor.data_ptr(): name for name, tensor in whole.items()}
    for name, tensor in whole.items():
        if owners[tensor.data_ptr()] != name:  # safetensors refuses tensors that share memory
            whole[name] = tensor.clone()
    # A folder: safetensors makes a file next to the one it is to write, which a kill would leave.
    part = part_path(path)
    file = part / path.name
    with writing(path):
        try:
            part.mkdir(parents=True, exist_ok=True)
            save_file(whole, file, {"note": json.dumps(note)})
            file.chmod(part.stat().st_mode & 0o666)  # safetensors lets nobody else read it
            with open(file, "rb+") as written:
                os.fsync(written.fileno())
            os.replace(file, path)
        finally:
            remove(part)


@contextmanager
def _open_tensors(path: Path, framework: str = "numpy") -> Iterator[Any]:
    """Open what `write_tensors` wrote. Raises RunError if it is missing or damaged."""
    try:
        with safe_open(path, framework=framework) as file:
            yield file
    except (OSError, TypeError, ValueError, SafetensorError) as error:
        raise unreadable(path, error) from error


def _note(file: Any) -> Any:
    return _parse_json((file.metadata() or {}).get("note", "null"))


def read_arrays(path: Path) -> dict[str, NDArray[Any]]:
    """Read what `write_tensors` wrote as arrays by name, without PyTorch. Raises RunError."""
    with _open_tensors(path) as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


def read_tensors(path: Path) -> tuple[dict[str, "Tensor"], Any]:
    """Read what `write_tensors` wrote: tensors by name, and the note. Raises RunError."""
    with _open_tensors(path, "pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}, _note(file)  # noqa: SIM118


def read_tensor(path: Path, name: str, rows: slice | None = None) -> "Tensor":
    """Read one tensor of such a file, or some of its rows, and nothing else. Raises RunError."""
    with _open_tensors(path, "pt") as file:
        part: Tensor = file.get_tensor(name) if rows is None else file.get_slice(name)[rows]
        return part.clone()  # or the file would stay in memory with it


def read_shapes(path: Path) -> tuple[dict[str, tuple[int, ...]], Any]:
    """Read the shapes of the tensors of such a file by name, and its note. Raises RunError."""
    with _open_tensors(path) as file:
        names = file.keys()
        return {name: tuple(file.get_slice(name).get_shape()) for name in names}, _note(file)


def read_note(path: Path) -> Any:
    """Read only the note of such a file; None if the file is missing or damaged."""
    with suppress(RunError), _open_tensors(path) as file:
        return _note(file)
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
