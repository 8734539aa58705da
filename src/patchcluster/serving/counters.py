"""What a service counts, in the text format that Prometheus reads (version 0.0.4)."""

from collections.abc import Callable, Iterator

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Metric, generate_latest
from prometheus_client.registry import Collector

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
BOUNDS = (0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)  # seconds


class Counters(Collector):
    """Counts of requests and images of one service, in a registry of its own."""

    def __init__(self, running: Callable[[], float], waiting: Callable[[], float]) -> None:
        self._registry = own = CollectorRegistry()
        self.requests = Counter(
            "patchcluster_requests",
            "Requests by path and status.",
            ("path", "status"),
            registry=own,
        )
        self.images = Counter(
            "patchcluster_images_scored", "Images scored.", ("flagged",), registry=own
        )
        for flagged in ("false", "true"):
            self.images.labels(flagged)  # shown from the start, as 0
        self.seconds = Histogram(
            "patchcluster_score_seconds",
            "From a request to its score.",
            registry=own,
            buckets=BOUNDS,
        )
        for name, meaning, read in (
            ("images_in_flight", "Images that are being scored.", running),
            ("queue_length", "Requests that wait or are on their way.", waiting),
        ):
            Gauge(f"patchcluster_{name}", meaning, registry=own).set_function(read)

    def collect(self) -> Iterator[Metric]:
        """Give all metrics without the times at which their series began.

        The package has a switch for these times, but it holds for all registries of a process.
        """
        for metric in self._registry.collect():
            metric.samples = [one for one in metric.samples if not one.name.endswith("_created")]
            yield metric

    def text(self) -> bytes:
        """Return all metrics in the text format."""
        return generate_latest(self)
