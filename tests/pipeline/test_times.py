import pytest
import torch

from patchcluster.methods import METHODS, PatchClusterPlus
from patchcluster.methods.base import SearchCost
from patchcluster.pipeline import times
from patchcluster.pipeline.times import (
    Rates,
    Work,
    format_seconds,
    measure_maps,
    measure_repeatedly,
    measure_search,
    predict_seconds,
)
from patchcluster.search.row_index import RowIndex

RATES = Rates(
    load=1e-8, network=1e-7, build=1e-10, scan=1e-10, rank=1e-6, smooth=1e-3, regions=1e-9
)
SEARCH = SearchCost(queries=80_000, rows=80_000, channels=100)


def make_work(**changes):
    usual = {
        "images": 100, "pixels": 10**8, "seen_pixels": 2 * 10**7, "threads": 2, "on_cpu": True,
        "searches": [SEARCH],
    }  # fmt: skip
    return Work(**{**usual, **changes})


def slowed(factor, *names):
    """The rates times a factor; those that are named, or all."""
    slower = {name: factor * vars(RATES)[name] for name in names or vars(RATES)}
    return Rates(**{**vars(RATES), **slower})


def test_times_are_written_for_people():
    assert [format_seconds(s) for s in (8.4, 119, 600, 9000)] == ["8 s", "119 s", "10 min", "2.5 h"]


@pytest.mark.parametrize(
    ("change", "step", "factor"),
    [
        ({"pixels": 2 * 10**8, "seen_pixels": 4 * 10**7}, "features", 2),
        ({"seen_pixels": 3 * 10**7}, "features", (10**8 * 1e-8 + 3) / (10**8 * 1e-8 + 2)),
        ({"threads": 4}, "features", 0.5),
        ({"searches": [SEARCH] * 3}, "compare", 3),
        ({"searches": []}, "compare", 0),
        ({"images": 300}, "report", 3),
    ],
)
def test_time_grows_with_the_work_of_its_step_alone(change, step, factor):
    before, after = (predict_seconds(one, RATES) for one in (make_work(), make_work(**change)))
    assert after[step] == pytest.approx(factor * before[step])
    concerned = {  # pixels are loaded, and looked at for regions; threads do all but the search
        "pixels": {"features", "maps"},
        "threads": {"features", "maps", "report"},
        "images": {"maps", "report"},
    }
    changed = set().union({step}, *(concerned.get(name, ()) for name in change))
    for other in before.keys() - changed:
        assert after[other] == before[other]


def compare_seconds(rates, **changes):
    search = SearchCost(**{**vars(SEARCH), **changes})
    return predict_seconds(make_work(searches=[search]), rates)["compare"]


@pytest.mark.parametrize(
    ("rate", "change", "factor"),
    [
        ("build", {"rows": 4 * SEARCH.rows}, 8),  # rows, and lists that each is compared with
        ("build", {"queries": 2 * SEARCH.queries}, 1),
        ("build", {"channels": 2 * SEARCH.channels}, 2),
        ("scan", {"rows": 4 * SEARCH.rows}, 2),
        ("scan", {"queries": 2 * SEARCH.queries}, 2),
        ("scan", {"channels": 2 * SEARCH.channels}, 2),
        ("rank", {"rows": 4 * SEARCH.rows}, 1),
        ("rank", {"queries": 2 * SEARCH.queries}, 2),
        ("rank", {"channels": 2 * SEARCH.channels}, 1),
    ],
)
def test_a_search_takes_more_for_more_queries_rows_and_channels(rate, change, factor):
    others = {"build", "scan", "rank"} - {rate}
    rates = slowed(0, *others)
    assert compare_seconds(rates, **change) == pytest.approx(factor * compare_seconds(rates))


def test_off_the_cpu_a_query_is_compared_with_all_rows():
    few, many = (
        predict_seconds(
            make_work(on_cpu=False, searches=[SearchCost(10**5, rows, 64)]),
            slowed(0, "build", "rank"),
        )["compare"]
        for rows in (10**4, 4 * 10**4)
    )
    assert many == pytest.approx(4 * few)


def test_each_rate_counts():
    steps = {
        "load": {"features"}, "network": {"features"}, "build": {"compare"}, "scan": {"compare"},
        "rank": {"compare"}, "smooth": {"maps", "report"}, "regions": {"maps"},
    }  # fmt: skip
    before = predict_seconds(make_work(), RATES)
    for name in vars(RATES):
        after = predict_seconds(make_work(), slowed(2, name))
        assert {step for step in before if after[step] > before[step]} == steps[name]
        assert all(after[step] == before[step] for step in before.keys() - steps[name])
    after = predict_seconds(make_work(), slowed(3))
    assert after == pytest.approx({step: 3 * seconds for step, seconds in before.items()})


