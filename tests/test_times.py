import pytest
import torch

from patchcluster import times
from patchcluster.errors import SettingError
from patchcluster.methods import METHODS, PatchClusterPlus
from patchcluster.methods.base import Products
from patchcluster.times import (
    Labour,
    Rates,
    format_seconds,
    measure_maps,
    measure_repeatedly,
    measure_search,
    parse_seconds,
    predict_seconds,
)

RATES = Rates(
    load=1e-8, network=1e-7, first=1e-12, full=1e-11, prepare=1e-8, smooth=1e-3, regions=1e-9
)


def labour(**changes):
    usual = {
        "images": 100, "pixels": 10**8, "seen_pixels": 2 * 10**7, "threads": 2, "parallel": True,
        "products": [Products(10**12, 10**11, 10**7)],
    }  # fmt: skip
    return Labour(**{**usual, **changes})


@pytest.mark.parametrize(
    ("text", "expected"), [("90s", 90), ("10m", 600), ("2h", 7200), ("1.5 M", 90), ("45", 45)]
)
def test_amounts_of_time(text, expected):
    assert parse_seconds(text) == expected


@pytest.mark.parametrize("text", ["soon", "", "s", "-1s", "0", "1d", "nan", "1e400s"])
def test_what_is_no_amount_is_an_error(text):
    with pytest.raises(SettingError, match="write 90s, 10m or 2h"):
        parse_seconds(text)


def test_times_are_written_for_people():
    assert [format_seconds(s) for s in (8.4, 119, 600, 9000)] == ["8 s", "119 s", "10 min", "2.5 h"]


@pytest.mark.parametrize(
    ("change", "step", "factor"),
    [
        ({"pixels": 2 * 10**8, "seen_pixels": 4 * 10**7}, "features", 2),
        ({"threads": 4}, "features", 0.5),
        ({"products": [Products(2 * 10**12, 2 * 10**11, 2 * 10**7)]}, "compare", 2),
        ({"products": [Products(10**12, 10**11, 10**7)] * 3}, "compare", 3),
        ({"images": 300}, "report", 3),
    ],
)
def test_time_grows_with_the_work_of_its_step_alone(change, step, factor):
    before, after = (predict_seconds(one, RATES) for one in (labour(), labour(**change)))
    assert after[step] == pytest.approx(factor * before[step])
    if step == "compare":
        assert {**after, step: 0} == {**before, step: 0}


def test_each_rate_counts():
    before = sum(predict_seconds(labour(), RATES).values())
    for name in vars(RATES):
        slower = Rates(**{**vars(RATES), name: 2 * vars(RATES)[name]})
        assert sum(predict_seconds(labour(), slower).values()) > before
    assert sum(predict_seconds(labour(), RATES.slower(3)).values()) == pytest.approx(3 * before)


def test_a_gpu_works_while_the_threads_decode():
    seconds = [
        predict_seconds(labour(parallel=False, seen_pixels=seen), RATES)["features"]
        for seen in (1, 10**6, 10**8)
    ]
    assert seconds[0] == seconds[1]
    assert seconds[2] > seconds[1]


def test_a_comparison_whose_time_is_not_known_is_left_out():
    assert "compare" not in predict_seconds(labour(products=None), RATES)


def test_products_are_those_of_a_search_that_is_counted():
    """96 images of 6 x 6 patches, of two stages on one grid and one on cells of 2 x 2."""
    method = PatchClusterPlus(ratio=0.5, margin=5, stages=(3, 4, 8), strides=(8, 16, 32))
    counted = method.count_products(96, 36, 3 + 4 + 2)
    fine, coarse = 96 * 36 * 36, 96 * 9 * 9
    assert counted.first == 96 * (fine * (3 + 4) * 0.5 + coarse * 8)
    assert counted.full == (3 + 5) * (fine * (3 + 4) + coarse * 8)
    assert counted.values == 2 * 96 * 36 * 9
    method.bank_images = 24
    fewer = method.count_products(96, 36, 3 + 4 + 2)
    assert fewer.first == counted.first / 4
    assert fewer.full == counted.full
    method.bank_images = 4
    assert method.count_products(96, 36, 9).full == counted.full / 2


def test_methods_that_do_not_know_say_so():
    known = [name for name, method in METHODS.items() if method().count_products(9, 9, 9)]
    assert known == ["patchcluster-plus"]


def test_what_is_measured_are_amounts_of_time():
    grids = [torch.randn(8, 8, 20), torch.randn(4, 8, 20)]
    measured = [*measure_search(grids, torch.device("cpu")), *measure_maps(64)]
    assert all(0 < seconds < 1e-1 for seconds in measured)


@pytest.mark.parametrize(("seconds", "count"), [(10, 1), (24, 1), (60, 3), (101, 5), (9000, 6)])
def test_the_longer_the_work_the_more_is_measured(seconds, count, monkeypatch):
    clock = [100.0]
    made = []

    def measure():
        clock[0] += 0.5
        made.append(RATES.slower(len(made) + 1))
        return made[-1]

    monkeypatch.setattr(times.time, "perf_counter", lambda: clock[0])
    rates = measure_repeatedly(measure, lambda _: seconds)
    assert len(made) == count
    mean = (count + 1) / 2  # of 1, 2, ... count
    assert vars(rates) == pytest.approx({name: mean * rate for name, rate in vars(RATES).items()})


def test_where_nothing_can_be_measured_nothing_is_said():
    assert measure_repeatedly(lambda: None, lambda _: 1000.0) is None
