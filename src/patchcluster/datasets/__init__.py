"""Data sets with truth: which images are anomalous, and their masks.

    types.py       category, sample, truth
    masks.py       masks found and read, from files and from polygons or runs
    mvtec.py, visa.py, pairs.py, kolektor.py, magnetic_tile.py, coco.py   a layout each
    reading.py     a folder -> its categories, by whichever layout it has
    truth.py       paths of images -> their truth
    selection.py   the paper's settings, and what its Table 1 says of them

Files are read where they lie, never copied. A folder is one category or holds several.
"""

from .masks import read_mask, read_truth
from .reading import read_dataset
from .selection import count_pixels, select, statistics
from .truth import find_truth, look_up, take_entries
from .types import SETTINGS, Category, Sample, Setting, Split, Statistics, Truth

__all__ = [
    "SETTINGS",
    "Category",
    "Sample",
    "Setting",
    "Split",
    "Statistics",
    "Truth",
    "count_pixels",
    "find_truth",
    "look_up",
    "read_dataset",
    "read_mask",
    "read_truth",
    "select",
    "statistics",
    "take_entries",
]
