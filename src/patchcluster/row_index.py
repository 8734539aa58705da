"""The rows of a bank, indexed for searches of K nearest rows: faiss on the CPU, torch elsewhere."""

import math

import faiss
import torch
from torch import Tensor

from .neighbors import nearest, use_torch_threads

NEAREST_ROWS = 96  # of a bank, that the default method asks for a patch; times are measured by it
_EXACT_ROWS = 8_000  # of a bank up to which an inverted file saves little (10 images of 784 rows)
_LISTS = 4  # of the inverted file, times the square root of the number of rows
_PROBES = 8  # lists that are searched for a query
_TRAINED = 16  # rows a list from which the centres of the lists are learnt, in so many
_ITERATIONS = 2  # of k-means: more make the search no better, and a bank is searched once
_SEED = 1


class RowIndex:
    """Rows float32 [m, c] that can be searched for those nearest to queries.

    Small banks, and those that are not on the CPU, are searched exactly. Of others an inverted file
    is made: rows are listed with the nearest of about 4 sqrt(m) centres (k-means), and a query is
    compared with the rows of the 8 lists whose centres are nearest to it. The cost of a query grows
    with the square root of m. The same rows in the same order give the same lists.
    """

    def __init__(self, rows: Tensor) -> None:
        self._count = len(rows)
        large = rows.device.type == "cpu" and len(rows) > _EXACT_ROWS
        self._index = _make_lists(rows) if large else rows  # the lists hold a copy of the rows

    def search(self, queries: Tensor, k: int, effort: int = 1) -> tuple[Tensor, Tensor]:
        """Find the k nearest rows, or all if there are fewer, for queries float32 [q, c].

        effort: how many times the usual number of lists is searched. -> distances float32
        [q, min(k, m)] ascending, rows int64 of the same shape. Where the lists hold fewer rows,
        the last are -1, at infinity.
        """
        k = min(k, self._count)
        if isinstance(self._index, Tensor):
            return nearest(queries, self._index, k)
        use_torch_threads()
        parameters = faiss.SearchParametersIVF(nprobe=_PROBES * effort)
        squares, rows = self._index.search(queries.contiguous().numpy(), k, params=parameters)
        distances = torch.from_numpy(squares).sqrt_()
        found = torch.from_numpy(rows)
        return distances.masked_fill_(found < 0, torch.inf), found


def _make_lists(rows: Tensor) -> faiss.IndexIVFScalarQuantizer:
    """Build an inverted file of rows float32 [m, c].

    It holds them as float16: they come from patches of that precision, and reading them is most of
    what a search takes.
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
    lists.is_trained = True
    lists.add(values)
    return lists
