"""Draw docs/review.jpg: a copy of the demo's run under review.

patchcluster demo -o demo
python docs/screenshot_review.py demo/run docs/review.jpg
"""

import io
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image
from playwright.sync_api import Page, sync_playwright

SIZE = {"width": 1400, "height": 860}


def main(run: Path, target: Path) -> None:
    """Start a review, label some images, look at a defect and at what it was compared with."""
    with tempfile.TemporaryDirectory() as scratch:
        copy = shutil.copytree(run, Path(scratch) / "parts-run")
        command = [sys.executable, "-m", "patchcluster", "review", str(copy), "--no-browser"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
            assert server.stdout is not None
            try:
                shot = draw(server.stdout.readline().strip())
            finally:
                server.terminate()
    Image.open(io.BytesIO(shot)).convert("RGB").save(target, quality=85)


def draw(address: str) -> bytes:
    """The page after a few keys, as PNG."""
    with sync_playwright() as play:
        browser = play.chromium.launch(
            executable_path=shutil.which("chromium"), args=["--no-sandbox"]
        )
        page = browser.new_page(viewport=SIZE)
        page.goto(address)
        page.wait_for_selector("#view[data-id]")
        for key in ("a", "a", "u", "a", "ArrowRight", "ArrowRight", "ArrowRight", "s"):
            page.keyboard.press(key)
        page.wait_for_function("() => document.querySelectorAll('.tag.anomalous').length === 3")
        page.wait_for_selector("#view[data-id]")
        page.wait_for_selector("#other[data-id]")
        click_defect(page)
        page.wait_for_selector("#neighbours img")
        page.wait_for_function(
            "() => [...document.querySelectorAll('img')].every((image) => image.complete)"
        )
        shot = page.screenshot()
        browser.close()
    return shot


def click_defect(page: Page) -> None:
    """Click the middle of the image's first region."""
    image_id = int(page.locator("#view").get_attribute("data-id") or 0)
    run = page.evaluate("() => fetch('/api/run').then((answer) => answer.json())")
    image = next(one for one in run["images"] if one["id"] == image_id)
    region = image["regions"][0]
    box = page.locator("#view").bounding_box()
    assert box is not None
    scale = min(box[side] / image[side] for side in ("width", "height"))
    x, y = (
        box[at] + box[side] / 2 + (region[at] + region[side] / 2 - image[side] / 2) * scale
        for at, side in (("x", "width"), ("y", "height"))
    )
    page.mouse.click(x, y)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
