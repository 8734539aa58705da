"""The rows of a bank, indexed for searches of K nearest rows: faiss on the CPU, torch elsewhere."""

import math

import faiss
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .neighbors import nearest, use_torch_threads

NEAREST_ROWS = 96  # that the default method finds for a patch; times are measured by it
_EXACT_ROWS = 8_000  # of a bank up to which an inverted file saves little (10 images of 784 rows)
_LISTS = 4  # of the inverted file, times the square root of the number of rows
_PROBES = 4  # lists that are searched for a query, at least, and as many as hold
_COMPARED = 6  # times k rows
_TRAINED = 16  # rows a list from which the centres of the lists are learnt, in so many
_ITERATIONS = 2  # of k-means: more make the search no better, and a bank is searched once
_SEED = 1

Values = NDArray[np.float32]
Places = NDArray[np.int64]


class RowIndex:
    """Rows float32 [m, c] that can be searched for those nearest to queries.

    Small banks, and those that are not on the CPU, are searched exactly. Of others an inverted file
    is made: rows are listed with the nearest of about 4 sqrt(m) centres (k-means), and a query is
    compared with the rows of the lists whose centres are nearest to it: 4, or as many as hold about
    6 k rows. The cost of a query grows with the square root of m. The same rows in the same order
    give the same lists.
    """

    def __init__(self, rows: Tensor) -> None:
        self._count = len(rows)
        large = rows.device.type == "cpu" and len(rows) > _EXACT_ROWS
        self._index = _make_lists(rows) if large else rows  # the lists hold rows of their own

    def search(self, queries: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """Find the k nearest rows, or all if there are fewer, for queries float32 [q, c].

        -> distances float32 [q, min(k, m)] ascending, rows int64 of the same shape. Where the lists
        hold fewer rows, the last are -1, at infinity.
        """
        k = min(k, self._count)
        if isinstance(self._index, Tensor):
            return nearest(queries, self._index, k)
        use_torch_threads()
        values = queries.contiguous().numpy()
        every = self._index.nlist
        probes = max(_PROBES, math.ceil(_COMPARED * k * every / self._count))
        squares, rows = _search_lists(self._index, values, k, min(probes, every))
        nothing = rows[:, 0] < 0  # in lists that are empty
        if nothing.any():
            squares[nothing], rows[nothing] = _search_lists(self._index, values[nothing], k, every)
        distances = torch.from_numpy(squares).sqrt_()
        found = torch.from_numpy(rows)
        return distances.masked_fill_(found < 0, torch.inf), found


def find_distinct(rows: Tensor) -> Tensor:
    """Find the first of each lot of equal rows, of rows float32 [m, c]: int64 [d], ascending."""
    generator = torch.Generator().manual_seed(_SEED)
    weights = torch.rand(rows.shape[1], generator=generator, dtype=torch.float64)
    names = rows.double() @ weights.to(rows.device)  # equal for equal rows, and hardly for others
    _, first = np.unique(names.cpu().numpy(), return_index=True)
    return torch.from_numpy(np.sort(first)).to(rows.device)


def _search_lists(
    lists: faiss.IndexIVFScalarQuantizer, queries: Values, k: int, probes: int
) -> tuple[Values, Places]:
    parameters = faiss.SearchParametersIVF(nprobe=probes)
    squares, rows = lists.search(queries, k, params=parameters)
    return squares, rows


def _make_lists(rows: Tensor) -> faiss.IndexIVFScalarQuantizer:
    """Build an inverted file of rows float32 [m, c].

    It holds them as float16, which are searched faster and change a distance by a thousandth.
    """
    use_torch_threads()
    values = rows.contiguous().numpy()
    channels, count = values.shape[1], int(_LISTS * math.sqrt(len(values)))
    clustering = faiss.Kmeans(
        channels,
        count,
        niter=_ITERATIONS,
        seed=_SEED,
        max_points_per_centroid=_TRAINED,
        min_points_per_centroid=1,
    )
    clustering.train(values)
    centres = faiss.IndexFlatL2(channels)
    centres.add(clustering.centroids)
    precision = faiss.ScalarQuantizer.QT_fp16
    lists = faiss.IndexIVFScalarQuantizer(
        centres, channels, count, precision, faiss.METRIC_L2, False
    )
    lists.is_trained = True  # float16 needs no training, and the centres are known
    lists.add(values)
    return lists
