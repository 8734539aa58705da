"""Candidates for nearest neighbours from bfloat16 products, with a proof that none was missed.

Rows are rounded to bfloat16; all else is exact enough to reason about. The squared distance of two
rounded rows comes out of one matrix product, since their norms ride along in six more columns:

    [b, |b|^2 / 2 in three parts, 1, 1, 1] . [-q, 1, 1, 1, |q|^2 / 2 in three parts] = |q - b|^2 / 2

The product adds in float32 and only its result is rounded, to within 2^-8 of itself: what is near
stays sharp. By the triangle inequality the distance of two rows differs from that of the rounded
ones by at most the lengths of what was rounded off, which are known. So a query whose k-th exact
distance among its candidates lies below everything that the others can have is proven; the few
others have to be searched again.
"""

from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

_QUERIES = 256  # at a time
_ROWS = 3200  # of the bank in a product; with the queries its result stays in cache
_CHUNK = 40 * _ROWS  # of the bank whose products are kept at a time (64 MiB)
_GROUP, _GROUPS = 4, 16  # rows whose minimum is kept, and such minima whose minimum is kept
_NORM_PARTS = 3  # bfloat16 numbers that add up to a float32
_ROUNDING = 2.0**-8  # relative, of a bfloat16 result: it has 8 significant bits
_FAR = torch.iinfo(torch.int16).max


def available() -> bool:
    """Whether this processor multiplies bfloat16 faster than float32."""
    supported = getattr(torch.cpu, "_is_avx512_bf16_supported", None)
    return supported is not None and bool(supported())


@dataclass(frozen=True)
class Candidates:
    """Rows of the bank int64 [q, j] for each query; all others are at least `others` [q] away."""

    rows: Tensor
    others: Tensor


