"""The images that are nearest to each patch, by the nearest of their patches."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

RANKS = 4  # times k images make the score; those beyond would weigh less than 2 %
DUPLICATES = (2, 16)  # near-duplicates of an image, at most, in a small and in a large set;
_DUPLICATE_SHARE = 16  # between them 1 in so many images
_DUPLICATE_CLOSENESS = 0.05  # of near-duplicates, at least
_BEFORE_GAP = 2  # images at least: of a few in the same pose one is often closer than all others


@dataclass(frozen=True)
class RankedImages:
    """The nearest images of q patches, in the order of their distances.

    images int64 [q, j]: columns of the bank's images, -1 where fewer were found; distances float32
    [q, j], ascending: to the nearest row of each image, and `bound` where there is none; rows int64
    [q, j]: that row of the bank; bound float32 [q]: all other images are at least so far.
    """

    images: Tensor
    distances: Tensor
    rows: Tensor
    bound: Tensor

    @classmethod
    def of_rows(
        cls, distances: Tensor, rows: Tensor, owners: Tensor, columns: int, own: Tensor, j: int
    ) -> "RankedImages":
        """Keep of the nearest rows the first of each image.

        distances [q, K] ascending and rows int64 [q, K] of the bank, -1 where there is none; owners
        int64 [m]: the image of each row, of so many columns; own int64 [q]: the patch's own image,
        which is left out, or -1; j: how many images are kept.
        """
        missing = rows < 0
        bound = distances.masked_fill(missing, 0).amax(1)
        images = owners[rows.clamp_min(0)]
        # Where each image comes first, by a table of all images: sorting takes five times as long.
        place = torch.arange(rows.shape[1], dtype=torch.int32, device=rows.device).expand_as(images)
        first = place.new_full((len(rows), columns), rows.shape[1])
        first.scatter_reduce_(1, images, place, "amin")
        wanted = (first.gather(1, images) == place) & ~missing & (images != own[:, None])
        return cls(images, distances, rows, bound)._keep(wanted, j)

    @classmethod
    def join(cls, parts: Sequence[Self]) -> Self:
        """Join what was found for several lots of patches."""
        return cls(*map(torch.cat, zip(*(vars(part).values() for part in parts), strict=True)))

    def select(self, which: Tensor) -> "RankedImages":
        """Return what was found for some of the patches, int64 [r] or bool [q]."""
        return RankedImages(*(values[which] for values in vars(self).values()))

    @property
    def known(self) -> Tensor:
        """Count the images that were found for each patch, int64 [q]."""
        return (self.images >= 0).sum(1)

    def without(self, left_out: Tensor, image: Tensor) -> "RankedImages":
        """Leave out some of the bank's images, for each of i images, bool [i, b].

        image int64 [q]: which of the i each patch is of.
        """
        out = left_out[image[:, None], self.images.clamp_min(0)]
        return self._keep((self.images >= 0) & ~out, out.shape[1])

    def _keep(self, wanted: Tensor, j: int) -> "RankedImages":
        """Keep the first j of the columns that are wanted, bool [q, K]; fewer leave some empty."""
        count = wanted.shape[1]
        place = torch.where(wanted, wanted.cumsum(1) - 1, count)
        order = place.new_zeros(len(place), max(j, count) + 1)
        order.scatter_(1, place, torch.arange(count, device=place.device).expand_as(place))
        order = order[:, :j]
        there = torch.arange(j, device=order.device)
        wanted = there < wanted.sum(1, keepdim=True)
        return RankedImages(
            torch.where(wanted, self.images.gather(1, order), -1),
            torch.where(wanted, self.distances.gather(1, order), self.bound[:, None]),
            self.rows.gather(1, order),
            self.bound,
        )

    def replace(self, which: Tensor, others: "RankedImages") -> None:
        """Replace what was found for the patches at `which`, int64 [r]."""
        for mine, new in zip(vars(self).values(), vars(others).values(), strict=True):
            mine[which] = new

    def last_gap(self, gap: float, most: Tensor, excused: Tensor) -> Tensor:
        """Count the images before the last gap, int64 [q]; 0 if there is none.

        A gap: the next image, or the bound, is more than `gap` times as far. Before it lie 2 images
        at least and `most` int64 [q] at most. excused float32 [q, j]: how far each image is to be
        excused; a mean above 0 of those before it makes it no gap.
        """
        ranks = torch.arange(1, self.images.shape[1], device=self.images.device)
        gaps = self.distances[:, 1:] > gap * self.distances[:, :-1]
        gaps &= (ranks >= _BEFORE_GAP) & (ranks <= most[:, None])
        gaps &= excused.cumsum(1)[:, :-1] <= 0
        return torch.where(gaps, ranks, 0).amax(1) if len(ranks) else self.known * 0

    def from_rank(self, start: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """Return distances and rows [q, count] of the images from rank `start` int64 [q] on.

        Beyond those that were found the distance is the bound, and the row that of the last one.
        """
        places = start[:, None] + torch.arange(count, device=start.device)
        last = (self.known - 1).clamp_min(0)[:, None]
        beyond, places = places > last, places.minimum(last)
        distances = torch.where(beyond, self.bound[:, None], self.distances.gather(1, places))
        return distances, self.rows.gather(1, places)

    def average_from(self, start: Tensor, others: Tensor, k: int) -> Tensor:
        """Average the distances of the images from rank `start` on, the nearest most, [q].

        The weights are (1 - 1/k)^i; others int64 [q]: how many images there are in all.
        """
        distances, _ = self.from_rank(start, RANKS * k)
        ranks = torch.arange(RANKS * k, device=distances.device)
        weights = (1 - 1 / k) ** ranks * (start[:, None] + ranks < others[:, None])
        return (distances * weights).sum(1) / weights.sum(1)

    def closeness(self, image: Tensor, own: Tensor, count: int, columns: int) -> Tensor:
        """Measure how close images of the bank are to `count` others as wholes, float32 [count, b].

        image int64 [q]: of which of them each patch is; own int64 [q]: as in `of_rows`; columns: b.
        Closeness is 1 less the mean of min(distance, limit) over the mean limit, the distance of a
        patch's median image or of the last that is kept: 0 if no patch of an image is nearer, 1 if
        all are at no distance.
        """
        # An image that is not in the bank may have a twin there: then both have one limit.
        middle = max(0, (columns - 1) // 2 - 1) + (own < 0).long()
        middle = middle.clamp_max(self.distances.shape[1] - 1)
        limit = self.distances.gather(1, middle[:, None])[:, 0]
        gains = (limit[:, None] - self.distances).clamp_min(0)
        places = image[:, None] * columns + self.images.clamp_min(0)
        close = gains.new_zeros(count * columns)
        close.scatter_add_(0, places.flatten(), gains.flatten())
        whole = gains.new_zeros(count).scatter_add_(0, image, limit)
        whole = whole.clamp_min(torch.finfo(torch.float32).tiny)
        return close.view(count, columns) / whole[:, None]


def find_near_duplicates(close: Tensor, ratio: float) -> Tensor:
    """Say which images are `ratio` times as close as the next one, or closer, bool [i, b].

    close float32 [i, b]: see `RankedImages.closeness`; -inf of images that do not count.
    """
    others = close.isfinite().sum(1, keepdim=True)
    values = close.sort(1, descending=True).values
    before = torch.arange(1, values.shape[1], device=values.device)
    gaps = (values[:, :-1] > ratio * values[:, 1:]) & (before < others)
    gaps &= values[:, :-1] > _DUPLICATE_CLOSENESS
    gaps &= before <= (others // _DUPLICATE_SHARE).clamp(*DUPLICATES)
    return close >= torch.where(gaps, values[:, :-1], torch.inf).amin(1, keepdim=True)
