import pytest

from patchcluster.errors import SettingError
from patchcluster.pipeline.costs import (
    GIB,
    MIB,
    Workload,
    format_bytes,
    parse_bytes,
    peak_memory,
    predict_memory,
    resident_memory,
)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("8GB", 8 * GIB),
        ("500 mb", 500 * MIB),
        ("1.5GiB", 3 * GIB // 2),
        ("4096", 4096),
        ("2KB", 2048),
    ],
)
def test_amounts_of_memory(text, expected):
    assert parse_bytes(text) == expected


@pytest.mark.parametrize("text", ["lots", "", "GB", "-1GB", "0", "nan", "inf"])
def test_what_is_no_amount_is_an_error(text):
    with pytest.raises(SettingError, match="write 8GB or 500MB"):
        parse_bytes(text)


def test_bytes_are_written_for_people():
    assert format_bytes(3 * GIB // 2) == "1.5 GB"
    assert format_bytes(700 * MIB) == "700 MB"


def test_memory_of_this_process():
    assert 0 < resident_memory() <= peak_memory()


def workload(**changes):
    usual = {
        "images": 100, "patches": [100 * 784], "channels": 152, "bank": 100, "pixels": 100 << 20,
        "largest_images": 1 << 20, "decoding": 12 << 20, "largest_grid": 784,
        "seen_pixels": 100 * 448 * 448,
        "input_pixels": 448 * 448, "input_shapes": 1, "threads": 2, "on_cpu": True, "ratio": 0.3,
        "streamed": False, "extra": 0, "searches": None,
    }  # fmt: skip
    return Workload(**{**usual, **changes})


def test_prediction_grows_with_what_costs_memory():
    base = predict_memory(workload(), GIB)
    assert base > GIB
    for larger in (
        {"patches": [10_000 * 784]}, {"largest_images": 150 << 20}, {"decoding": 4 << 30},
        {"input_shapes": 9},
        {"input_pixels": 4 * 448 * 448},
    ):  # fmt: skip
        assert predict_memory(workload(**larger), GIB) > base
