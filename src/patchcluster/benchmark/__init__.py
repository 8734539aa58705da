"""The paper's experiments on a data set: categories x settings x methods, resumable per cell.

OUT/
  report.md       the paper's tables in its layout, measured and published
  results.csv     a row a cell
  figures/        what the paper's figures 1, 3, 4 and 5 show, if asked for
  benchmark.json  what was asked
  cells/          a file a cell
  .work/          features of the network, removed at the end
"""

from collections.abc import Callable, Sequence
from pathlib import Path

from ..datasets import SETTINGS, read_dataset
from ..images.inputs import local_path
from ..network.backbones import load_backbone
from ..network.devices import choose_device
from ..pipeline import costs
from ..runs import storage
from ..settings import Settings
from .plan import make_plan
from .running import Benchmark, Progress, Running, claim, needed_strides
from .tables import DEFAULT_METHODS, PAPER_SIZE, TABLE_NUMBERS

__all__ = ["Benchmark", "benchmark"]


def benchmark(
    root: str | Path,
    output: str | Path,
    *,
    settings: Sequence[str] = SETTINGS,
    methods: Sequence[str] = DEFAULT_METHODS,
    tables: Sequence[int] = TABLE_NUMBERS,
    categories: Sequence[str] | None = None,
    figures: bool = False,
    backbone: str = Settings.backbone,
    weights: str | None = None,
    size: int = PAPER_SIZE,
    crop: bool = True,
    device: str = Settings.device,
    seed: int = Settings.seed,
    max_memory: int | str | None = None,
    progress: Progress | None = None,
    tell: Callable[[str], None] | None = None,
) -> Benchmark:
    """Run the paper's methods in its settings on a data set and write its tables.

    root: a data set in a layout that `datasets` knows. output: the folder to write; cells that it
    holds are not run again, so that a killed benchmark goes on and a finished one can be extended.
    size, crop: the network's input, by default the paper's. max_memory: bytes, or text such as
    "8GB". progress(step, done, total) and tell(line) are called as work gets done.

    Raises InputError, SettingError, WeightsError or RunError.
    """
    folder = local_path(output)
    plan = make_plan(
        str(root),
        read_dataset(root),
        categories,
        settings,
        tables,
        methods,
        figures,
        size,
        crop,
        seed,
    )
    limit = costs.parse_bytes(max_memory) if isinstance(max_memory, str) else max_memory
    network = load_backbone(backbone, weights, choose_device(device), needed_strides(plan))
    with storage.lock(folder):
        silent = (lambda *_: None), (lambda _: None)
        running = Running(folder, plan, network, progress or silent[0], tell or silent[1])
        running.check_memory(limit)
        return running.run(claim(folder, plan, network))
