"""Score photographs against a run of the paper's method, without PyTorch or patchcluster.

    python score_with_onnx.py RUN NETWORK.onnx PHOTO...

RUN is what `patchcluster scan photos/ --method patchcluster -o RUN` wrote, NETWORK.onnx what
`patchcluster export RUN --format onnx` made of it. Takes images of 8 bits without transparency;
needs onnxruntime, NumPy, Pillow and safetensors.
"""

import json
import sys

import numpy as np
import onnxruntime
from PIL import Image, ImageOps
from safetensors import safe_open

run, network, *photos = sys.argv[1:]
session = onnxruntime.InferenceSession(network)
(size,) = json.loads(session.get_modelmeta().custom_metadata_map["patchcluster"])["size"]
with safe_open(f"{run}/bank.safetensors", framework="numpy") as file:
    given = json.loads(file.metadata()["note"])["parameters"]
    bank, images = file.get_tensor(f"{size}.bank"), int(file.get_tensor(f"{size}.image_count"))
k = given["k"] or max(1, round(images * given["ratio"]))
centre = bank.mean(0)
bank -= centre  # or products of long vectors would lose the digits of short distances


def distances(rows):  # [q, c] -> to each row of the bank [q, m]
    squares = np.square(rows).sum(1)[:, None] - 2 * rows @ bank.T + np.square(bank).sum(1)
    return np.sqrt(squares.clip(0))


for photo in photos:
    image = ImageOps.exif_transpose(Image.open(photo)).convert("RGB")
    aspect = (image.width / image.height) ** 0.5
    high, wide = (max(32, round(size * side / 32) * 32) for side in (1 / aspect, aspect))
    pixels = np.array(image.resize((wide, high), Image.Resampling.BILINEAR))[None]
    patches = session.run(None, {"images": pixels})[0].astype(np.float16)  # as the bank's were
    table = distances(patches.reshape(-1, len(centre)) - centre)
    scores = np.partition(table, k - 1)[:, :k].mean(1)  # of each patch: equation 2
    peak = table[scores.argmax()]  # the image's score, equation 3, by its highest patch,
    around = np.argsort(distances(bank[[peak.argmin()]])[0])[:9]  # and 9 rows near its nearest
    weight = 1 - 1 / np.exp(peak[around] - peak.min()).sum()
    print(f"{photo},{weight * scores.max():.6g}")
