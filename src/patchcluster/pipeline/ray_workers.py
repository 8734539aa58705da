"""Workers on the nodes of a Ray cluster; the only file that imports ray.

Each node has one worker, a process with all its cores, or one for each of its GPUs. What a task
needs, the network or a fitted method, is put into the object store once. A worker gets its batches
one by one, a few prefetched; those of a worker that dies are given to others, and a new one is
started in its place. Nodes may come and go.
"""

import importlib.util
import logging
import os
import socket
import sys
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Generic, Self

import torch

from .. import __version__
from ..errors import ClusterError, SettingError
from ..images.inputs import reason
from .workers import Item, Ready, Result, Task

os.environ["RAY_USAGE_STATS_ENABLED"] = "0"  # nothing is sent anywhere
if "ray" not in sys.modules:  # what happens to workers is said by this file, not by ray
    os.environ.setdefault("RAY_DEDUP_LOGS_SKIP_REGEX", "^")
if importlib.util.find_spec("ray") is None:
    raise ClusterError(
        "--ray needs the package ray, which is not installed: pip install 'patchcluster[ray]'"
    )

import ray
from ray.exceptions import RayError, RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

LOCAL = "local"
DEVICES = ("auto", "cpu", "cuda")
_LOOK = 1.0  # seconds after which it is looked again which nodes there are
_PATIENCE = 120.0  # seconds without any worker
_LOSSES = 5  # of one batch, with the worker that had it
_FAILED_STARTS = 3  # of workers on one node, one after the other
_CONNECT_SECONDS = 10.0
_CALLS = 8  # a thread, that a worker takes at a time: more than it is given


class _Worker:
    """The process of a worker: its methods are called over the network, several at a time."""

    def __init__(self, threads: int) -> None:
        self._threads = threads
        self._device = torch.device("cuda" if ray.get_gpu_ids() else "cpu")
        self._lock = threading.Lock()
        self._finishing = threading.Lock()
        self._pool = ThreadPoolExecutor(threads, "prepare", lambda: torch.set_num_threads(1))
        self._known: tuple[Any, Task[Any, Any, Any]] | None = None

    def greet(self) -> str:
        """Its version of patchcluster, once it has started."""
        return __version__

    def do(self, put: Sequence[Any], items: Sequence[Any]) -> Any:
        """put: the one reference to the task; in a list, or it would be read for every batch."""
        task = self._take(put[0])
        if task.prefetch:
            ready = list(self._pool.map(task.prepare, items))
        else:
            ready = [task.prepare(item) for item in items]
        with self._finishing:
            torch.set_num_threads(self._threads)
            return task.finish(ready)

    def _take(self, reference: Any) -> Task[Any, Any, Any]:
        with self._lock:
            if self._known is None or self._known[0] != reference:
                self._known = None  # what it was is given back first
                self._known = reference, ray.get(reference).on(self._device)
            return self._known[1]


@dataclass(eq=False)
class _Member:
    """A worker, as the driver knows it."""

    node: str  # id
    address: str  # of the node, for people
    threads: int
    actor: Any
    greeting: Any  # reference to its version, which it says when it has started
    ready: bool = False
    items: dict[int, int] = field(default_factory=dict)  # in each batch that it was given

    def has_room(self, prefetch: int) -> bool:
        """Whether it takes another batch: the next one, or what its threads prefetch."""
        return len(self.items) < 2 or sum(self.items.values()) < prefetch * self.threads


_Batch = tuple[int, Sequence[Item]]


class _Queue(Generic[Item]):
    """The batches that are left to do; lost ones are put back."""

    def __init__(self, batches: Iterable[_Batch[Item]]) -> None:
        self._source = iter(batches)
        self._exhausted = False
        self._lost: deque[_Batch[Item]] = deque()
        self._losses: Counter[int] = Counter()

    @property
    def ended(self) -> bool:
        """Whether there is nothing left to take."""
        return self._exhausted and not self._lost

    def take(self) -> _Batch[Item] | None:
        if self._lost:
            return self._lost.popleft()
        batch = next(self._source, None)
        self._exhausted = batch is None
        return batch

    def lose(self, batch: _Batch[Item], error: Exception) -> None:
        """Take a batch back. Raises ClusterError if it was lost too often."""
        number, _ = batch
        self._losses[number] += 1
        if self._losses[number] == _LOSSES:
            raise ClusterError(
                f"{_LOSSES} workers of the cluster were lost with the same work ({_line(error)}): "
                "see that their nodes have enough memory; the same command resumes"
            ) from error
        self._lost.append(batch)


