"""Survey of a set -> whether a scan of it can work, and what it will need."""

from collections.abc import Sequence

from .backbones import Backbone
from .costs import Workload
from .errors import SettingError
from .extraction import Candidate, Regions
from .methods import METHODS
from .patches import grid_channels, grid_stride
from .settings import Settings
from .tiling import find_lattice, largest_tile


def check_sizes(candidates: Sequence[Candidate], method: str) -> None:
    """Raise SettingError if the images' shapes differ and the method cannot take that."""
    sizes = sorted({candidate.inputs[0] for candidate in candidates})
    if METHODS[method].one_size and len(sizes) > 1:
        raise SettingError(
            f"{method} needs images of one shape, and these differ (network inputs of "
            f"{' x '.join(map(str, sizes[0]))} to {' x '.join(map(str, sizes[-1]))} pixels): "
            "choose another method"
        )


def plan(
    candidates: Sequence[Candidate],
    regions: Regions,
    settings: Settings,
    backbone: Backbone,
    threads: int,
) -> Workload:
    """What a scan of images has to do. Raises SettingError if they are too few for the method."""
    method = settings.make_method(backbone.channels, backbone.strides)
    method.check_count(len(candidates))
    stride = grid_stride(backbone.strides, settings.layout)
    areas = [[h * w for h, w in candidate.inputs] for candidate in candidates]
    scored = [
        regions.areas[candidate.id] if candidate.roi else area
        for candidate, area in zip(candidates, areas, strict=True)
    ]
    patches = [sum(area) // stride**2 for area in zip(*scored, strict=True)]
    channels = grid_channels(backbone.channels, backbone.strides, settings.layout)
    images = len(candidates)
    shapes = {shape for candidate in candidates for shape in candidate.inputs}
    return Workload(
        patches=patches,
        channels=channels,
        images=images,
        largest_image=max(c.header.width * c.header.height for c in candidates),
        input_pixels=max(_seen_at_once(shape, settings, backbone) for shape in shapes),
        input_shapes=len(shapes),
        threads=threads,
        ratio=getattr(method, "ratio", 1.0),
        extra=method.extra_memory(images, max(patches) // images, channels),
        largest_grid=max(map(max, areas)) // stride**2,
    )


def _seen_at_once(shape: tuple[int, int], settings: Settings, backbone: Backbone) -> int:
    """Pixels of a network input (height, width) that the network sees at once."""
    if settings.native_from is None:
        return shape[0] * shape[1]
    return largest_tile(*shape, settings.native_from, find_lattice(backbone.strides))
