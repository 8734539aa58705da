"""Reverse distillation (Deng and Li, CVPR 2022), on the stages of any teacher."""

from collections.abc import Iterator, Sequence
from itertools import pairwise

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import SettingError
from ..search.neighbors import to_float
from . import FACTS
from .base import Comparison, Given, Method, Progress
from .grids import Grids
from .stages import Stages

_LEARNING_RATE = 0.005  # this and the betas as in reverse distillation's paper
_BETAS = (0.5, 0.999)
_STEPS = 16  # an epoch has at least; a small set is passed through several times
_HELD_OUT = 10  # one image in so many says when to stop
_TRAINING_BYTES = 30  # a value of the stages in a batch; measured on the CPU
_WEIGHT_COPIES = 5  # the weights, their gradients, two moments, and the best so far


class ReverseDistillation(Method):
    """Score a patch by how badly a student that sees only a bottleneck gives it back.

    The teacher is the pretrained network. The one-class bottleneck brings its stages to one grid,
    joins them and halves the grid again; the student, a decoder, gives each stage back from that.
    Both are trained on the set, on the sum over the stages of 1 - cosine of the student's and the
    teacher's feature at each place (equation 1 there); the score is the same sum, the stages
    brought bilinearly to the finest grid (equation 3). Made for sets that are known to be normal
    (the one-class setting of the paper's Table 4). There is no bank and no neighbour to show.

    Training stops after `epochs`, or once images that are held out (1 in 10; all, in sets below 10)
    have not been given back better for `patience` epochs (passes through the set, or 16 steps where
    that is more); the best state is kept. It depends on the set and the seed alone, but the number
    of threads changes its rounding, and with it the scores.

    Parameters: `epochs` (its paper: 200), `patience`, `batch` images a step, `seed` of the first
    weights and the order of the images; `stages`, the channels of each stage in the last axis of
    the patches, and `strides`, their strides in pixels; None: one stage.
    """

    name = "reverse-distillation"
    facts = FACTS[name]
    layout = "stages"
    strides = (4, 8, 16)
    learned = ("weights", "shape")

    def __init__(
        self,
        epochs: int = 200,
        patience: int = 5,
        batch: int = 16,
        seed: int = 0,
        stages: Sequence[int] | None = None,
        strides: Sequence[int] | None = None,
    ) -> None:
        self.epochs = epochs
        self.patience = patience
        self.batch = batch
        self.seed = seed
        self.stages = stages
        self.stage_strides = strides

    def _fit(self, grids: Grids, given: Given) -> None:
        self._check(grids[0].shape[-1])
        self.shape_ = torch.tensor(self._shape(grids[0].shape[-1]))
        self.bank_ = torch.empty(0, grids[0].shape[-1], device=grids[0].device)
        self.bank_image_ = self.bank_patch_ = torch.empty(0, dtype=torch.int64)
        self.image_count_ = len(grids)
        keys = given.keys_of(grids)
        # Training sees the images in an order that only their contents and the seed decide.
        ordered = [grids[i] for i in np.argsort(np.array(keys, np.uint64), kind="stable")]
        self.weights_ = self._train(ordered, given.progress)
        self._derive()

    def _check(self, channels: int) -> None:
        if self.stages is not None and sum(self.stages) != channels:
            raise SettingError(f"stages {list(self.stages)} do not add up to {channels} channels")
        if min(self.epochs, self.patience, self.batch) < 1:
            raise SettingError(
                f"epochs={self.epochs}, patience={self.patience}, batch={self.batch}: choose at "
                "least 1 of each"
            )

    def _shape(self, channels: int) -> tuple[list[int], list[int]]:
        """Channels of each stage, and how many times coarser than the first it is."""
        layout = Stages(self.stages, self.stage_strides, self.layout)
        return layout.widths(channels), layout.ratios

    def _train(self, grids: list[Tensor], progress: Progress) -> Tensor:
        """Train on images in a fixed order; the best weights as one vector."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            student = _Student(*self.shape_.tolist()).to(self.bank_.device)
        optimiser = torch.optim.Adam(student.parameters(), lr=_LEARNING_RATE, betas=_BETAS)
        rng = np.random.default_rng(self.seed)
        held_out, trained_on = _hold_out(grids, rng)
        best, best_loss, best_epoch = _to_vector(student), float("inf"), 0
        for epoch in range(1, self.epochs + 1):
            student.train()
            with torch.enable_grad():
                for batch in self._epoch(trained_on, rng):
                    optimiser.zero_grad()
                    student.distances(batch).mean().backward()  # type: ignore[no-untyped-call]
                    optimiser.step()
            loss = self._loss(student, held_out)
            if loss < best_loss:
                best, best_loss, best_epoch = _to_vector(student), loss, epoch
            progress(epoch, self.epochs)
            if epoch - best_epoch >= self.patience:
                break
        progress(self.epochs, self.epochs)
        return best

    def _epoch(self, grids: list[Tensor], rng: np.random.Generator) -> Iterator[Tensor]:
        """Batches float32 [n, h, w, c] of one epoch."""
        steps = 0
        while steps < _STEPS:
            for batch in _batches(grids, self.batch, rng):
                yield batch
                steps += 1

    def _loss(self, student: "_Student", grids: list[Tensor]) -> float:
        """Mean distance of held-out images."""
        student.eval()
        with torch.inference_mode():
            batches = list(_batches(grids, self.batch, None))
            total = sum(float(student.distances(b).mean()) * len(b) for b in batches)
        return total / len(grids)

    def _derive(self) -> None:
        self._student = _Student(*self.shape_.tolist()).to(self.weights_.device).eval()
        _from_vector(self._student, self.weights_)

    def relative_cost(self, scored: int, bank: int) -> float:
        del scored  # which takes less
        return 150 * bank

    def extra_memory(self, images: int, patches: int, channels: int) -> int:
        with torch.device("meta"):
            student = _Student(*self._shape(channels))
        weights = sum(value.nbytes for value in _values(student))
        batch = min(self.batch, images) * patches * channels
        return batch * _TRAINING_BYTES + weights * _WEIGHT_COPIES

    def compare(
        self,
        grids: Sequence[Tensor],
        own: Sequence[int] | None = None,
        blocks: Sequence[Tensor] | None = None,
    ) -> Comparison:
        del blocks  # grids are whole
        del own  # what was learned cannot leave an image out
        parts = []
        with torch.inference_mode():
            for grid in grids:
                parts.append(self._student.distances(to_float(grid)[None].float()).reshape(-1, 1))
        distances = torch.cat(parts)
        nothing = distances[:, :0]
        return Comparison(distances, nothing.long(), nothing)


def _hold_out(grids: list[Tensor], rng: np.random.Generator) -> tuple[list[Tensor], list[Tensor]]:
    """Images that say when to stop, and images to train on."""
    if len(grids) < _HELD_OUT:
        return grids, grids
    order = rng.permutation(len(grids))
    count = len(grids) // _HELD_OUT
    return [grids[i] for i in order[:count]], [grids[i] for i in order[count:]]


def _batches(grids: list[Tensor], size: int, rng: np.random.Generator | None) -> Iterator[Tensor]:
    """Batches float32 [n, h, w, c] of images of one size, in random order if rng is given."""
    order = range(len(grids)) if rng is None else rng.permutation(len(grids)).tolist()
    groups: dict[tuple[int, ...], list[int]] = {}
    for i in order:
        groups.setdefault(tuple(grids[i].shape), []).append(i)
    batches = [g[i : i + size] for g in groups.values() for i in range(0, len(g), size)]
    if rng is not None:
        batches = [batches[i] for i in rng.permutation(len(batches))]
    for batch in batches:
        yield torch.stack([to_float(grids[i]).float() for i in batch])


# --- the network ----------------------------------------------------------------------------------


class _Student(nn.Module):
    """Bottleneck and decoder for stages of so many channels, each `ratios` coarser than the first.

    It takes patches in the layout `stages`, and works in maps [n, c, h, w].
    """

    def __init__(self, channels: Sequence[int], ratios: Sequence[int]) -> None:
        super().__init__()
        self.channels, self.ratios = list(channels), list(ratios)
        last = channels[-1]
        self.bring = nn.ModuleList(
            _bring_down(c, last, ratios[-1] // r) for c, r in zip(channels, ratios, strict=True)
        )
        self.embed = nn.Sequential(
            _block(last * len(channels), 2 * last, stride=2), _block(2 * last, 2 * last)
        )
        wide = [2 * last, *reversed(channels)]
        grids = [2 * ratios[-1], *reversed(ratios)]
        self.rise = nn.ModuleList(
            _bring_up(*widths, coarse // fine)
            for widths, (coarse, fine) in zip(pairwise(wide), pairwise(grids), strict=True)
        )
        self.give = nn.ModuleList(nn.Conv2d(c, c, 1) for c in reversed(channels))

    def distances(self, patches: Tensor) -> Tensor:
        """Patches [n, h, w, c] -> sum over the stages of 1 - cosine, [n, h, w]."""
        stages = self._split(patches)
        total = patches.new_zeros(len(patches), 1, *patches.shape[1:3])
        for teacher, student in zip(stages, self(stages), strict=True):
            distance = 1 - F.cosine_similarity(teacher, student, dim=1)[:, None]
            total = total + F.interpolate(
                distance, size=total.shape[-2:], mode="bilinear", align_corners=False
            )
        return total[:, 0]

    def forward(self, stages: Sequence[Tensor]) -> list[Tensor]:
        """The teacher's stages [n, c_s, h_s, w_s] -> the student's, in the same order."""
        grid = stages[-1].shape[-2:]
        joined = [
            F.interpolate(bring(stage), size=grid, mode="nearest")
            for bring, stage in zip(self.bring, stages, strict=True)
        ]
        x = self.embed(torch.cat(joined, 1))
        given = []
        for rise, give, stage in zip(self.rise, self.give, reversed(stages), strict=True):
            height, width = stage.shape[-2:]
            x = rise(x)[:, :, :height, :width]  # odd sides were rounded up on the way down
            given.append(give(x))
        return given[::-1]

    def _split(self, patches: Tensor) -> list[Tensor]:
        """Patches [n, h, w, c] -> the teacher's stages [n, c_s, h_s, w_s]."""
        maps = torch.split(patches.permute(0, 3, 1, 2), self.channels, 1)
        return [m[:, :, ::r, ::r].contiguous() for m, r in zip(maps, self.ratios, strict=True)]