class RayWorkers:
    """The workers of a Ray cluster, for the time of a `with`.

    address: local (a cluster on this machine, for as long), auto, HOST:PORT or ray://HOST:PORT. In
    a process that is connected to a cluster already, that one is taken. device: auto (a worker for
    each GPU of the nodes that have any), cpu, or cuda (no workers on nodes without). threads: cores
    of a local cluster. tell(line) is called when a worker is lost, or a node left out.

    Raises ClusterError or SettingError.
    """

    remote = True

    def __init__(
        self,
        address: str,
        device: str,
        threads: int,
        tell: Callable[[str], None] = lambda _: None,
    ) -> None:
        check_device(device)
        self._address = address
        self._device = device
        self._threads = threads
        self._tell = tell
        self._members: list[_Member] = []
        self._failed: Counter[str] = Counter()  # starts on a node
        self._reason = ""  # why the last of them failed
        self._connected = False

    def __enter__(self) -> Self:
        if not ray.is_initialized():
            _connect(self._address, self._threads)
            self._connected = True
        self._alone = time.monotonic()
        self._looked = 0.0
        self._look()  # they start while the survey goes on
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for member in self._members:
            _kill(member)
        self._members.clear()
        if self._connected:
            ray.shutdown()

    def map(
        self, task: Task[Item, Ready, Result], batches: Iterable[tuple[int, Sequence[Item]]]
    ) -> Iterator[tuple[int, Result]]:
        """See `Workers`. Raises ClusterError if no worker is left, or if a batch kills them."""
        self._alone = time.monotonic()
        put, left = ray.put(task), _Queue(batches)
        running: dict[Any, tuple[_Member, _Batch[Item]]] = {}
        while True:
            self._look()
            running |= self._give_out(put, task.prefetch, left)
            if not running and left.ended:
                return
            for reference in self._wait(list(running)):
                member, batch = running.pop(reference)
                number, _ = batch
                del member.items[number]
                try:
                    result = ray.get(reference)
                except RayTaskError as error:
                    raise _cause(error) from error
                except RayError as error:
                    self._lose(member, error)
                    left.lose(batch, error)
                else:
                    yield number, result

    def _give_out(
        self, put: Any, prefetch: int, left: "_Queue[Item]"
    ) -> Iterator[tuple[Any, tuple[_Member, "_Batch[Item]"]]]:
        """Give batches to the workers that have room: references to the results, who has which."""
        for member in self._members:
            while member.ready and member.has_room(prefetch):
                batch = left.take()
                if batch is None:
                    return
                number, items = batch
                member.items[number] = len(items)
                yield member.actor.do.remote([put], items), (member, batch)

    def _wait(self, references: list[Any]) -> list[Any]:
        """Return the references that are done or lost, after a moment at most."""
        if not references:
            time.sleep(_LOOK / 10)
            return []
        done, _ = ray.wait(references, timeout=_LOOK)
        return done  # type: ignore[no-any-return]

    def _look(self) -> None:
        """Start workers on nodes that have none, and hear which have started."""
        now = time.monotonic()
        if now - self._looked < _LOOK / 10 or (self._ready and now - self._looked < _LOOK):
            return
        self._looked = now
        nodes = {node["NodeID"]: node for node in ray.nodes() if node["Alive"]}
        for node, about in nodes.items():
            count, options, threads = self._shape(about["Resources"])
            here = sum(member.node == node for member in self._members)
            if self._failed[node] < _FAILED_STARTS:
                for _ in range(count - here):
                    member = _start(node, about["NodeManagerAddress"], options, threads)
                    self._members.append(member)
        for member in [member for member in self._members if not member.ready]:
            self._hear(member)
        if self._ready:
            self._alone = now
        elif not self._members and self._reason:
            raise ClusterError(
                f"no worker of the cluster can start ({self._reason}): install the same "
                "patchcluster on all nodes"
            )
        elif now - self._alone > _PATIENCE:
            raise ClusterError(
                "no node of the cluster has room for a worker, which takes all its cores, or its "
                "share of them for a GPU: wait until others have ended, or scan without --ray"
            )

    @property
    def _ready(self) -> bool:
        return any(member.ready for member in self._members)

    def _shape(self, resources: Mapping[str, float]) -> tuple[int, dict[str, float], int]:
        """How many workers a node has, with which resources and threads each."""
        cores, gpus = int(resources.get("CPU", 0)), int(resources.get("GPU", 0))
        if gpus and self._device != "cpu":
            threads = cores // gpus
            return gpus, {"num_cpus": threads, "num_gpus": 1}, max(1, threads)
        return int(cores > 0 and self._device != "cuda"), {"num_cpus": cores}, cores

    def _hear(self, member: _Member) -> None:
        done, _ = ray.wait([member.greeting], timeout=0)
        if not done:
            return
        try:
            version = ray.get(member.greeting)
        except RayError as error:
            self._dismiss(member)
            self._failed[member.node] += 1
            self._reason = _line(error)
            if self._failed[member.node] == _FAILED_STARTS:
                self._tell(f"node {member.address} is left out ({self._reason})")
            return
        if version != __version__:
            raise ClusterError(
                f"node {member.address} has patchcluster {version}, and this is {__version__}: "
                "install the same on all nodes"
            )
        member.ready = True
        self._failed[member.node] = 0

    def _lose(self, member: _Member, error: Exception) -> None:
        """Dismiss a lost worker; each of its batches reports the loss."""
        if member in self._members:
            self._dismiss(member)
            self._tell(
                f"a worker on {member.address} was lost ({_line(error)}): what it had to do is "
                "given to others"
            )

    def _dismiss(self, member: _Member) -> None:
        self._members.remove(member)
        _kill(member)


