"""From images to a run, and what may be done with it.

scanning.py       a scan: the order of its steps
    forecast.py   the survey of a set, and what a scan will take: survey.py (headers and masks),
                  planning.py (the work, and what would need less), costs.py (memory), times.py
    extraction.py patches of files, by extract.py (of images in memory)
    comparing.py  patches on disk -> the fitted method and every image's score grid
    image_set.py  the images of a set; patch_files.py: their patches on disk
    finishing.py  score grids -> the run, by results.py (flags, regions, groups)
    stage.py      a function over batches, with results on disk
    job.py        what the steps have in common
    steps.py      those that a scan, an update and a new scoring share
    workers.py    who does the work; ray_workers.py: the nodes of a cluster
    sources.py    images given as objects; saved_inputs.py: saved to the run
updating.py       a run whose set has changed
rescoring.py      a run scored again with labels
reflagging.py     a run flagged again; its method and patches
scoring.py        new images against a run
in_memory.py      a set that fits in memory, with nothing on disk
evaluation.py     a run against truth
"""
