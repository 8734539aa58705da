"""What a service counts, in the text format that Prometheus reads (version 0.0.4)."""

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator, Mapping
from itertools import accumulate

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
BOUNDS = (0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)  # seconds


class Counters:
    """Counts of requests and images; to be changed from one thread only."""

    def __init__(self) -> None:
        self.requests: Counter[tuple[str, int]] = Counter()  # by path and status
        self.images: Counter[str] = Counter()  # by whether they were flagged: true or false
        self._buckets = [0] * (len(BOUNDS) + 1)  # answers to /score, by their seconds
        self._seconds = 0.0

    def observe(self, seconds: float) -> None:
        """Count the time of one scored image, from its request to the answer."""
        self._buckets[bisect_left(BOUNDS, seconds)] += 1
        self._seconds += seconds

    def text(self, gauges: Mapping[str, tuple[str, float]]) -> str:
        """All counts, and gauges: name -> what it is, and its value."""
        return "".join(f"{line}\n" for line in self._lines(gauges))

    def _lines(self, gauges: Mapping[str, tuple[str, float]]) -> Iterator[str]:
        yield from _head("requests_total", "Requests by path and status.", "counter")
        for (path, status), count in sorted(self.requests.items()):
            yield f'patchcluster_requests_total{{path="{path}",status="{status}"}} {count}'
        yield from _head("images_scored_total", "Images scored.", "counter")
        for flagged in ("false", "true"):
            yield (
                f'patchcluster_images_scored_total{{flagged="{flagged}"}} {self.images[flagged]}'
            )
        yield from _head("score_seconds", "From a request to its score.", "histogram")
        name = "patchcluster_score_seconds"
        below = list(accumulate(self._buckets))
        for bound, count in zip([*map(str, BOUNDS), "+Inf"], below, strict=True):
            yield f'{name}_bucket{{le="{bound}"}} {count}'
        yield f"{name}_sum {self._seconds:.6f}"
        yield f"{name}_count {below[-1]}"
        for gauge, (meaning, value) in gauges.items():
            yield from _head(gauge, meaning, "gauge")
            yield f"patchcluster_{gauge} {value:g}"


def _head(name: str, meaning: str, kind: str) -> Iterator[str]:
    yield f"# HELP patchcluster_{name} {meaning}"
    yield f"# TYPE patchcluster_{name} {kind}"
