"""(j) The review page: how long it takes to open, to show the next image, to save a label.

    python benchmarks/review_page.py [CHROMIUM]

Runs are synthetic, as for report_size.py; `patchcluster review` is a process of its own, and of the
images only thumbnails are there. "Ready": from the start of the process to the address. "Opens":
median of 5 loads until the first image and its map are drawn. "Next": median and longest time from
an arrow key until another image is drawn, of 30. "Label": the same until a label is on the disk.
"Flags": one move of the threshold that flags all images.
"""

import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from machine import describe
from playwright.sync_api import Page, sync_playwright
from report_size import COUNTS, FLAG, LOADS, heap

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from synthetic import write_run

STEPS = 30
# Presses a button and waits until an element has another text or shows another image.
PRESS = """async ([button, shown]) => {
  const element = document.getElementById(shown);
  const state = () => `${element.textContent} ${element.dataset.id}`;
  const before = state(), start = performance.now();
  document.getElementById(button).click();
  while (state() === before) await new Promise(requestAnimationFrame);
  return performance.now() - start;
}"""
NEXT = ["next", "view"]
LABEL = ["normal", "progress"]


def main() -> None:
    chromium = sys.argv[1] if len(sys.argv) > 1 else "/usr/bin/chromium"
    print(describe())
    print("images  ready s  opens s  heap MiB  next ms  longest  label ms  longest  flags ms")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        for count in COUNTS:
            with tempfile.TemporaryDirectory() as folder:
                names = [f"photos/{n:05d}.png" for n in range(count)]
                write_run(Path(folder), names, count // 50)
                command = [sys.executable, "-m", "patchcluster", "review", folder, "--no-browser"]
                start = time.perf_counter()
                process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=folder)
                try:
                    assert process.stdout is not None
                    address = process.stdout.readline().strip()
                    ready = time.perf_counter() - start
                    page = browser.new_page(viewport={"width": 1400, "height": 900})
                    print(f"{count:6} {ready:8.1f} {measure(page, address)}", flush=True)
                    page.close()
                finally:
                    process.kill()
                    process.wait()


def measure(page: Page, address: str) -> str:
    """One row of the table."""
    open_page(page, address)  # which also brings the cookie
    opens = statistics.median(open_page(page, address.split("?")[0]) for _ in range(LOADS))
    used = heap(page)
    shown = [page.evaluate(PRESS, NEXT) for _ in range(STEPS)]
    page.uncheck("#advance")
    labelled = []
    for _ in range(STEPS):
        page.evaluate(PRESS, NEXT)
        labelled.append(page.evaluate(PRESS, LABEL))
    flags = page.evaluate(FLAG, ["count", "max"])
    return (
        f"{opens:8.2f} {used:9.1f} {statistics.median(shown):8.0f} {max(shown):8.0f} "
        f"{statistics.median(labelled):9.0f} {max(labelled):8.0f} {flags:9.0f}"
    )


def open_page(page: Page, address: str) -> float:
    """Seconds from asking for the page until its first image is drawn."""
    start = time.perf_counter()
    page.goto(address)
    page.wait_for_selector("body[data-ready]")
    page.wait_for_selector("#view[data-id]")
    return time.perf_counter() - start


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