def test_a_gpu_works_while_the_threads_decode():
    seconds = [
        predict_seconds(make_work(on_cpu=False, seen_pixels=seen), RATES)["features"]
        for seen in (1, 10**6, 10**8)
    ]
    assert seconds[0] == seconds[1]
    assert seconds[2] > seconds[1]


def test_a_comparison_whose_time_is_not_known_is_left_out():
    known, unknown = (
        predict_seconds(make_work(searches=searches), RATES) for searches in ([SEARCH], None)
    )
    assert known.keys() - unknown.keys() == {"compare"}
    assert unknown.items() <= known.items()


def test_a_search_is_counted_in_patches_and_values_of_each_stage():
    """96 images of 6 x 6 patches, of two stages on one grid and one on cells of 2 x 2."""
    method = PatchClusterPlus(stages=(3, 4, 8), strides=(8, 16, 32))
    channels = 3 + 4 + 8 // 4
    fine, coarse = 96 * 36, 96 * 9
    expected = [(fine, fine, 3), (fine, fine, 4), (coarse, coarse, 8)]
    counted = method.search_costs(96, 36, channels)
    assert [(one.queries, one.rows, one.channels) for one in counted] == expected
    method.bank_images = 24
    fewer = method.search_costs(96, 36, channels)
    assert [one.rows for one in fewer] == [fine / 4, fine / 4, coarse / 4]
    assert [one.queries for one in fewer] == [fine, fine, coarse]


@pytest.fixture
def searched(monkeypatch):
    """Queries, rows and channels of each search that is done."""
    seen = []

    class Watched(RowIndex):
        def __init__(self, rows):
            super().__init__(rows)
            self.shape = tuple(rows.shape)

        def search(self, queries, k):
            seen.append((len(queries), *self.shape))
            return super().search(queries, k)

    monkeypatch.setattr("patchcluster.methods.patchcluster_plus.RowIndex", Watched)
    monkeypatch.setattr(times, "RowIndex", Watched)
    return seen


def test_what_is_counted_is_what_is_searched(rng, searched):
    method = PatchClusterPlus(stages=(3, 4, 8), strides=(8, 16, 32), bank_images=8)
    grids = torch.randn(12, 6, 6, 3 + 4 + 8 // 4, generator=rng)
    method.fit(grids)
    method.compare(list(grids), range(12))
    counted = method.search_costs(12, 36, grids.shape[3])
    assert searched[:3] == [(one.queries, one.rows, one.channels) for one in counted]


def test_methods_that_do_not_know_say_so():
    known = [name for name, method in METHODS.items() if method().search_costs(9, 9, 9)]
    assert known == ["patchcluster-plus"]


def test_what_is_measured_are_amounts_of_time():
    measured = [*measure_search(torch.device("cpu")), *measure_maps(64)]
    assert all(0 < seconds < 1e-1 for seconds in measured)


def test_a_search_is_predicted_as_it_was_measured(searched, monkeypatch):
    spent = iter([8.0, 2.0, 0.5])
    monkeypatch.setattr(times, "clock", lambda work, _: (next(spent), work()))
    for name in ("_BUILDING", "_SCANNING", "_RANKING"):
        monkeypatch.setattr(times, name, 1.0)
    measured = measure_search(torch.device("cpu"))
    search = SearchCost(*searched[0])
    for name, rate, seconds in zip(("build", "scan", "rank"), measured, (8, 2, 0.5), strict=True):
        rates = Rates(**{**dict.fromkeys(vars(RATES), 0.0), name: rate})
        found = predict_seconds(make_work(searches=[search]), rates)["compare"]
        assert found == pytest.approx(seconds)


@pytest.mark.parametrize(("seconds", "count"), [(10, 1), (24, 1), (60, 3), (101, 5), (9000, 6)])
def test_the_longer_the_work_the_more_is_measured(seconds, count, monkeypatch):
    clock = [100.0]
    made = []

    def measure():
        clock[0] += 0.5
        made.append(slowed(len(made) + 1))
        return made[-1]

    monkeypatch.setattr(times.time, "perf_counter", lambda: clock[0])
    rates = measure_repeatedly(measure, lambda _: seconds)
    assert len(made) == count
    mean = (count + 1) / 2  # of 1, 2, ... count
    assert vars(rates) == pytest.approx({name: mean * rate for name, rate in vars(RATES).items()})


def test_where_nothing_can_be_measured_nothing_is_said():
    assert measure_repeatedly(lambda: None, lambda _: 1000.0) is None
