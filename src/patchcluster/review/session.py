"""One review of one run: what the page shows, and what it can ask for, without HTTP."""

import threading
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..errors import InputError, PatchclusterError, RunError
from ..images.inputs import stamp
from ..pipeline.job import Progress
from ..pipeline.reflagging import reflag
from ..pipeline.rescoring import rescore
from ..runs.info import ImageRecord
from ..runs.run import Run
from ..runs.runfolder import LABELS_FILE, RUN_FILE
from ..runs.tables import to_csv
from ..scores.labels import Label
from ..scores.thresholds import Flagging
from .group_names import find_names
from .pictures import Pictures
from .store import Box, GroupName, LabelStore, Mark

_FROM_SCAN = "scan --labels"  # who said what was in the run's labels already


class NoSuchImage(InputError):
    """No image of the run has that id."""


class Busy(RunError):
    """The run is being scored or flagged again."""


class _Stopped(Exception):
    """The review ends while a job runs."""


@dataclass
class Job:
    """Work on the run in the background: the number-th, of a `kind`, rescore or flag."""

    kind: str
    number: int
    step: str = ""
    done: int = 0
    total: int = 0
    running: bool = True
    error: str = ""


class Shown:
    """A run as it was read at one time; `version` counts how often it was written since."""

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
        self._names: tuple[int, dict[int, str]] = (0, {})  # of so many that were given

    def image(self, image_id: int) -> ImageRecord:
        """Raises NoSuchImage."""
        if image_id not in self.by_id:
            raise NoSuchImage(f"the run has no image {image_id}: reload the page")
        return self.by_id[image_id]

    def names(self, given: Sequence[GroupName]) -> dict[int, str]:
        """Names by number of the groups, of all that were given to groups."""
        if self._names[0] != len(given):
            self._names = (len(given), find_names(given, self.groups))
        return self._names[1]


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
        """End: a job stops if it has not begun to write, and is waited for if it has."""
        self._stopping = True
        if self._thread is not None:
            self._thread.join()
        self.store.close()

    def _take_over_labels(self) -> None:
        """Labels that the scan was given count as if they had been given here."""
        mentioned = self.store.mentioned()
        given: dict[str, Mark] = {
            path: label
            for path, label in self.shown.run.info.labels.items()
            if path not in mentioned
        }
        if given:
            self.store.add(given, _FROM_SCAN)

    # --- what the page shows --------------------------------------------------------------------

    def describe(self) -> dict[str, Any]:
        """The whole run as the page needs it: images in input order."""
        shown, run = self.shown, self.shown.run
        doubt = {path: place for place, path in enumerate(run.doubtful)}
        seen: set[str] = set()
        images = []
        for i, image in enumerate(run.images):
            images.append(
                {
                    "id": image.id,
                    "path": image.path,
                    "width": image.width,
                    "height": image.height,
                    "score": float(run.scores[i]),
                    "flagged": bool(run.flagged[i]),
                    "nearest": shown.ids.get(run.nearest[i]),
                    "doubt": doubt.get(image.path),
                    "copy": image.sha256 in seen,
                    "used": run.info.labels.get(image.path),
                    "regions": [asdict(region) for region in run.regions(image.path)],
                }
            )
            seen.add(image.sha256)
        return {
            "version": shown.version,
            "images": images,
            "threshold": {"value": run.threshold.value, "meaning": run.threshold.meaning},
            "skipped": len(run.skipped),
        }

    def changes(self, since: int) -> dict[str, Any]:
        """What is new behind row `since` of the history, and how the run and its job stand."""
        self._follow()
        shown, last = self.shown, self.store.last
        labels = self.store.changes(since)
        return {
            "last": last,
            "version": shown.version,
            "labels": {shown.ids[path]: now for path, now in labels.items() if path in shown.ids},
            "groups": shown.names(self.store.group_names()),
            "job": asdict(self.job) if self.job else None,
        }

    def _follow(self) -> None:
        """Read the run again if another process has written it."""
        with self._starting:
            working = self.job is not None and self.job.running
            try:
                if not working and stamp(str(self.folder / RUN_FILE)) != self.shown.stamp:
                    self.shown = Shown(self.folder, self.shown.version + 1)
            except PatchclusterError:
                return  # it is being written: what was read before is shown until then

    def neighbours(self, image_id: int, x: float, y: float) -> list[dict[str, Any]]:
        """The places that a place was compared with. Raises InputError if it lies outside."""
        shown = self.shown
        found = shown.run.neighbours(shown.image(image_id).path, x, y)
        return [{**asdict(one), "id": shown.ids[one.path]} for one in found]

    def csv(self) -> bytes:
        """The labels that hold now, as `scan --labels` reads them: columns path, label."""
        labels = self.store.labels()
        rows = [(path, labels[path]) for path in self.shown.run.paths if path in labels]
        return to_csv(["path", "label"], rows)

    # --- what the page asks for -----------------------------------------------------------------

    def label(self, image_ids: Sequence[int], label: Mark | None, who: str) -> None:
        """Label images; None takes their labels away. On return it is on the disk."""
        paths = [self.shown.image(number).path for number in image_ids]
        if paths:
            self.store.add(dict.fromkeys(paths, label), who)

    def undo(self, who: str) -> list[int]:
        """Take back the latest change of one tab; gives the ids of its images."""
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
        self._start("rescore", lambda progress: rescore(self.folder, labels, progress))

    def flag(self, count: int) -> None:
        """Flag so many images, in the background. Raises Busy."""

        def work(progress: Progress) -> Run:
            how = Flagging(flag_top=count)
            return reflag(self.folder, how, lambda done, total: progress("maps", done, total))

        self._start("flag", work)

    def _start(self, kind: str, work: Callable[[Progress], Run]) -> None:
        with self._starting:
            if self.job is not None and self.job.running:
                raise Busy("the run is being worked on already: wait until that is done")
            job = Job(kind, self.job.number + 1 if self.job else 1)
            self.job = job
            self._thread = threading.Thread(target=self._work, args=(job, work), name=kind)
            self._thread.start()

    def _work(self, job: Job, work: Callable[[Progress], Run]) -> None:
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
        except Exception as error:  # the page must not wait for ever
            job.error = f"unexpected {type(error).__name__}: {error}"
        finally:
            job.running = False
