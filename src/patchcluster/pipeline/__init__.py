"""From images to a run, and what may be done with it.

extract.py        images in memory -> patches
stage.py          a function over batches, with results on disk
extraction.py     patches of files, in batches on disk
comparing.py      patches on disk -> the fitted method and every image's score grid
finishing.py, results.py  score grids -> all files of the run
scanning.py       the steps of a scan in order
updating.py       a run whose set has changed
reflagging.py     a run with another threshold
scoring.py        new images against a run
evaluation.py     a run against truth
sources.py, saved_inputs.py  images that are no files
planning.py, costs.py, times.py  what a scan will need
workers.py, ray_workers.py  who does the work
"""
