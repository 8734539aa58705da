"""Draw the demo's parts, scan them, and take docs/report.jpg.

    python docs/screenshots.py [FOLDER] [CHROMIUM]

FOLDER keeps the demo, so that the next call need not scan again; the page is written anew.
"""

import io
import os
import sys
import tempfile
from pathlib import Path

from PIL import Image
from playwright.sync_api import sync_playwright

import patchcluster
from patchcluster.demo import write_parts
from patchcluster.report import write_report

WIDTH, HEIGHT = 1400, 1180


def main() -> None:
    given = sys.argv[1:]
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(given[0] if given else temporary)
        folder.mkdir(parents=True, exist_ok=True)
        target = Path(__file__).resolve().with_name("report.jpg")
        os.chdir(folder)  # so that the paths in the picture are short
        if not Path("parts").is_dir():
            write_parts(Path("parts"))
        write_report(patchcluster.scan("parts/test", "run"))
        take((Path("run") / "report.html").resolve(), target, *given[1:])


def take(page_path: Path, target: Path, chromium: str = "/usr/bin/chromium") -> None:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": WIDTH, "height": HEIGHT}, color_scheme="light")
        page.goto(page_path.as_uri())
        page.wait_for_load_state("networkidle")
        picture = Image.open(io.BytesIO(page.screenshot()))
        browser.close()
    picture.convert("RGB").save(target, quality=88)


if __name__ == "__main__":
    main()
