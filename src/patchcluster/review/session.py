"""One review of one run, without HTTP: what the page shows, and what it can do."""

import threading
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import InputError, PatchclusterError, RunError
from ..images.inputs import stamp
from ..pipeline.flagging import reflag
from ..runs.info import ImageRecord
from ..runs.run import Run
from ..runs.runfolder import LABELS_FILE, RUN_FILE
from ..runs.tables import to_csv
from ..scores.labels import Label
from ..scores.thresholds import Flagging
from .pictures import Pictures
from .store import Box, GroupName, LabelStore, Mark

if TYPE_CHECKING:
    from ..pipeline.job import Progress

_FROM_SCAN = "scan --labels"  # who gave the labels that the run had already


class NoSuchImage(InputError):
    """No image of the run has that id."""


class Busy(RunError):
    """The run is being scored or flagged again."""


class _Stopped(Exception):
    """The review ends while a job runs."""


@dataclass
class Job:
    """A background job on the run, counted by `number`; its `kind` is rescore or flag."""

    kind: str
    number: int
    step: str = ""
    done: int = 0
    total: int = 0
    running: bool = True
    error: str = ""


class Shown:
    """A run as it was read at one time; `version` counts how often it was read again."""

    def __init__(self, folder: Path, version: int) -> None:
        self.stamp = stamp(str(folder / RUN_FILE))
        self.run = Run(folder)
        self.version = version
        self.pictures = Pictures(self.run)
        self.by_id = {image.id: image for image in self.run.images}
        self.ids = {image.path: image.id for image in self.run.images}
        self.groups: dict[int, list[Box]] = {}
        for path in self.run.paths:
            for r in self.run.regions(path):
                if r.group:
                    box = (path, r.x, r.y, r.width, r.height)
                    self.groups.setdefault(r.group, []).append(box)

    def image(self, image_id: int) -> ImageRecord:
        """Return an image by its id. Raises NoSuchImage."""
        if image_id not in self.by_id:
            raise NoSuchImage(f"the run has no image {image_id}: reload the page")
        return self.by_id[image_id]