def _bring_down(channels: int, out: int, ratio: int) -> nn.Sequential:
    """Blocks that halve the grid until it is `ratio` times coarser."""
    steps = max(0, ratio.bit_length() - 1)
    widths = [channels * 2**i for i in range(steps)] + [out]
    if steps == 0:
        return nn.Sequential(_block(channels, out, kernel=1))
    return nn.Sequential(*(_block(a, b, stride=2) for a, b in pairwise(widths)))


def _bring_up(channels: int, out: int, ratio: int) -> nn.Sequential:
    """Blocks that double the grid until it is `ratio` times finer."""
    steps = max(0, ratio.bit_length() - 1)
    doubling = [
        nn.ConvTranspose2d(channels if i == 0 else out, out, 2, stride=2) for i in range(steps)
    ]
    return nn.Sequential(*doubling, _block(out if steps else channels, out), _block(out, out))


def _block(channels: int, out: int, stride: int = 1, kernel: int = 3) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels, out, kernel, stride, kernel // 2, bias=False),
        nn.BatchNorm2d(out),
        nn.ReLU(inplace=True),
    )


def _values(module: nn.Module) -> list[Tensor]:
    """All weights and running statistics."""
    return [value for value in module.state_dict().values() if value.is_floating_point()]


def _to_vector(module: nn.Module) -> Tensor:
    return torch.cat([value.reshape(-1) for value in _values(module)])


def _from_vector(module: nn.Module, vector: Tensor) -> None:
    start = 0
    for value in _values(module):
        value.copy_(vector[start : start + value.numel()].view_as(value))
        start += value.numel()
    module.requires_grad_(False)
