"""Scans on a Ray cluster whose workers and nodes are killed while they work."""

import os
import shutil
import signal
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

import patchcluster
from conftest import PATIENCE, cut_batches, read_files, scan_until, write_set
from patchcluster.errors import ClusterError, InputError, SettingError
from patchcluster.runs import runfolder, storage

if find_spec("ray") is None:
    pytest.skip("ray is not installed: pip install 'patchcluster[ray]'", allow_module_level=True)

from patchcluster.pipeline import (
    ray_workers as product,  # before ray itself, whose messages it turns off
)

import ray  # isort: skip
from ray.cluster_utils import Cluster  # isort: skip

# Ray's own: sockets and files of what it starts are left to the end of the process.
pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings(
        "ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"
    ),
]

SIZE = (64,)
IDLE, AT_WORK = "ray::_Worker", "ray::_Worker.do"  # how Ray names the process of a worker
IMAGES = 40


@pytest.fixture(scope="module", autouse=True)
def small_batches():
    """An image a batch, so that there is a middle to kill in."""
    with pytest.MonkeyPatch.context() as patch:
        cut_batches(patch, 64 * 64, 1)
        patch.setattr(product, "_PATIENCE", PATIENCE)
        yield


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    folder = tmp_path_factory.mktemp("set") / "images"
    write_set(folder, IMAGES)
    (folder / "broken.png").write_bytes((folder / "part0.png").read_bytes()[:3000])
    return folder


@pytest.fixture(scope="module")
def local(images, tmp_path_factory):
    """The same scan in this process."""
    return patchcluster.scan(images, tmp_path_factory.mktemp("local") / "run", size=SIZE)


@pytest.fixture(scope="module")
def nodes():
    """A cluster with one node; that a node has ended is noticed after seconds."""
    config = {
        "health_check_initial_delay_ms": 1000,
        "health_check_period_ms": 500,
        "health_check_timeout_ms": 60_000,  # or one that others keep from answering is dead too
        "health_check_failure_threshold": 3,
        "worker_register_timeout_seconds": 600,  # a start imports much, beside whatever else runs
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join(filter(None, sys.path)))
        cluster = Cluster(True, head_node_args={"num_cpus": 1, "_system_config": config})
        yield cluster
        cluster.shutdown()


def worker_of(node, title=IDLE):
    """The process of a node's worker, if its name begins so."""
    raylet = node.all_processes["raylet"][0].process.pid
    for entry in Path("/proc").iterdir():
        try:
            parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            shown = (entry / "cmdline").read_bytes().decode()
        except (OSError, ValueError, IndexError):
            continue
        if parent == raylet and shown.startswith(title):
            return int(entry.name)
    return None


class Killer:
    """Progress of a scan; in the middle of steps kills a worker at work, and then a node."""

    def __init__(self, cluster):
        self.cluster = cluster
        self.other = None
        self.killed = {"features": [], "compare": []}

    def __call__(self, step, done, total):
        killed = self.killed.get(step)
        if killed is None or not 0 < done < total or len(killed) == 2:
            return
        if self.other is None:
            self.other, self.joined = self.cluster.add_node(num_cpus=1), False
        if not self.joined:
            self.joined = worker_of(self.other) is not None
            time.sleep(1.2)  # the scan waits, the node's worker starts and is heard
        elif not killed:
            worker = worker_of(self.cluster.head_node, AT_WORK if done < 0.6 * total else IDLE)
            if worker:
                os.kill(worker, signal.SIGKILL)
                killed.append("worker")
        elif done >= 0.8 * total or worker_of(self.other, AT_WORK):
            self.cluster.remove_node(self.other, allow_graceful=False)
            killed.append("node")
            self.other = None


def test_workers_and_nodes_are_killed_and_nothing_is_lost(
    images, local, nodes, tmp_path, monkeypatch, capfd
):
    monkeypatch.chdir(images.parent)  # workers have another current folder
    killer, told = Killer(nodes), []
    run = patchcluster.scan(
        images.name,
        tmp_path / "run",
        size=SIZE,
        ray=nodes.address,
        progress=killer,
        tell=told.append,
    )
    assert killer.killed == {"features": ["worker", "node"], "compare": ["worker", "node"]}
    # A worker that had just given its last result has nothing to lose: not each death is told.
    assert 1 <= sum("was lost" in line for line in told) <= 4
    assert run.info.device == "ray"
    assert [Path(path).name for path in run.paths] == [Path(path).name for path in local.paths]
    assert [skip.path for skip in run.skipped] == ["images/broken.png"]
    assert [skip.reason for skip in run.skipped] == [skip.reason for skip in local.skipped]
    np.testing.assert_allclose(run.scores, local.scores, rtol=1e-4)
    assert (run.flagged == local.flagged).all()
    for here, there in zip(local.paths, run.paths, strict=True):
        np.testing.assert_allclose(run.map(there), local.map(here), rtol=1e-2, atol=1e-3)
    assert capfd.readouterr() == ("", "")
    assert not ray.is_initialized()


