"""Run by the Python of an environment with label-studio-sdk: checks the predictions of an export
against its labelling interface, prints what is wrong and the masks of brushes."""

import json
import sys
from pathlib import Path

from label_studio_sdk.converter import brush
from label_studio_sdk.label_interface import LabelInterface

folder = Path(sys.argv[1])
interface = LabelInterface((folder / "interface.xml").read_text())
wrong, masks = [], {}
for task in json.loads((folder / "tasks.json").read_text()):
    if not interface.validate_task({"data": task["data"]}):
        wrong.append(f"task {task['data']}")
    for prediction in task["predictions"]:
        wrong += interface.validate_prediction(prediction, return_errors=True)
        for result in prediction["result"]:
            if result["type"] != "brushlabels":
                continue
            shape = result["original_height"], result["original_width"], 4
            pixels = brush.decode_rle(result["value"]["rle"]).reshape(shape)
            masks.setdefault(task["data"]["path"], []).append(
                (pixels[..., 3] > 0).astype(int).tolist()
            )
print(json.dumps({"wrong": wrong, "masks": masks}))