class Screen:
    """A bank float32 [m, c], ready for screening; rows should be centred."""

    def __init__(self, bank: Tensor) -> None:
        self.size = len(bank)
        self.rows, rounded_off = _augment(bank, is_query=False)
        self.rounded_off = rounded_off.max()
        # Relative error of the sums, which run in at least 16 lanes, twice over. Of rows b with
        # |b| <= 3 |q| it is at most 10 |q|^2 times this, of others 8 times this of the result.
        self._adding = self.rows.shape[1] / 16 * 2.0**-23
        # Products are compared by their bits, which order as the numbers do while these are
        # positive. What rounding makes negative is 0 but for noise, and comes first anyway.
        padded = -(-min(self.size, _CHUNK) // (_GROUP * _GROUPS)) * _GROUP * _GROUPS
        self._bits = torch.empty(padded * _QUERIES, dtype=torch.int16)
        self._minima = torch.empty(padded // _GROUP * _QUERIES, dtype=torch.int16)

    def __call__(self, queries: Tensor, count: int) -> Candidates:
        """The `count` rows that look nearest to each query [q, c], in no order; count <= m."""
        rows, others = [], []
        for i in range(0, len(queries), _QUERIES):
            across, rounded_off = _augment(queries[i : i + _QUERIES], is_query=True)
            found, highest = self._screen(across.T, count)
            halves = highest.double() * (1 - _ROUNDING - 8 * self._adding)
            halves -= 10 * self._adding * queries[i : i + _QUERIES].double().square().sum(1)
            rows.append(found)
            near = (2 * halves.clamp_min(0)).sqrt()
            others.append(near - rounded_off - self.rounded_off)
        return Candidates(torch.cat(rows), torch.cat(others))

    def _screen(self, across: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """Rows [q, count] with the smallest products, and the largest product among them [q]."""
        values = torch.empty(across.shape[1], 0)
        rows = torch.empty(across.shape[1], 0, dtype=torch.int64)
        for start in range(0, self.size, _CHUNK):
            chunk = self.rows[start : start + _CHUNK]
            more, found = self._screen_chunk(chunk, across, min(count, len(chunk)))
            values, rows = torch.cat([values, more], 1), torch.cat([rows, found + start], 1)
            if values.shape[1] > count:
                values, chosen = values.topk(count, 1, largest=False, sorted=False)
                rows = rows.gather(1, chosen)
        return rows, values.max(1).values

    def _screen_chunk(self, chunk: Tensor, across: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """The smallest products [q, count] and their rows, by way of minima of minima."""
        queries = across.shape[1]
        padded = -(-len(chunk) // (_GROUP * _GROUPS)) * _GROUP * _GROUPS
        bits = self._bits[: padded * queries].view(padded, queries)
        minima = self._minima[: padded // _GROUP * queries].view(-1, queries)
        bits[len(chunk) :] = _FAR
        products = bits.view(torch.bfloat16)
        for start in range(0, len(chunk), _ROWS):
            stop = min(start + _ROWS, len(chunk))
            torch.mm(chunk[start:stop], across, out=products[start:stop])
            end = padded if stop == len(chunk) else stop
            groups = bits[start:end].view(-1, _GROUP, queries)
            torch.amin(groups, 1, out=minima[start // _GROUP : end // _GROUP])
        column = torch.arange(queries)[:, None]
        # The groups with the smallest minima hold the smallest values: twice, then their rows.
        top = minima.view(-1, _GROUPS, queries).amin(1).T.contiguous()
        places = _spread(_smallest(top, count), _GROUPS)
        best = _smallest(minima.view(-1)[places * queries + column], count)
        rows = _spread(places.gather(1, best), _GROUP)
        found = bits.view(-1)[rows * queries + column]
        chosen = _smallest(found, count)
        return found.gather(1, chosen).view(torch.bfloat16).float(), rows.gather(1, chosen)


class BlockScreen:
    """Rows float32 [m, c] in contiguous blocks given by offsets [n + 1], asked for their minima."""

    def __init__(self, rows: Tensor, offsets: list[int]) -> None:
        self.rows, _ = _augment(rows, is_query=False)
        self.offsets = offsets

    def __call__(self, queries: Tensor) -> Tensor:
        """About half the squared distance to the nearest row of each block, float32 [n, q]."""
        queries, _ = _augment(queries, is_query=True)
        across = queries.T.contiguous()
        blocks = list(pairwise(self.offsets))
        longest = max(stop - start for start, stop in blocks)
        bits = torch.empty(longest, len(queries), dtype=torch.int16)
        minima = torch.empty(len(blocks), len(queries), dtype=torch.int16)
        for block, (start, stop) in enumerate(blocks):
            products = bits[: stop - start]
            torch.mm(self.rows[start:stop], across, out=products.view(torch.bfloat16))
            torch.amin(products, 0, out=minima[block])
        return minima.view(torch.bfloat16).float()


def _smallest(values: Tensor, count: int) -> Tensor:
    """Places of the smallest values int16 [q, m] in each row, at most `count`."""
    kept = min(count, values.shape[1])
    return values.float().topk(kept, 1, largest=False, sorted=False).indices


def _spread(places: Tensor, size: int) -> Tensor:
    """Groups [q, j] -> the places of their members [q, j * size]."""
    return (places[:, :, None] * size + torch.arange(size)).flatten(1)


def _augment(rows: Tensor, is_query: bool) -> tuple[Tensor, Tensor]:
    """Rows [m, c] -> bfloat16 with columns for the norms, and the lengths that were rounded off."""
    count, channels = rows.shape
    width = -(-(channels + 2 * _NORM_PARTS) // 16) * 16
    wide = torch.zeros(count, width, dtype=torch.bfloat16)
    wide[:, :channels] = rows
    rounded = wide[:, :channels].float()
    left = rounded.square().sum(1) / 2
    norm_at, one_at = channels + _NORM_PARTS * is_query, channels + _NORM_PARTS * (not is_query)
    wide[:, one_at : one_at + _NORM_PARTS] = 1
    for part in range(_NORM_PARTS):
        wide[:, norm_at + part] = left
        left = left - wide[:, norm_at + part].float()
    if is_query:
        wide[:, :channels].neg_()
    return wide, torch.linalg.vector_norm(rows - rounded, dim=1)
