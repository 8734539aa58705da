"""From images to a run, and what may be done with it.

scanning.py       a scan: the order of its steps
    survey.py     headers and masks of its files
    forecast.py   what it will take on this machine; costs.py: its work, and the memory for that
    extraction.py images -> patches, in memory, and of files on disk
    comparing.py  patches on disk -> the fitted method and every image's score grid
    results.py    score grids -> scores and maps: what the run folder holds
    flagging.py   which images are flagged, and where; again, of a finished run
    job.py        what the steps have in common; image_set.py: the images of a set
    workers.py    a function over batches with results on disk, and who does it;
                  ray_workers.py: the nodes of a cluster
    sources.py    images given as objects; saved_inputs.py: saved to the run
updating.py       a run whose set has changed
rescoring.py      a run scored again with labels
loading.py        what a run keeps: its method, its network, its patches
scoring.py        new images against a run
in_memory.py      a set that fits in memory, with nothing on disk
evaluation.py     a run against truth
"""