# A scan with an image a batch that waits, when it has compared some, to be killed.
SCAN = """
import sys, time, patchcluster
import patchcluster.methods.grids as grids, patchcluster.pipeline.extraction as extraction
extraction.BATCH_PIXELS, grids.COMPARED_PATCHES = 64 * 64, 1
images, out, address = sys.argv[1:]
def progress(step, done, total):
    if step == "compare" and 0 < done < total:
        print("reached", flush=True)
        time.sleep(600)
patchcluster.scan(images, out, size=(64,), ray=address, progress=progress)
"""


def test_a_killed_scan_goes_on_with_the_cluster_or_without(images, local, nodes, tmp_path):
    command = [sys.executable, "-c", SCAN, images, tmp_path / "with", nodes.address]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "reached\n"
        process.kill()
    shutil.copytree(tmp_path / "with", tmp_path / "without")
    for name, address in (("with", nodes.address), ("without", None)):
        kept = read_files(tmp_path / name / ".work")
        assert any(file.startswith("comparison") for file in kept)
        scan_until("maps", images, tmp_path / name, size=SIZE, ray=address)
        assert kept.items() < read_files(tmp_path / name / ".work").items()
        run = patchcluster.scan(images, tmp_path / name, size=SIZE, ray=address)
        np.testing.assert_allclose(run.scores, local.scores, rtol=1e-4)
        assert run.skipped == local.skipped


def test_files_that_only_this_machine_has_are_an_error_and_not_skipped(
    images, nodes, tmp_path, monkeypatch
):
    monkeypatch.chdir(images.parent)
    here = "/proc/self/cwd/images"  # of each process its own
    with pytest.raises(InputError, match=r"cannot read .*storage that all nodes share"):
        patchcluster.scan(here, tmp_path / "run", size=SIZE, ray=nodes.address)
    for path in runfolder.batch_paths(tmp_path / "run"):
        skipped = storage.read_note(path)["skipped"]
        assert {skip["path"] for skip in skipped} <= {f"{here}/broken.png"}


class Deadly:
    """A work whose item 1 cannot be done and whose item 2 kills the process."""

    prefetch = 0
    beside = False

    def prepare(self, item):
        if item == 1:
            raise SettingError("as here")
        if item == 2:
            os._exit(1)
        return item

    def finish(self, ready):
        return ready

    def on(self, device):
        assert device.type == "cpu"
        return self


def test_what_fails_on_a_worker_fails_here(nodes, monkeypatch):
    monkeypatch.setattr(product, "_LOSSES", 2)
    with product.RayWorkers(nodes.address, "auto", 1) as workers:
        jobs = [(number, [number]) for number in (3, 4, 5)]
        assert sorted(workers.map(Deadly(), jobs)) == jobs
        with pytest.raises(SettingError, match="as here"):
            list(workers.map(Deadly(), [(0, [1])]))
        with pytest.raises(ClusterError, match="2 workers of the cluster were lost with the same"):
            list(workers.map(Deadly(), [(0, [2])]))
    monkeypatch.setattr(product, "__version__", "9.9")
    with (
        pytest.raises(
            ClusterError, match=r"has patchcluster .*, and this is 9.9: install the same"
        ),
        product.RayWorkers(nodes.address, "auto", 1) as workers,
    ):
        list(workers.map(Deadly(), [(0, [0])]))


def test_a_cluster_that_cannot_be_reached_is_one_line(images, tmp_path, monkeypatch):
    monkeypatch.setattr(product, "_CONNECT_SECONDS", 1.0)
    for address in ("127.0.0.1:9", "ray://127.0.0.1:9", "nowhere"):
        with pytest.raises(ClusterError, match="cannot reach the Ray cluster") as caught:
            patchcluster.scan(images, tmp_path / "run", size=SIZE, ray=address)
        assert "\n" not in str(caught.value)
        assert not (tmp_path / "run").exists()


def test_what_a_cluster_cannot_keep_is_refused(images, tmp_path):
    with pytest.raises(SettingError, match="choose auto, cpu or cuda"):
        patchcluster.scan(images, tmp_path / "run", ray="local", device="cuda:1")
