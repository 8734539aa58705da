"""Transfer of labels from some images to the others.

A Gaussian process (Rasmussen and Williams 2006, chapter 2) is fitted to the labels: before any
label an image is as anomalous as its blind score says; a label shifts the images whose most
anomalous place looks like that of the marked image, so that a false alarm that a person has seen
once does not come back a hundred times, and a small defect draws its like up.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ..errors import SettingError
from .groups import Describe, describe_image
from .labels import Label
from .maps import Floats, round_as_stored
from .probability import Scores, describe_ordinary

_BOUNDARY = 1.0  # deviations above ordinary scores at which an image may as well be anomalous
_SLOPE = 0.3  # of the label, -1 to 1, over the score in deviations of ordinary images
_BOUNDS = (-3.0, 6.0)  # deviations beyond which a score says no more
_LENGTH = 0.6  # distance of places, as vectors of length 1, over which labels carry
_COMMON = 0.3  # variance of what all images share: where the threshold lies
_NOISE = 0.3  # variance of a label


def learn(
    grids: Sequence[Floats],
    scores: Sequence[float],
    describe: Describe,
    labels: Sequence[Label | None],
) -> list[Floats]:
    """Score grids [h, w] of a set's images with what the labels add, the same all over an image.

    scores: the image scores. Raises SettingError if the method does not keep the patches.
    """
    described = []
    for image, grid in enumerate(grids):
        vectors = describe(image)
        if vectors is None:
            raise SettingError("this method does not learn from labels: use patchcluster-plus")
        described.append(describe_image(vectors, grid))
    shifts = shift_scores(np.array(scores), np.stack(described), labels)
    return [round_as_stored(grid + np.float32(s)) for grid, s in zip(grids, shifts, strict=True)]


def shift_scores(
    scores: Scores, described: NDArray[np.float32], labels: Sequence[Label | None]
) -> Scores:
    """Return what to add to image scores [n], float64 [n].

    described [n, d]: what the most anomalous place of each image looks like, vectors of length 1.
    labels: one an image or None.
    """
    marked = np.array([label is not None for label in labels])
    if not marked.any():
        return np.zeros(len(scores))
    from sklearn.gaussian_process import GaussianProcessRegressor  # takes a second to import
    from sklearn.gaussian_process.kernels import RBF, ConstantKernel

    centre, deviation = describe_ordinary(scores)
    deviation = max(deviation, 1e-6 * abs(centre))
    prior = _SLOPE * (np.clip((scores - centre) / deviation, *_BOUNDS) - _BOUNDARY)
    said = np.array([1.0 if label == "anomalous" else -1.0 for label in labels])
    kernel = RBF(_LENGTH) + ConstantKernel(_COMMON)
    process = GaussianProcessRegressor(kernel, alpha=_NOISE, optimizer=None)
    process.fit(described[marked], (said - prior)[marked])
    shift: Scores = process.predict(described) * deviation / _SLOPE
    return shift


def find_boundary(scores: Scores) -> float:
    """The image score at which an image may as well be ordinary as anomalous, of blind scores [n].

    It stays where it is when labels shift the scores.
    """
    centre, deviation = describe_ordinary(scores)
    return centre + _BOUNDARY * deviation


def order_by_doubt(
    scores: Scores, labels: Sequence[Label | None], boundary: float
) -> NDArray[np.int64]:
    """Images without a label, those first whose label tells most, int64 [j]; by scores [n]."""
    doubt = np.argsort(np.abs(scores - boundary), kind="stable")
    return doubt[[labels[i] is None for i in doubt]]