class Review:
    """A run under review. Threads may share it; another process must not review the same run."""

    def __init__(self, folder: Path) -> None:
        """Open a finished run and its labels. Raises RunError."""
        self.folder = folder
        self.shown = Shown(folder, 0)
        self.store = LabelStore(folder / LABELS_FILE)
        self.job: Job | None = None
        self._starting = threading.Lock()
        self._thread: threading.Thread | None = None
        self._stopping = False
        self._take_over_labels()

    def close(self) -> None:
        """Stop a running job if it has not begun to write, else wait for it; close the labels."""
        self._stopping = True
        if self._thread is not None:
            self._thread.join()
        self.store.close()

    def _take_over_labels(self) -> None:
        """Import the labels that the scan was given, but for paths with a history here."""
        known, labels = self.store.changes(0), self.shown.run.info.labels
        given: dict[str, Mark] = {path: labels[path] for path in labels if path not in known}
        if given:
            self.store.add(given, _FROM_SCAN)

    # --- what the page shows --------------------------------------------------------------------

    def describe(self) -> dict[str, Any]:
        """Return the run as the page needs it: images in input order."""
        shown, run = self.shown, self.shown.run
        uncertainty = {path: place for place, path in enumerate(run.doubtful)}
        first = {image.sha256: image.id for image in reversed(run.images)}
        images = [
            {
                "id": image.id,
                "path": image.path,
                "width": image.width,
                "height": image.height,
                "score": float(run.scores[i]),
                "probability": run.probabilities[i],
                "flagged": bool(run.flagged[i]),
                "nearest": shown.ids.get(run.nearest[i]),
                "uncertainty": uncertainty.get(image.path),  # 0: the most uncertain
                "remarks": run.remarks[i],
                "copy": first[image.sha256] != image.id,
                "used": run.info.labels.get(image.path),
                "regions": [asdict(region) for region in run.regions(image.path)],
            }
            for i, image in enumerate(run.images)
        ]
        return {
            "version": shown.version,
            "images": images,
            "threshold": asdict(run.threshold),
            "skipped": len(run.skipped),
        }

    def changes(self, since: int) -> dict[str, Any]:
        """Return what changed after row `since` of the history, and the state of run and job."""
        self._follow()
        shown, last = self.shown, self.store.last
        labels = self.store.changes(since)
        return {
            "last": last,
            "version": shown.version,
            "labels": {shown.ids[path]: now for path, now in labels.items() if path in shown.ids},
            "groups": find_names(self.store.group_names(), shown.groups),
            "job": asdict(self.job) if self.job else None,
        }

    def _follow(self) -> None:
        """Read the run again if another process has changed it."""
        with self._starting:
            working = self.job is not None and self.job.running
            try:
                if not working and stamp(str(self.folder / RUN_FILE)) != self.shown.stamp:
                    self.shown = Shown(self.folder, self.shown.version + 1)
            except PatchclusterError:
                return  # it is being written: the earlier version is shown until then

    def neighbours(self, image_id: int, x: float, y: float) -> list[dict[str, Any]]:
        """List the places that a place was compared with. Raises InputError if it is outside."""
        shown = self.shown
        found = shown.run.neighbours(shown.image(image_id).path, x, y)
        return [{**asdict(one), "id": shown.ids[one.path]} for one in found]

    def csv(self) -> bytes:
        """Return the current labels, as `scan --labels` reads them: columns path, label."""
        labels = self.store.labels()
        rows = [(path, labels[path]) for path in self.shown.run.paths if path in labels]
        return to_csv(["path", "label"], rows)

    # --- what the page asks for -----------------------------------------------------------------

    def label(self, image_ids: Sequence[int], label: Mark | None, who: str) -> None:
        """Label images; None removes their labels. On return it is on the disk."""
        paths = [self.shown.image(number).path for number in image_ids]
        if paths:
            self.store.add(dict.fromkeys(paths, label), who)

    def undo(self, who: str) -> list[int]:
        """Undo the latest action of one tab and return the ids of its images."""
        ids = self.shown.ids
        return [ids[path] for path in self.store.undo(who) if path in ids]

    def name_group(self, group: int, name: str, who: str) -> None:
        """Name a group of regions. Raises InputError if there is no such group."""
        members = self.shown.groups.get(group)
        if members is None:
            raise InputError(f"there is no group {group}: reload the page")
        self.store.name_group(group, " ".join(name.split()), members, who)

    def rescore(self) -> None:
        """Score the run again with the labels, in the background. Raises Busy."""
        paths = set(self.shown.run.paths)
        labels: dict[str, Label] = {}
        for path, label in self.store.labels().items():
            if path in paths and label != "unsure":
                labels[path] = label

        def work(progress: "Progress") -> Run:
            from ..pipeline.rescoring import rescore  # loads torch

            return rescore(self.folder, labels, progress)

        self._start("rescore", work)

    def flag(self, count: int) -> None:
        """Flag the `count` most anomalous images, in the background. Raises Busy."""
        self._start("flag", partial(reflag, self.folder, Flagging(flag_top=count)))

    def _start(self, kind: str, work: Callable[["Progress"], Run]) -> None:
        with self._starting:
            if self.job is not None and self.job.running:
                raise Busy("the run is being worked on already: wait until that is done")
            job = Job(kind, self.job.number + 1 if self.job else 1)
            self.job = job
            self._thread = threading.Thread(target=self._work, args=(job, work), name=kind)
            self._thread.start()

    def _work(self, job: Job, work: Callable[["Progress"], Run]) -> None:
        def progress(step: str, done: int, total: int) -> None:
            job.step, job.done, job.total = step, done, total
            if self._stopping and step == "compare":  # later steps replace the run's files
                raise _Stopped

        try:
            work(progress)
            self.shown = Shown(self.folder, self.shown.version + 1)
        except PatchclusterError as error:
            job.error = str(error)
        except _Stopped:
            job.error = "stopped"
        except Exception as error:  # the page must not wait forever
            job.error = f"unexpected {type(error).__name__}: {error}"
        finally:
            job.running = False


def find_names(given: Sequence[GroupName], groups: Mapping[int, Sequence[Box]]) -> dict[int, str]:
    """Carry names over to the groups of now, by number.

    Another threshold or new scores give other regions and group numbers, so a name goes to the
    group that has most of the regions that it was given to.

    given: all names, in the order they were given; a later one of a group replaces an earlier one.
    groups: the regions of each group now. A name whose regions are gone is not shown.
    """
    by_image: dict[str, list[tuple[int, Box]]] = {}
    for group, boxes in groups.items():
        for box in boxes:
            by_image.setdefault(box[0], []).append((group, box))
    names: dict[int, str] = {}
    for name in given:
        found = Counter(
            group
            for member in name.members
            for group, box in by_image.get(member[0], [])
            if _overlap(member, box)
        )
        if found:
            # Of two groups with as many, the one that still has its number.
            best = max(found, key=lambda group: (found[group], group == name.group, -group))
            names[best] = name.name
    return {group: name for group, name in names.items() if name}


def _overlap(a: Box, b: Box) -> bool:
    return a[1] < b[1] + b[3] and b[1] < a[1] + a[3] and a[2] < b[2] + b[4] and b[2] < a[2] + a[4]
