"""The rows of a bank, indexed for searches of K nearest rows: faiss on the CPU, torch elsewhere."""

import math

import faiss
import numpy as np
import torch
from torch import Tensor

from .neighbors import nearest, nearest_inside, use_torch_threads

NEAREST_ROWS = 96  # that the default method finds for a patch; times are measured by it
_EXACT_ROWS = 8_000  # of a bank up to which an inverted file saves little (10 images of 784 rows)
_LISTS = 4  # of the inverted file, times the square root of the number of rows
_PROBES = 4  # lists that are searched for a query, at least, and as many as hold
_COMPARED = 6  # times k rows
_TRAINED = 16  # rows a list from which the centres of the lists are learnt, in so many
_ITERATIONS = 2  # of k-means: more make the search no better, and a bank is searched once
_SEED = 1
_AXES, _CELL = 4, 0.05  # of the cells that rows are drawn by; a row's length is 1 at most
_NAMED = 8192  # rows at a time, so that their copies in float64 take little memory


class RowIndex:
    """Rows float32 [m, c] that can be searched for those nearest to queries.

    Small banks are searched exactly. Of others an inverted file is made: rows are listed with the
    nearest of about 4 sqrt(m) centres (k-means), and a query is compared with the rows of the lists
    whose centres are nearest to it: 4, or as many as hold about 6 k rows. On the CPU the cost of a
    query grows with the square root of m. The same rows give the same lists in any order and on any
    device, but for rows that are as near to two centres. Rows are of length 1 at most, or
    thereabouts: they are rounded to float16.
    """

    def __init__(self, rows: Tensor) -> None:
        self._index: Tensor | FaissLists | TorchLists = rows
        if len(rows) > _EXACT_ROWS:
            centres = _find_centres(rows, int(_LISTS * math.sqrt(len(rows))))
            kind = FaissLists if rows.device.type == "cpu" else TorchLists
            self._index = kind(rows, centres)  # which holds rows of its own

    def search(self, queries: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """Find the k nearest rows, or all if there are fewer, for queries float32 [q, c].

        -> distances float32 [q, min(k, m)] ascending, rows int64 of the same shape. Where the lists
        hold fewer rows, the last are -1, at infinity.
        """
        lists = self._index
        if isinstance(lists, Tensor):
            return nearest(queries, lists, min(k, len(lists)))
        count, every = lists.row_count, lists.list_count
        k = min(k, count)
        probes = max(_PROBES, math.ceil(_COMPARED * k * every / count))
        distances, rows = lists.search(queries, k, min(probes, every))
        nothing = rows[:, 0] < 0  # in lists that are empty
        if nothing.any():
            distances[nothing], rows[nothing] = lists.search(queries[nothing], k, every)
        return distances, rows


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


class FaissLists:
    """Rows float32 [m, c] listed with the nearest of centres float32 [l, c], as faiss has them.

    It holds them as float16, which are searched faster and change a distance by up to a thousandth
    of the rows' length.
    """

    def __init__(self, rows: Tensor, centres: Tensor) -> None:
        self.list_count, channels = centres.shape
        self.row_count = len(rows)
        quantizer = faiss.IndexFlatL2(channels)
        quantizer.add(centres.numpy())
        precision = faiss.ScalarQuantizer.QT_fp16
        self._index = faiss.IndexIVFScalarQuantizer(
            quantizer, channels, self.list_count, precision, faiss.METRIC_L2, False
        )
        self._index.is_trained = True  # float16 needs no training, and the centres are known
        use_torch_threads()
        self._index.add(rows.contiguous().numpy())

    def search(self, queries: Tensor, k: int, probes: int) -> tuple[Tensor, Tensor]:
        """Find the k nearest rows of so many lists: see `RowIndex.search`."""
        use_torch_threads()
        parameters = faiss.SearchParametersIVF(nprobe=probes)
        squares, rows = self._index.search(queries.contiguous().numpy(), k, params=parameters)
        found = torch.from_numpy(rows)
        return torch.from_numpy(squares).sqrt_().masked_fill_(found < 0, torch.inf), found


class TorchLists:
    """The lists on any device: queries are multiplied by all rows, and masked to their lists."""

    def __init__(self, rows: Tensor, centres: Tensor) -> None:
        self.list_count, self.row_count = len(centres), len(rows)
        self._centres = centres.to(rows.device)
        self._list_of_row = nearest(rows, self._centres, 1)[1][:, 0]
        self._rows = rows.half().float()  # as faiss has them

    def search(self, queries: Tensor, k: int, probes: int) -> tuple[Tensor, Tensor]:
        """Find the k nearest rows of so many lists: see `RowIndex.search`."""
        lists = nearest(queries, self._centres, probes)[1]
        outside = torch.ones(len(queries), self.list_count, dtype=torch.bool, device=lists.device)
        outside.scatter_(1, lists, False)
        return nearest_inside(queries, self._rows, k, self._list_of_row, outside)


def _find_centres(rows: Tensor, count: int) -> Tensor:
    """Find so many centres of rows [m, c] by k-means, float32 [count, c], fewer of few rows.

    They depend neither on the order of the rows nor on the number of threads, and hardly on the
    last digits of the rows, in which processors differ: a part of the distinct rows, drawn by
    their values, is clustered in one thread.
    """
    distinct = find_distinct(rows)
    count = min(count, len(distinct))
    drawn = distinct[_draw_order(rows)[distinct].sort(stable=True).indices]
    sample = rows[drawn[: _TRAINED * count]].cpu().numpy()
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
        clustering.train(sample, init_centroids=sample[:count])
    finally:
        torch.set_num_threads(threads)
    return torch.from_numpy(clustering.centroids)


def _draw_order(rows: Tensor) -> Tensor:
    """Give each row float32 [m, c] a number by which rows can be drawn at random, int64 [m].

    It is a hash of the cell that the row lies in, so that hardly any row gets another one when its
    last digits change.
    """
    generator = torch.Generator().manual_seed(_SEED)
    axes = torch.randn(rows.shape[1], _AXES, generator=generator, dtype=torch.float64)
    factors = torch.randint(-(2**62), 2**62, (_AXES,), generator=generator)
    axes, factors = axes.to(rows.device), factors.to(rows.device)
    parts = torch.split(rows, _NAMED)
    cells = (torch.floor(part.double() @ axes / _CELL).long() for part in parts)
    return torch.cat([(cell * factors).sum(1) for cell in cells])
