"""A function over batches, done by whatever workers there are, with results on disk under a key.

Which items belong to a batch depends on the set alone, so that a scan that resumes does the same
operations in the same shapes. A finished batch is one file, with the key that it was made under;
a rerun takes up the files whose key agrees. Nothing else writes batches to the work folder.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from torch import Tensor

from ..runs import storage
from .workers import Work, Workers

Item = TypeVar("Item")
Ready = TypeVar("Ready")
Result = TypeVar("Result")

Note = dict[str, Any]


@dataclass(frozen=True)
class Batch(Generic[Item]):
    """Some images, and the file that their result goes to.

    key: all that the result depends on, as JSON has it. items: reads what workers are given, when
    its turn comes.
    """

    path: Path
    key: Any
    images: int
    items: Callable[[], Sequence[Item]]


def run_stage(
    batches: Sequence[Batch[Item]],
    work: Work[Item, Ready, Result],
    workers: Workers,
    keep: Callable[[int, Result], tuple[Mapping[str, Tensor], Note]],
    done: Callable[[int, int], None],
) -> list[Note]:
    """Do what is missing of a list of batches, and return the notes of all.

    keep(n, result) gives the tensors and the note of batch n as they are kept; done(images, of).
    """
    notes = [_read_note(batch) for batch in batches]
    total = sum(batch.images for batch in batches)
    finished = sum(b.images for b, note in zip(batches, notes, strict=True) if note is not None)
    done(finished, total)
    missing = ((n, batches[n].items()) for n, note in enumerate(notes) if note is None)
    for n, result in workers.map(work, missing):
        tensors, note = keep(n, result)
        storage.write_tensors(batches[n].path, tensors, {**note, "key": batches[n].key})
        notes[n] = note
        finished += batches[n].images
        done(finished, total)
    return [note for note in notes if note is not None]


def _read_note(batch: Batch[Any]) -> Note | None:
    """Read the note of a finished batch; None: it is not there, or of another key."""
    note = storage.read_note(batch.path)
    return note if isinstance(note, dict) and note.get("key") == batch.key else None
