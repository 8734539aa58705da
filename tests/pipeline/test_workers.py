"""Work that is shared by threads and devices."""

import sys
import threading
import time

import numpy as np
import pytest
import torch

import patchcluster
from conftest import PATIENCE, cut_batches
from patchcluster.errors import ClusterError
from patchcluster.network.devices import choose_device, choose_devices
from patchcluster.pipeline.job import Job
from patchcluster.pipeline.scanning import predict
from patchcluster.pipeline.workers import DeviceWorkers, LocalWorkers

CPU = torch.device("cpu")


class Squares:
    """Sums of squares of a job's numbers; which threads and which copies made them."""

    def __init__(self, prefetch, copies=None):
        self.prefetch = prefetch
        self.copies = [] if copies is None else copies
        self.copies.append(self)
        self.prepared, self.finished = set(), []

    def prepare(self, item):
        self.prepared.add(threading.get_ident())
        if item < 0:
            raise ValueError(f"{item} is negative")
        time.sleep(0.002)
        return item * item

    def finish(self, ready):
        self.finished.append(threading.get_ident())
        return sum(ready)

    def on(self, device):
        assert device == CPU
        return type(self)(self.prefetch, self.copies)


JOBS = [(number, range(number % 4 + 1)) for number in range(60)]
EXPECTED = {number: sum(i * i for i in items) for number, items in JOBS}


@pytest.mark.parametrize("prefetch", [0, 2])
@pytest.mark.parametrize("workers", [LocalWorkers(3), DeviceWorkers([CPU, CPU], 2)])
def test_every_job_is_done_once(workers, prefetch):
    found = list(workers.map(Squares(prefetch), JOBS))
    assert len(found) == len(JOBS)
    assert dict(found) == EXPECTED


@pytest.mark.parametrize("prefetch", [0, 2])
def test_each_device_has_a_copy_and_a_thread_of_its_own(prefetch):
    begun = threading.Barrier(3)

    class Meeting(Squares):
        def finish(self, ready):
            if not self.finished:
                begun.wait(PATIENCE)  # or two might do all before the third begins
            return super().finish(ready)

    work = Meeting(prefetch)
    list(DeviceWorkers([CPU, CPU, CPU], 3).map(work, JOBS))
    assert len(work.copies) == 3
    for copy in work.copies:
        assert len(set(copy.finished)) == 1
    assert len({copy.finished[0] for copy in work.copies}) == 3
    assert sum(len(copy.finished) for copy in work.copies) == len(JOBS)


@pytest.mark.parametrize("workers", [LocalWorkers(2), DeviceWorkers([CPU, CPU], 2)])
def test_jobs_are_not_asked_for_far_ahead_of_the_results(workers):
    asked = []

    def jobs():
        for job in JOBS:
            asked.append(job)
            yield job

    most = 0
    for done, _ in enumerate(workers.map(Squares(2), jobs()), start=1):
        time.sleep(0.005)
        most = max(most, len(asked) - done)
    assert 0 < most < 20


@pytest.mark.parametrize("prefetch", [0, 2])
@pytest.mark.parametrize("workers", [LocalWorkers(2), DeviceWorkers([CPU, CPU], 2)])
def test_an_error_is_raised_and_ends_the_work(workers, prefetch):
    jobs = [*JOBS[:5], (99, [1, -1]), *JOBS[5:]]
    found = []
    with pytest.raises(ValueError, match="-1 is negative"):
        found += workers.map(Squares(prefetch), jobs)
    assert len(found) < len(JOBS)


def test_results_need_not_be_taken_to_the_end():
    threads, work = torch.get_num_threads(), Squares(2)
    results = DeviceWorkers([CPU, CPU], 2).map(work, JOBS)
    next(results)
    results.close()
    assert sum(len(copy.finished) for copy in work.copies) < len(JOBS)
    assert torch.get_num_threads() == threads


@pytest.mark.parametrize("method", ["patchcluster-plus", "musc"])
def test_scores_of_two_devices_are_those_of_one(small_run, tmp_path, monkeypatch, method):
    cut_batches(monkeypatch, 64 * 64, 20)
    images = small_run.info.inputs[0]
    one = patchcluster.scan(images, tmp_path / "one", size=(64,), method=method)
    monkeypatch.setattr(Job, "devices", [CPU, CPU])
    two = patchcluster.scan(images, tmp_path / "two", size=(64,), method=method)
    assert two.info.device == "cpu,cpu"
    np.testing.assert_allclose(two.scores, one.scores, rtol=1e-5)


def test_auto_takes_all_gpus(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 3)
    assert [str(device) for device in choose_devices("auto")] == ["cuda:0", "cuda:1", "cuda:2"]
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    assert choose_devices("auto") == [torch.device("cuda")]


def test_devices_are_named_with_commas_and_count_once():
    assert choose_devices("cpu, cpu,meta") == [CPU, torch.device("meta")]
    assert choose_device("cpu,meta") == CPU
    with pytest.raises(patchcluster.PatchclusterError, match="'gpu7' cannot be used"):
        choose_devices("cpu,gpu7")


def test_without_ray_it_is_said_how_to_get_it(small_run, tmp_path, monkeypatch):
    monkeypatch.delitem(sys.modules, "patchcluster.pipeline.ray_workers", raising=False)
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(ClusterError, match=r"pip install 'patchcluster\[ray\]'"):
        patchcluster.scan(small_run.info.inputs, tmp_path / "run", ray="local")
    assert not (tmp_path / "run").exists()


def test_a_forecast_asks_no_cluster_and_knows_no_time(small_run):
    forecast = predict(small_run.info.inputs, size=(64,), ray="127.0.0.1:9")
    assert forecast.seconds == {}
    assert forecast.memory > 0
    assert "time not known" in forecast.describe()
