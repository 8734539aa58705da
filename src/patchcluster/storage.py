"""Files that survive a kill at any instant: atomic writes, a lock, arrays without pickle."""

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from .errors import RunError


def write_bytes(path: Path, data: bytes, durable: bool = True) -> None:
    """Write a file so that it is there whole or not at all, whenever the process is killed.

    `durable`: even after a power cut, which costs a wait for the disk.

    Raises RunError if the file system refuses.
    """
    temporary = path.with_name(f".{path.name}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "wb") as file:
            file.write(data)
            if durable:
                file.flush()
                os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        with suppress(OSError):  # where it could not be written it may not be there
            temporary.unlink()
        raise RunError(
            f"cannot write {str(path)!r}: {(error.strerror or str(error)).lower()}. Make room or "
            "choose another -o; the same command resumes"
        ) from error


def write_json(path: Path, value: Any) -> None:
    """Write JSON in ASCII: file names that are not valid UTF-8 survive as escapes."""
    write_bytes(path, (json.dumps(value, indent=1, allow_nan=False) + "\n").encode("ascii"))


def read_json(path: Path) -> Any:
    """Read a JSON file. Raises RunError if it is missing or damaged."""
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise RunError(
            f"cannot read {str(path)!r} ({error}): scan again into another folder"
        ) from error


def write_tensors(path: Path, tensors: Mapping[str, Tensor], note: Any = None) -> None:
    """Write tensors as safetensors, with a note (any JSON) in the header."""
    contiguous = {name: tensor.contiguous().cpu() for name, tensor in tensors.items()}
    write_bytes(path, save(contiguous, metadata={"note": json.dumps(note)}))


def read_tensors(path: Path) -> tuple[dict[str, Tensor], Any]:
    """Read what `write_tensors` wrote: tensors by name, and the note. Raises RunError."""
    try:
        with safe_open(path, framework="pt") as file:
            note = json.loads((file.metadata() or {}).get("note", "null"))
            return {name: file.get_tensor(name) for name in file.keys()}, note  # noqa: SIM118
    except (OSError, ValueError, SafetensorError) as error:
        raise RunError(
            f"cannot read {str(path)!r} ({error}): scan again into another folder"
        ) from error


def read_note(path: Path) -> Any:
    """Only the note of a file that `write_tensors` wrote; None if it is missing or damaged."""
    try:
        with safe_open(path, framework="pt") as file:
            return json.loads((file.metadata() or {}).get("note", "null"))
    except (OSError, ValueError, SafetensorError):
        return None


def remove(path: Path) -> None:
    """Remove a folder and all that is in it, if it is there."""
    shutil.rmtree(path, ignore_errors=True)


@contextmanager
def lock(folder: Path) -> Iterator[None]:
    """Hold a folder against other processes; a killed process lets go by itself.

    Raises RunError that names the holder if another process has it.
    """
    path = folder / ".lock"
    with _writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        file = open(path, "a+b", buffering=0)  # noqa: SIM115 (held for the whole scan)
    with file:
        if not try_lock(file.fileno()):
            file.seek(0)
            holder = file.read().decode(errors="replace").strip()
            raise RunError(
                f"{str(folder)!r} is in use by process {holder or '?'}: wait for it, or choose "
                "another -o"
            )
        try:
            with _writing(folder):
                file.truncate(0)
                file.write(str(os.getpid()).encode())
            yield
        finally:
            if [entry.name for entry in folder.iterdir()] == [path.name]:  # nothing came of it
                path.unlink()
                folder.rmdir()


@contextmanager
def _writing(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise RunError(
            f"cannot write into {str(folder)!r}: {(error.strerror or str(error)).lower()}. Choose "
            "another -o"
        ) from error


def try_lock(descriptor: int) -> bool:
    """Lock an open file against other processes; False if one has it."""
    try:
        import fcntl
    except ImportError:  # Windows
        import msvcrt

        try:
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined]
        except OSError:
            return False
        return True
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True
