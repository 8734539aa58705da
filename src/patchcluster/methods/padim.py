"""PaDiM (Defard et al., ICPR 2021)."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ..errors import SettingError
from ..search.neighbors import to_float
from . import FACTS
from .base import Comparison, Given, Method, Progress
from .grids import Grids, flatten

_REGULARISATION = 0.01  # of every covariance, as in PaDiM's paper
_POSITIONS = 64  # whose covariances are worked on at a time


class PaDiM(Method):
    """Score a patch by its Mahalanobis distance to a Gaussian fitted at its position.

    The Gaussian of a position is that of the patches of all images there, in `dimensions` channels
    chosen at random, with 0.01 added to the diagonal of its covariance. All images must therefore
    have one grid. Scored blindly, an image is part of what it is compared with; there is no
    neighbour to show.

    Parameters: `dimensions`, 550 in PaDiM's paper for WideResNet50 (all, if there are fewer);
    `seed` of their choice.
    """

    name = "padim"
    facts = FACTS[name]
    layout = "fine"
    strides = (4, 8, 16)
    one_size = True
    learned = ("channels", "grid", "whitening")

    def __init__(self, dimensions: int = 550, seed: int = 0) -> None:
        self.dimensions = dimensions
        self.seed = seed

    def _fit(self, grids: Grids, given: Given) -> None:
        channels = grids[0].shape[-1]
        chosen = np.random.default_rng(self.seed).permutation(channels)[: self.dimensions]
        self.channels_ = torch.from_numpy(np.sort(chosen))
        self.grid_ = torch.tensor(grids[0].shape[:2])
        self.image_count_ = len(grids)
        # The bank holds no patches, only the mean of each position.
        self.bank_image_ = self.bank_patch_ = torch.empty(0, dtype=torch.int64)
        rows = torch.stack([self._rows(grid) for grid in grids])
        self.bank_ = rows.mean(0)
        self.whitening_ = self._whiten(rows, given.progress)

    def _rows(self, grid: Tensor) -> Tensor:
        """Patches [h, w, c] -> chosen channels float32 [h * w, d]."""
        if list(grid.shape[:2]) != self.grid_.tolist():
            raise SettingError(
                f"padim needs images of one size: a grid of {list(grid.shape[:2])} among grids of "
                f"{self.grid_.tolist()}. Choose another method for mixed sizes"
            )
        return to_float(flatten(grid))[:, self.channels_.to(grid.device)].float()

    def _whiten(self, rows: Tensor, progress: Progress) -> Tensor:
        """Inverse Cholesky factors [p, d, d] of the covariances of rows [n, p, d]."""
        count, positions, dimensions = rows.shape
        factors = rows.new_empty(positions, dimensions, dimensions)
        ridge = _REGULARISATION * torch.eye(dimensions, device=rows.device, dtype=torch.float64)
        for start in range(0, positions, _POSITIONS):
            part = slice(start, start + _POSITIONS)
            centred = (rows[:, part] - self.bank_[part]).double().permute(1, 0, 2)
            covariance = centred.mT @ centred / (count - 1) + ridge
            lower = torch.linalg.cholesky(covariance)
            identity = torch.eye(dimensions, device=rows.device, dtype=torch.float64)
            factors[part] = torch.linalg.solve_triangular(lower, identity, upper=False).float()
            progress(min(start + _POSITIONS, positions), positions)
        return factors

    def relative_cost(self, scored: int, bank: int) -> float:
        del scored  # which takes less
        return 10 * bank

    def extra_memory(self, images: int, patches: int, channels: int) -> int:
        dimensions = min(self.dimensions, channels)
        factors = patches * dimensions**2
        # The rows of all images twice, the factors as they are, as they are written and read.
        return 4 * (2 * images * patches * dimensions + 3 * factors)

    def compare(
        self,
        grids: Sequence[Tensor],
        own: Sequence[int] | None = None,
        blocks: Sequence[Tensor] | None = None,
    ) -> Comparison:
        del blocks  # grids are whole
        del own  # the Gaussians cannot leave an image out
        rows = torch.stack([self._rows(grid) for grid in grids])
        whitened = torch.einsum("pij,npj->npi", self.whitening_, rows - self.bank_)
        distances = whitened.norm(dim=2).reshape(-1, 1)
        nothing = distances[:, :0]
        return Comparison(distances, nothing.long(), nothing)
