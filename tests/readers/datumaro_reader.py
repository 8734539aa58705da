"""Run by the Python of an environment with datumaro: reads FORMAT in FOLDER, prints what it saw."""

import json
import sys
import warnings

warnings.simplefilter("ignore")

import datumaro  # noqa: E402
import numpy as np  # noqa: E402

folder, kind = sys.argv[1:]
dataset = datumaro.Dataset.import_from(folder, kind)
labels = dataset.categories()[datumaro.AnnotationType.label]
found = {}
for item in dataset:
    annotations = []
    for one in item.annotations:
        value = {
            "type": one.type.name,
            "label": labels[one.label].name,
            "attributes": {k: v for k, v in one.attributes.items() if k != "occluded"},
        }
        if one.type.name == "mask":
            value["mask"] = np.asarray(one.image).astype(int).tolist()
        elif one.type.name != "label":
            value["points"] = [float(v) for v in one.points]
        annotations.append(value)
    found[item.id] = annotations
print(json.dumps(found))