def check_device(device: str) -> None:
    """Raise SettingError if a cluster's workers cannot have such a device."""
    if device not in DEVICES:
        raise SettingError(
            f"device {device!r} with --ray, which gives devices to its workers: choose auto, cpu "
            "or cuda"
        )


def _connect(address: str, threads: int) -> None:
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if address == LOCAL:
        options |= {"num_cpus": threads, "include_dashboard": False}
    try:
        host, _, port = address.removeprefix("ray://").rpartition(":")
        if port.isdecimal():  # ray would try for minutes
            socket.create_connection((host, int(port)), _CONNECT_SECONDS).close()
        with _silenced():  # or it prints its attempts, one a second
            ray.init(address, **options)
    except Exception as error:  # OSError, ConnectionError, ValueError: whatever keeps it from us
        raise ClusterError(
            f"cannot reach the Ray cluster {address!r} ({_line(error)}): start it with `ray start "
            "--head`, name the HOST:PORT that this prints, or choose --ray local"
        ) from error


@contextmanager
def _silenced() -> Iterator[None]:
    """Keep what libraries print past Python from standard error."""
    sys.stderr.flush()
    kept = os.dup(2)
    try:
        with open(os.devnull, "wb") as nothing:
            os.dup2(nothing.fileno(), 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def _start(node: str, address: str, options: Mapping[str, float], threads: int) -> _Member:
    remote = ray.remote(_Worker).options(
        **options,
        max_concurrency=_CALLS * threads,
        scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False),
    )
    actor = remote.remote(threads)
    return _Member(node, address, threads, actor, actor.greet.remote())


def _kill(member: _Member) -> None:
    try:
        ray.kill(member.actor)
    except Exception:  # it is dead, or the cluster is
        return


def _cause(error: RayTaskError) -> BaseException:
    """Return what a task raised, as it would have been raised in this process."""
    return error.cause if isinstance(error.cause, BaseException) else error


def _line(error: Exception) -> str:
    """Return the cause in one line, which is the last of ray's."""
    if isinstance(error, OSError):
        return reason(error)
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1][:160] if lines else type(error).__name__
