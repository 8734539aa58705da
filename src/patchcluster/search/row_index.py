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
_NAMED = 8192  # rows at a time, so that their copies in float64 take little memory

Values = NDArray[np.float32]
Places = NDArray[np.int64]


class RowIndex:
    """Rows float32 [m, c] that can be searched for those nearest to queries.

    Small banks, and those that are not on the CPU, are searched exactly. Of others an inverted file
    is made: rows are listed with the nearest of about 4 sqrt(m) centres (k-means), and a query is
    compared with the rows of the lists whose centres are nearest to it: 4, or as many as hold about
    6 k rows. The cost of a query grows with the square root of m. The same rows give the same lists
    in any order, but for rows that are as near to two centres. Rows are of length 1 at most, or
    thereabouts: they are kept as float16.
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
    """Find one of each lot of equal rows, of rows float32 [m, c]: int64 [d].

    The first of each, in an order that does not depend on that of the rows.
    """
    generator = torch.Generator().manual_seed(_SEED)
    weights = torch.rand(rows.shape[1], generator=generator, dtype=torch.float64).to(rows.device)
    # A number that is equal for equal rows, and hardly for others.
    names = torch.cat([(part.double() * weights).sum(1) for part in torch.split(rows, _NAMED)])
    _, first = np.unique(names.cpu().numpy(), return_index=True)
    return torch.from_numpy(first).to(rows.device)


def _search_lists(
    lists: faiss.IndexIVFScalarQuantizer, queries: Values, k: int, probes: int
) -> tuple[Values, Places]:
    parameters = faiss.SearchParametersIVF(nprobe=probes)
    squares, rows = lists.search(queries, k, params=parameters)
    return squares, rows


def _make_lists(rows: Tensor) -> faiss.IndexIVFScalarQuantizer:
    """Build an inverted file of rows float32 [m, c].

    It holds them as float16, which are searched faster and change a distance by up to a thousandth
    of the rows' length.
    """
    values = rows.contiguous().numpy()
    centres = faiss.IndexFlatL2(values.shape[1])
    centres.add(_find_centres(rows, int(_LISTS * math.sqrt(len(rows)))))
    channels, count = values.shape[1], centres.ntotal
    precision = faiss.ScalarQuantizer.QT_fp16
    lists = faiss.IndexIVFScalarQuantizer(
        centres, channels, count, precision, faiss.METRIC_L2, False
    )
    lists.is_trained = True  # float16 needs no training, and the centres are known
    use_torch_threads()
    lists.add(values)
    return lists


def _find_centres(rows: Tensor, count: int) -> Values:
    """Find so many centres of rows [m, c] by k-means, float32 [count, c], fewer of few rows.

    They depend neither on the order of the rows nor on the number of threads: a part of the
    distinct rows, spread over their order in `find_distinct`, is clustered in one thread.
    """
    distinct = find_distinct(rows)
    count = min(count, len(distinct))
    sample = rows[distinct[:: max(1, len(distinct) // (_TRAINED * count))]].contiguous().numpy()
    clustering = faiss.Kmeans(
        rows.shape[1],
        count,
        niter=_ITERATIONS,
        seed=_SEED,
        max_points_per_centroid=len(sample),  # all that are given
        min_points_per_centroid=1,
    )
    threads = torch.get_num_threads()  # of OpenMP, which both have in common
    faiss.omp_set_num_threads(1)
    try:
        clustering.train(sample)
    finally:
        torch.set_num_threads(threads)
    centres: Values = clustering.centroids
    return centres
