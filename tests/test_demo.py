import numpy as np
import pytest
from PIL import Image

from patchcluster.demo import DEFECTS, draw_part, write_parts


@pytest.mark.parametrize("defect", DEFECTS)
def test_a_defect_changes_the_image_where_its_mask_is(defect):
    plain, no_mask = draw_part(np.random.default_rng(3), None, 256)
    image, mask = draw_part(np.random.default_rng(3), defect, 256)
    assert (image.shape, image.dtype, mask.dtype) == ((256, 256, 3), np.uint8, bool)
    assert not no_mask.any()
    assert 10 < mask.sum() < 0.1 * mask.size
    assert not np.array_equal(plain[mask], image[mask])


def test_the_set_is_laid_out_as_mvtec_ad_and_the_same_for_the_same_seed(tmp_path):
    paths = write_parts(tmp_path / "a", good=2, defective=5)
    again = write_parts(tmp_path / "b", good=2, defective=5)
    assert [p.read_bytes() for p in paths] == [p.read_bytes() for p in again]
    assert len(list((tmp_path / "a" / "test" / "good").iterdir())) == 2
    for path in paths[2:]:
        mask = tmp_path / "a" / "ground_truth" / path.parent.name / f"{path.stem}_mask.png"
        with Image.open(mask) as opened, Image.open(path) as image:
            assert opened.size == image.size
            assert set(np.unique(np.asarray(opened))) == {0, 255}
    assert write_parts(tmp_path / "c", 1, 0, seed=1)[0].read_bytes() != paths[0].read_bytes()


def test_unknown_defect_is_an_error():
    with pytest.raises(ValueError, match="scratch"):
        draw_part(np.random.default_rng(0), "moth")
