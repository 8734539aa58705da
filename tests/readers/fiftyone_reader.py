"""Run by the Python of an environment with FiftyOne: opens a dataset, prints what it holds."""

import json
import sys

import fiftyone as fo
import numpy as np
from PIL import Image

dataset = fo.Dataset.from_dir(dataset_dir=sys.argv[1], dataset_type=fo.types.FiftyOneDataset)
found = {}
for sample in dataset:
    heat = np.asarray(Image.open(sample.heatmap.map_path))
    found[sample.path] = {
        "filepath": sample.filepath,
        "score": sample.score,
        "rank": sample.rank,
        "flagged": sample.flagged,
        "tags": list(sample.tags),
        "label": sample.label.label if "label" in sample and sample.label else None,
        "size": [sample.metadata.width, sample.metadata.height],
        "heat": [list(heat.shape), int(heat.max()), list(sample.heatmap.range)],
        "regions": [
            {
                "label": one.label,
                "box": list(one.bounding_box),
                "peak": one.peak,
                "mask": one.mask.astype(int).tolist(),
            }
            for one in sample.regions.detections
        ],
    }
dataset.compute_metadata(overwrite=True)  # by FiftyOne itself, from the files
for sample in dataset:
    found[sample.path]["own_size"] = [sample.metadata.width, sample.metadata.height]
flagged = dataset.match(fo.ViewField("flagged") == True)  # noqa: E712 (it makes an expression)
print(json.dumps({"samples": found, "flagged": len(flagged), "info": dataset.info}))
dataset.delete()
