import dataclasses

import pytest

from patchcluster.methods import METHODS, PatchClusterPlus
from patchcluster.methods.base import SearchCost
from patchcluster.pipeline.costs import Workload
from patchcluster.pipeline.forecast import (
    Rates,
    format_seconds,
    measure_repeatedly,
    predict_seconds,
)

QUANTITIES = {
    "images": 100, "pixels": 10**8, "seen_pixels": 2 * 10**7, "threads": 2,
    "queries": 80_000, "rows": 80_000, "channels": 100,
}  # fmt: skip
OTHERS = {  # that no time depends on
    "patches": [78_400], "bank": 100, "largest_images": 10**6, "decoding": 12 * 10**6,
    "largest_grid": 784,
    "input_pixels": 448 * 448, "input_shapes": 1, "ratio": 1.0, "streamed": True, "extra": 0,
    "channels": 152,
}  # fmt: skip
# Rate: the steps that it is of, and the power of each quantity that the time grows with.
GROWTH = {
    "load": ({"features"}, {"pixels": 1, "threads": -1}),
    "network": ({"features"}, {"seen_pixels": 1, "threads": -1}),
    "build": ({"compare"}, {"rows": 1.5, "channels": 1}),  # rows, and lists to compare each with
    "scan": ({"compare"}, {"rows": 0.5, "queries": 1, "channels": 1}),
    "rank": ({"compare"}, {"queries": 1}),
    "smooth": ({"maps", "report"}, {"images": 1, "threads": -1}),
    "regions": ({"maps"}, {"pixels": 1, "threads": -1}),
}
RATES = Rates(*[1e-8] * len(GROWTH))


def make_work(on_cpu=True, **changes):
    given = QUANTITIES | changes
    search = SearchCost(*(given.pop(name) for name in ("queries", "rows", "channels")))
    return Workload(**OTHERS, **given, on_cpu=on_cpu, searches=[search])


def rates_of(**given):
    """These rates, and nothing for all else."""
    return Rates(**{**dict.fromkeys(GROWTH, 0.0), **given})


def test_times_are_written_for_people():
    assert [format_seconds(s) for s in (8.4, 119, 600, 9000)] == ["8 s", "119 s", "10 min", "2.5 h"]


@pytest.mark.parametrize("rate", GROWTH)
def test_the_time_of_each_step_grows_with_its_work(rate):
    steps, powers = GROWTH[rate]
    rates = rates_of(**{rate: 1e-8})
    before = predict_seconds(make_work(), rates)
    assert {step for step in before if before[step] > 0} == steps
    for name, value in QUANTITIES.items():
        after = predict_seconds(make_work(**{name: 2 * value}), rates)
        for step in steps:
            assert after[step] == pytest.approx(2 ** powers.get(name, 0) * before[step])


def test_off_the_cpu_a_query_is_compared_with_all_rows():
    few, many = (
        predict_seconds(make_work(on_cpu=False, rows=rows), rates_of(scan=1e-8))["compare"]
        for rows in (10**4, 4 * 10**4)
    )
    assert many == pytest.approx(4 * few)


def test_a_gpu_works_while_the_threads_decode():
    seconds = [
        predict_seconds(make_work(on_cpu=False, seen_pixels=seen), RATES)["features"]
        for seen in (1, 10**6, 10**9)
    ]
    assert seconds[0] == seconds[1]
    assert seconds[2] > seconds[1]


def test_a_comparison_whose_time_is_not_known_is_left_out():
    known = predict_seconds(make_work(), RATES)
    unknown = predict_seconds(dataclasses.replace(make_work(), searches=None), RATES)
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


def test_methods_that_do_not_know_say_so():
    known = [name for name, method in METHODS.items() if method().search_costs(9, 9, 9)]
    assert known == ["patchcluster-plus"]


def test_where_nothing_can_be_measured_nothing_is_said():
    assert measure_repeatedly(lambda: None, lambda _: 1000.0) is None
