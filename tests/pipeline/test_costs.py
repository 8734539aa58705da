import pytest

from patchcluster.errors import SettingError
from patchcluster.pipeline.costs import (
    GIB,
    MIB,
    Workload,
    check_memory,
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
        "patches": [100 * 784], "channels": 152, "images": 100, "largest_image": 1 << 20,
        "input_pixels": 448 * 448, "input_shapes": 1, "threads": 2, "ratio": 0.3, "bank": 100,
    }  # fmt: skip
    return Workload(**{**usual, **changes})


def test_prediction_grows_with_what_costs_memory():
    base = predict_memory(workload(), GIB)
    assert base > GIB
    for larger in (
        {"patches": [10_000 * 784]}, {"largest_image": 150 << 20}, {"input_shapes": 9},
        {"input_pixels": 4 * 448 * 448},
    ):  # fmt: skip
        assert predict_memory(workload(**larger), GIB) > base


def test_a_set_that_is_read_image_by_image_needs_memory_for_its_bank_alone():
    needs = {
        bank: predict_memory(
            workload(patches=[10_000 * 784], images=10_000, bank=bank, streamed=True), GIB
        )
        for bank in (1000, 2000, 3000)
    }
    values = 1000 * 784 * 152
    assert needs[2000] - needs[1000] == pytest.approx(needs[3000] - needs[2000], rel=1e-6)
    assert needs[2000] - needs[1000] > values * 6  # as float16, and as float32 in the index
    whole = workload(patches=[10_000 * 784], images=10_000, bank=10_000)
    assert predict_memory(whole, GIB) > 2 * needs[3000]


def test_what_patches_were_compared_with_needs_memory_while_it_is_written():
    few, many = (
        predict_memory(workload(patches=[count * 784], images=count, bank=1000, streamed=True), GIB)
        for count in (10_000, 20_000)
    )
    # ids of 3 images and 3 patches, int32, and 3 distances, float16
    assert many - few > 10_000 * 784 * 3 * (4 + 4 + 2)


def test_limit():
    check_memory(5 * GIB, None, str)
    check_memory(5 * GIB, 5 * GIB, str)
    with pytest.raises(
        SettingError,
        match=r"about 5\.0 GB, over --max-memory 4\.0 GB: choose less than 4294967296, or more",
    ):
        check_memory(5 * GIB, 4 * GIB, lambda limit: f"less than {limit}")
