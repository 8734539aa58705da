"""How long report.html takes to write and to open, and what it needs in memory.

    python benchmarks/report_size.py [CHROMIUM]

Runs are synthetic: drawn thumbnails and random maps, 1 image in 50 with a region. "Opens" is the
median of 5 loads from disk until the browser has drawn the first pictures; "scroll" the median and
the longest time between two frames while 40 windows are scrolled through; "flags" the time of one
move of the threshold that flags all images.
"""

import statistics
import sys
import tempfile
import time
from pathlib import Path

from machine import describe
from playwright.sync_api import Page, sync_playwright

from patchcluster.report import write_report

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from synthetic import write_run

COUNTS = (100, 1_000, 10_000)
LOADS = 5
DRAWN = """() => new Promise(done => requestAnimationFrame(() => requestAnimationFrame(
  () => done(performance.now()))))"""
SCROLL = """async () => {
  const times = [];
  let last = performance.now();
  for (let n = 0; n < 160; n++) {
    scrollBy(0, innerHeight / 4);
    await new Promise(requestAnimationFrame);
    const now = performance.now();
    times.push(now - last);
    last = now;
  }
  times.sort((a, b) => a - b);
  return [times[times.length / 2], times[times.length - 1]];
}"""
FLAG = """async ([id, end]) => {
  const slider = document.getElementById(id);
  const start = performance.now();
  slider.value = slider[end];
  slider.dispatchEvent(new Event("input"));
  await new Promise(requestAnimationFrame);
  await new Promise(requestAnimationFrame);
  return performance.now() - start;
}"""


def main() -> None:
    chromium = sys.argv[1] if len(sys.argv) > 1 else "/usr/bin/chromium"
    print(describe())
    print(
        "images  written s  page MiB  beside MiB  opens s  cards  heap MiB  scroll ms  longest  "
        "flags ms"
    )
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        for count in COUNTS:
            with tempfile.TemporaryDirectory() as folder:
                run = write_run(
                    Path(folder), [f"photos/{n:05d}.png" for n in range(count)], count // 50
                )
                start = time.perf_counter()
                write_report(run)
                written = time.perf_counter() - start
                page_path = Path(folder) / "report.html"
                beside = sum(path.stat().st_size for path in Path(folder).glob("report/*"))
                page = browser.new_page(viewport={"width": 1400, "height": 900})
                opens = statistics.median(load(page, page_path) for _ in range(LOADS))
                cards = page.locator(".card").count()
                usual, longest = page.evaluate(SCROLL)
                used, flags = heap(page), page.evaluate(FLAG, ["threshold", "min"])
                print(
                    f"{count:6} {written:10.1f} {page_path.stat().st_size / 2**20:9.1f} "
                    f"{beside / 2**20:11.1f} {opens:8.2f} {cards:6} {used:9.1f} "
                    f"{usual:10.0f} {longest:8.0f} {flags:9.0f}",
                    flush=True,
                )
                page.close()


def load(page: Page, path: Path) -> float:
    """Seconds from asking for a page until its first pictures are drawn."""
    page.goto(path.as_uri(), wait_until="load")
    drawn: float = page.evaluate(DRAWN)
    return drawn / 1000


def heap(page: Page) -> float:
    """MiB that the page's script holds."""
    session = page.context.new_cdp_session(page)
    session.send("HeapProfiler.collectGarbage")
    used: float = session.send("Runtime.getHeapUsage")["usedSize"]
    return used / 2**20


if __name__ == "__main__":
    main()
