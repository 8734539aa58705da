"""Data sets with truth: which images are anomalous, and their masks.

    types.py      category, sample, truth; masks read; the paper's settings
    drawn.py      masks that are no files: polygons, runs, pictures in memory
    layouts.py    a folder -> its categories, by whichever layout it has
    coco.py       the layout of COCO
    truth.py      paths of images -> their truth

Files are read where they lie, never copied. A folder is one category or holds several.
"""

from .layouts import read_dataset
from .truth import Unknown, find_truth, look_up, match_truth, no_truth, take_entries
from .types import (
    SETTINGS,
    Category,
    Sample,
    Setting,
    Split,
    Truth,
    read_mask,
    read_shown,
    read_truth,
    select,
)

__all__ = [
    "SETTINGS",
    "Category",
    "Sample",
    "Setting",
    "Split",
    "Truth",
    "Unknown",
    "find_truth",
    "look_up",
    "match_truth",
    "no_truth",
    "read_dataset",
    "read_mask",
    "read_shown",
    "read_truth",
    "select",
    "take_entries",
]
