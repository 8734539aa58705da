"""anomalib 2.7 at the work that ours is compared with; runs in an environment of its own.

    python -m venv peer && peer/bin/pip install anomalib==2.7.0 torch==2.14.1 torchvision==0.29.1
    peer/bin/python benchmarks/peers/anomalib_peer.py coreset ROWS.npy SIZE
    peer/bin/python benchmarks/peers/anomalib_peer.py patchcore CATEGORY
    peer/bin/python benchmarks/peers/anomalib_peer.py scores GIVEN.npz OUT.npz

`coreset` times KCenterGreedy on rows [m, c]. `patchcore` fits PatchCore (1 % coreset, the same two
stages of EfficientNet-Lite0, input 256) on the train part of an MVTec-AD category and scores its
test part. Weights are random, since hubs may be out of reach; the time does not depend on them.
`scores` gives PatchCore's scores of `patches` [n, h, w, c] against `bank` [m, c]: `patch_scores`
[n, h, w] and `image_scores` [n]. Prints one JSON object.
"""

import json
import resource
import sys
import tempfile
import time
from pathlib import Path


def coreset(path: str, size: str) -> dict[str, float]:
    import numpy as np
    import torch
    from anomalib.models.components import KCenterGreedy

    rows = torch.from_numpy(np.load(path))
    start = time.perf_counter()
    chosen = KCenterGreedy(rows, sampling_ratio=int(size) / len(rows)).select_coreset_idxs()
    return {"seconds": time.perf_counter() - start, "chosen": len(chosen)}


def patchcore(category: str) -> dict[str, float]:
    from anomalib.data import Folder
    from anomalib.engine import Engine
    from anomalib.models import Patchcore

    root = Path(category)
    defects = sorted(p.name for p in (root / "test").iterdir() if p.name != "good")
    with tempfile.TemporaryDirectory() as work:
        data = Folder(
            name=root.name, root=root, normal_dir="train/good", normal_test_dir="test/good",
            abnormal_dir=[f"test/{name}" for name in defects], train_batch_size=8,
            eval_batch_size=8, num_workers=2,
        )  # fmt: skip
        model = Patchcore(
            backbone="tf_efficientnet_lite0", layers=["blocks.2", "blocks.4"], pre_trained=False,
            coreset_sampling_ratio=0.01,
            pre_processor=Patchcore.configure_pre_processor(image_size=(256, 256)),
        )  # fmt: skip
        engine = Engine(accelerator="cpu", devices=1, default_root_dir=work, logger=False)
        start = time.perf_counter()
        engine.fit(model, datamodule=data)
        fitted = time.perf_counter()
        engine.predict(model, datamodule=data)
        done = time.perf_counter()
    return {"fit": fitted - start, "predict": done - fitted, "seconds": done - start}


def scores(given: str, out: str) -> dict[str, float]:
    import numpy as np
    import torch
    from anomalib.models.image.patchcore.torch_model import PatchcoreModel

    arrays = np.load(given)
    patches, bank = torch.from_numpy(arrays["patches"]), torch.from_numpy(arrays["bank"])
    model = PatchcoreModel(layers=["layer1"], backbone="resnet18", pre_trained=False)
    model.memory_bank = bank
    rows, images = patches.flatten(0, 2), len(patches)
    nearest, locations = model.nearest_neighbors(rows, n_neighbors=1)
    image_scores = model.compute_anomaly_score(
        nearest.view(images, -1), locations.view(images, -1), rows
    )
    np.savez(
        out, patch_scores=nearest.view(patches.shape[:3]).numpy(), image_scores=image_scores.numpy()
    )
    return {"images": len(patches)}


if __name__ == "__main__":
    work = {"coreset": coreset, "patchcore": patchcore, "scores": scores}
    result = work[sys.argv[1]](*sys.argv[2:])
    result["peak"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps(result))
