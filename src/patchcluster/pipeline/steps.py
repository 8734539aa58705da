"""The steps that a scan, an update and a new scoring have in common, from patches to a run."""

import hashlib
import json
from collections.abc import Callable, Sequence

import torch

from .. import __version__
from ..errors import InputError
from ..images.masks import read_mask_file
from ..network.backbones import Backbone
from ..report import write_report
from ..runs import runfolder, storage
from ..runs.info import ImageRecord, RunInfo, Skipped
from ..runs.run import Run
from . import costs
from .comparing import Compared, Comparer
from .extraction import Extracted, Extractor, Features
from .finishing import Finisher, name_near_duplicates
from .image_set import ImageSet
from .job import Job, now
from .patch_files import Loaded
from .survey import Candidate, Regions, make_batches
from .workers import Workers

_FORMAT = 5  # of the files of comparisons


def extract_all(
    job: Job, backbone: Backbone, candidates: Sequence[Candidate], workers: Workers
) -> Extracted:
    """Make the patches of files, batch by batch, in the work folder."""
    features = Features(backbone, job.settings, job.info.deep_range)
    with job.timed("features"):
        extractor = Extractor(features, job.folder, workers)
        return extractor.run(make_batches(candidates), job.step("features"))


def keep_masks(job: Job, regions: Regions) -> None:
    """Copy the masks of what is scored to the run."""
    for name, file in regions.files.items():
        runfolder.write_region(job.folder, name, read_mask_file(file))


def join_images(job: Job, images: Sequence[ImageRecord]) -> ImageSet:
    """Make a set of images, each content once. Raises InputError if it is a single one."""
    image_set = ImageSet.of(images)
    if len(image_set.shas) < 2:
        raise InputError(
            f"{len(images)} of the files are images that can be read, and "
            f"{len(image_set.shas)} differ: a blind scan compares images with each other, give "
            "at least 2"
        )
    job.info.duplicates = [
        [record.path for record in copies]
        for copies in image_set.records.values()
        if len(copies) > 1
    ]
    return image_set


def compare_all(
    job: Job,
    image_set: ImageSet,
    load: Callable[[int], Loaded],
    device: torch.device,
    workers: Workers,
) -> list[Compared]:
    """Compare the images of a set with each other, at each network size."""
    comparer = Comparer(
        job.folder,
        image_set,
        load,
        job.info.labels,
        device,
        name_common(job.info, image_set),
        job.progress,
        workers,
    )
    compared = []
    for size in job.settings.size:
        with job.timed("compare"):
            compared.append(comparer.run(size, job.make_method(), job.settings.image_score))
    job.info.near_duplicates = name_near_duplicates(image_set, compared)
    return compared


def name_common(info: RunInfo, image_set: ImageSet) -> str:
    """Name all that comparisons of a set depend on besides the contents of its images."""
    labels = image_set.labels(info.labels)
    identity = [
        __version__,
        _FORMAT,
        info.settings,
        info.backbone["sha256"],
        labels if any(labels) else [],
    ]
    return hashlib.sha256(json.dumps(identity).encode()).hexdigest()


def write_results(
    job: Job, image_set: ImageSet, compared: list[Compared], cache: bool = True
) -> list[ImageRecord]:
    """Write all that a finished run holds but run.json and the page; return its images.

    cache: whether the patches that the bank does not have are kept.
    """
    finisher = Finisher(job.folder, job.info, job.settings, job.threads, job.step("maps"))
    with job.timed("maps"):
        records = finisher.write(image_set, compared)
    job.info.finished = now()
    job.info.memory["peak"] = costs.peak_memory()
    if cache and not compared[0].method.whole:
        runfolder.keep_batches(job.folder)
    else:
        storage.remove(job.folder / runfolder.PATCHES_FOLDER)
    runfolder.remove_others(job.folder, records)
    return records


def replace_results(
    job: Job,
    image_set: ImageSet,
    compared: list[Compared],
    images: Sequence[ImageRecord],
    skipped: Sequence[Skipped],
    cache: bool = True,
) -> None:
    """Make a finished run one of these images, in input order. cache: as in `write_results`.

    A kill leaves what `rescoring.finish` can finish.
    """
    folder, info = job.folder, job.info
    info.state = "rescoring"  # while the files of the run do not belong together
    runfolder.write_info(folder, info, images, skipped)
    records = write_results(job, image_set, compared, cache)
    runfolder.drop_patches(folder, {record.id for record in records})
    info.state = "flagging"  # while the report is another's
    runfolder.write_info(folder, info, records, skipped)
    write_report(Run(folder, half_changed=True), job.step("report"))
    info.state = "complete"
    runfolder.write_info(folder, info, records, skipped)
    storage.remove(folder / runfolder.WORK_FOLDER)
