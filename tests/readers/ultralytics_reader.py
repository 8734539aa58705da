"""Run by the Python of an environment with ultralytics: reads a YOLO folder as its trainer does."""

import json
import sys

from ultralytics.data.dataset import YOLODataset
from ultralytics.data.utils import check_det_dataset

file, task = sys.argv[1:]
data = check_det_dataset(file, autodownload=False)
dataset = YOLODataset(img_path=data["train"], data=data, task=task, imgsz=64, augment=False)
found = {}
for one in dataset.labels:
    found[one["im_file"]] = {
        "shape": list(one["shape"]),  # height, width
        "classes": [data["names"][int(c)] for c in one["cls"].ravel()],
        "boxes": one["bboxes"].tolist(),
        "segments": [segment.tolist() for segment in one["segments"]],
    }
print("\n" + json.dumps(found))
