"""The paper's method as a scikit-learn outlier detector, for rows of numbers instead of images."""

import numbers
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, OutlierMixin
from sklearn.utils.validation import check_is_fitted, validate_data

from .search.coreset import greedy_coreset
from .search.neighbors import nearest

Floats = NDArray[np.float64]

_USUAL_K = 20


class PatchClusterDetector(OutlierMixin, BaseEstimator):  # type: ignore[misc]
    """Score a row by the mean distance to its k nearest other rows in the bank (equation 2).

    The bank is the set that was fitted, or a greedy coreset of it. `fit` scores the set blindly,
    `score_samples` any rows. A row is not compared with itself: one that equals a row of the bank
    is taken to be that row, so that the rows of the set score the same by either way, and a copy
    of one row does not look normal by its own presence. (Of several equal rows of the bank one is
    left out.) With `ratio=1` these are the scores of `methods.PatchCluster`, in float64.

    Signs: the methods are scikit-learn's, where larger is more normal and -1 is an outlier; the
    attributes that end in `scores_`, `labels_` and `threshold_` are PyOD's, where larger is more
    anomalous and 1 is an outlier. For a function of PyOD that takes the scores of new rows, give
    it `-detector.score_samples(rows)`.

    Parameters
    ----------
    k : int or None
        Number of neighbours; None: 20, or all other rows of a smaller bank.
    ratio : float
        Share of the rows that the bank holds, in (0, 1]. Less than 1: a greedy coreset, which
        begins with the row nearest to the mean, so that it does not depend on the order of rows.
    contamination : float
        Share of the fitted rows that are taken to be outliers, in (0, 0.5].

    Attributes
    ----------
    decision_scores_ : float64 array of shape (n_samples,)
        Mean distance of each fitted row to its neighbours; larger is more anomalous.
    threshold_ : float
        What a score exceeds in the outliers.
    labels_ : int array of shape (n_samples,)
        0 for inliers, 1 for outliers, of the fitted rows.
    offset_ : float
        `-threshold_`: decision_function is score_samples less this.
    bank_ : float64 array of shape (m, n_features_in_)
    bank_index_ : int64 array of shape (m,)
        Which row of the set each row of the bank is.
    k_ : int
        Number of neighbours that are used.
    n_features_in_ : int
    feature_names_in_ : array of str of shape (n_features_in_,)
        Only if X was a table whose columns have names.
    """

    def __init__(
        self, k: int | None = None, ratio: float = 1.0, contamination: float = 0.1
    ) -> None:
        self.k = k
        self.ratio = ratio
        self.contamination = contamination

    def fit(self, X: ArrayLike, y: object = None) -> Self:
        """Take rows X of shape (n_samples, n_features) as the set, and score them blindly.

        Raises ValueError if X is not finite, sparse or has fewer than 2 rows, or a parameter does
        not fit.
        """
        del y  # nobody has labelled them
        _check_share("ratio", self.ratio, 1)
        _check_share("contamination", self.contamination, 0.5)
        rows = validate_data(self, X, dtype=np.float64, order="C", ensure_min_samples=2)
        self.bank_index_ = self._choose(rows)
        self.bank_ = rows[self.bank_index_]
        self.k_ = self._find_k(len(self.bank_) - 1)
        self.decision_scores_ = self._score(rows)
        self.threshold_ = float(np.quantile(self.decision_scores_, 1 - self.contamination))
        self.offset_ = -self.threshold_
        self.labels_ = (self.decision_scores_ > self.threshold_).astype(int)
        return self

    def fit_predict(self, X: ArrayLike, y: object = None) -> NDArray[np.int64]:
        """Fit to X and say of each of its rows: 1, an inlier, or -1, an outlier."""
        return _as_signs(self.fit(X, y).labels_ == 1)

    def score_samples(self, X: ArrayLike) -> Floats:
        """Mean distance of rows (n, n_features_in_) to their neighbours, negative: float64 (n,).

        Raises ValueError if X does not fit, NotFittedError before `fit`.
        """
        check_is_fitted(self)
        return -self._score(validate_data(self, X, dtype=np.float64, order="C", reset=False))

    def decision_function(self, X: ArrayLike) -> Floats:
        """`score_samples` less `offset_`: negative for outliers, float64 (n,)."""
        return self.score_samples(X) - self.offset_

    def predict(self, X: ArrayLike) -> NDArray[np.int64]:
        """Say of each row: 1, an inlier, or -1, an outlier."""
        return _as_signs(self.decision_function(X) < 0)

    def _choose(self, rows: Floats) -> NDArray[np.int64]:
        """Indices of the rows that the bank holds."""
        if self.ratio == 1:
            return np.arange(len(rows))
        first = int(np.linalg.norm(rows - rows.mean(0), axis=1).argmin())
        size = max(2, round(len(rows) * self.ratio))  # or a row of it had nothing besides itself
        chosen: NDArray[np.int64] = greedy_coreset(torch.tensor(rows), size, first).numpy()
        return chosen

    def _find_k(self, left: int) -> int:
        """The number of neighbours, of so many rows of the bank besides a row itself."""
        if self.k is None:
            return min(_USUAL_K, left)
        if not isinstance(self.k, numbers.Integral) or not 1 <= self.k <= left:
            raise ValueError(
                f"k={self.k} neighbours, but the bank offers {left} besides a row itself: choose 1 "
                f"to {left}, or fit more rows"
            )
        return int(self.k)

    def _score(self, rows: Floats) -> Floats:
        """Mean distance [n] of rows [n, d] to the k nearest of the bank, but not to themselves."""
        # Copies, since torch warns of arrays that must not be written to.
        found = nearest(torch.tensor(rows), torch.tensor(self.bank_), self.k_ + 1)[0]
        distances: Floats = found.numpy()
        own = distances[:, 0] == 0
        kept = np.where(own[:, None], distances[:, 1:], distances[:, :-1])
        mean: Floats = kept.mean(1)
        return mean


def _check_share(name: str, value: Any, most: float) -> None:
    if not isinstance(value, numbers.Real) or not 0 < float(value) <= most:
        raise ValueError(f"{name}={value!r}: choose a share in (0, {most}]")


def _as_signs(outlying: NDArray[np.bool_]) -> NDArray[np.int64]:
    return np.where(outlying, -1, 1)
