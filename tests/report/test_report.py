"""report.html, opened from disk in a browser; and what notebooks show."""

import base64
import io
import itertools
import os
import re
import time

import numpy as np
import pytest
from PIL import Image

import patchcluster
from conftest import PATIENCE, save_image, textured_image
from patchcluster.report import list_images, write_report
from patchcluster.runs import pictures, runfolder, storage
from patchcluster.runs.info import Skipped
from patchcluster.runs.pictures import colour_bounds, crop_jpeg, heat_png
from patchcluster.scores.thresholds import Flagging, choose_threshold
from synthetic import THRESHOLD, write_run

HOSTILE = [
    "<img src=x onerror=alert(1)>.png",
    "</script><script>alert(2)</script>.png",
    "</textarea><b id=planted>.png",
    "'\"--><svg onload=alert(3)>.png",
    "line\u2028separator\x1b[31m&amp;.png",
    "{{ 7 * 7 }}.png",
    os.fsdecode(b"latin\xe9.png"),
]


@pytest.fixture
def visit(browser):
    """Open a run's page; at the end nothing may have been asked of a network or gone wrong."""
    contexts, wrong = [], []

    def open_page(run, **options):
        context = browser.new_context(**options)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(1000 * PATIENCE)
        page.on("console", lambda message: wrong.append(message.text))
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("dialog", lambda dialog: (wrong.append(dialog.message), dialog.dismiss()))
        page.on(
            "request",
            lambda request: (
                None if request.url.startswith(("file:", "data:")) else wrong.append(request.url)
            ),
        )
        page.on(
            "requestfailed",
            lambda request: (
                None  # of a card that was removed while its picture loaded
                if request.failure == "net::ERR_ABORTED"
                else wrong.append(request.url[:200])
            ),
        )
        page.goto((run.folder / "report.html").as_uri())
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert wrong == []


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """30 images: the first 6 flagged, two of these alike; the last labelled normal; one skipped."""
    run = write_run(
        tmp_path_factory.mktemp("drawn") / "a run",
        [f"photos/{n:02d}.png" for n in range(30)],
        defective=6,
        skipped=[Skipped("photos/broken.png", "not an image")],
        labels={"photos/29.png": "normal"},
        duplicates=[(2, 3)],
    )
    write_report(run)
    return run


def until(page, condition: str) -> None:
    """Wait until a condition holds. Playwright's own wait needs `eval`, which the page forbids."""
    end = time.monotonic() + PATIENCE
    while not page.evaluate(condition):
        assert time.monotonic() < end, condition
        page.wait_for_timeout(50)


def paths(page) -> list[str]:
    return page.locator("#paths").input_value().splitlines()


def shown(page) -> list[str]:
    return page.locator(".card .name[title]").evaluate_all("all => all.map(one => one.title)")


def test_the_page_of_a_real_scan_says_what_the_run_says(visit, small_run):
    page = visit(small_run)
    assert (
        page.locator("h1").inner_text().startswith(f"8 images, {small_run.flagged.sum()} flagged")
    )
    ranked = [small_run.paths[i] for i in small_run.ranking]
    assert shown(page) == ranked
    assert paths(page) == [path for path in ranked if small_run.flagged[small_run.index(path)]]
    first = page.locator(".card").first
    assert first.locator("rect").count() == len(small_run.regions(ranked[0])) > 0
    loaded = page.locator(".card img").evaluate_all("all => all.map(one => one.naturalWidth)")
    assert len(loaded) == 16
    assert min(loaded) > 0


def test_what_is_odd_about_an_image_is_on_its_card_and_enlarged(visit, tmp_path):
    for i in range(9):  # a set of 9, one darker
        pixels = textured_image(i) * (0.6 if i == 4 else 1.0)
        save_image(tmp_path / "images" / f"{i}.png", pixels.astype(np.uint8))
    run = patchcluster.scan(tmp_path / "images", tmp_path / "run", size=(64,))
    assert sum(map(len, run.remarks)) == 1
    page = visit(run)
    chips = page.locator(".card .chip")
    assert chips.all_inner_texts() == ["darker"]
    card = page.locator(".card:has(.chip)")
    assert card.locator(".name[title]").get_attribute("title").endswith("4.png")
    card.locator("button").click()
    assert page.locator("#large .chip").all_inner_texts() == ["darker"]
    page.keyboard.press("Escape")
    page.locator(".card:not(:has(.chip)) button").first.click()
    assert page.locator("#large .chip").count() == 0


def test_moving_the_threshold_flags_again_and_reset_undoes_it(visit, drawn):
    page = visit(drawn)
    before = paths(page)
    assert len(before) == 6
    assert not page.locator("#moved").is_visible()
    page.locator("#threshold").focus()
    page.keyboard.press("ArrowLeft")
    assert paths(page) == [*before, "photos/06.png"]
    assert page.locator(".card.flagged").count() == 7
    assert page.locator("#flagged-count").inner_text() == "7"
    assert page.locator("#moved").is_visible()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    assert paths(page) == before[:5]
    page.locator("#reset").click()
    assert paths(page) == before
    assert not page.locator("#moved").is_visible()


def test_it_says_how_many_flags_are_expected_to_be_right(visit, drawn):
    page = visit(drawn)
    chance = [
        0.0 if path == "photos/29.png" else p
        for path, p in zip(drawn.paths, drawn.probabilities, strict=True)
    ]  # that one is labelled normal
    for count in (6, 4):
        right, all_ = sum(chance[:count]), sum(chance)
        page.locator("#top").fill(str(count - 1))  # which does not count the copy
        assert page.locator("#expected").inner_text() == (
            f"Of {count} flagged about {round(right)} are expected to be anomalous, "
            f"about {round(all_ - right)} are missed."
        )


def test_of_too_few_images_nothing_is_expected(visit, tmp_path):
    run = write_run(tmp_path / "run", ["a.png", "b.png", "c.png", "d.png"], defective=1)
    write_report(run)
    page = visit(run)
    assert page.locator("#expected").inner_text() == ""
    assert "p = " not in page.locator("#gallery").inner_text()


def test_a_threshold_above_all_scores_flags_none(visit, tmp_path):
    run = write_run(tmp_path / "run", [f"{n}.png" for n in range(9)], defective=0)
    assert run.scores.max() < run.threshold.value
    write_report(run)
    page = visit(run)
    assert paths(page) == []
    assert page.locator("#highest").inner_text() == f"{run.scores.max():.4g}"
    page.locator("#threshold").focus()
    page.keyboard.press("ArrowLeft")
    assert paths(page) == [run.paths[int(run.ranking[0])]]


def test_dragging_the_line_follows_the_pointer(visit, drawn):
    page = visit(drawn)
    box = page.locator("#threshold").bounding_box()
    page.mouse.move(box["x"] + box["width"] * 0.9, box["y"] + 60)
    page.mouse.down()
    page.mouse.move(box["x"] + 10, box["y"] + 60, steps=5)
    page.mouse.up()
    until(page, "document.querySelectorAll('.card.flagged').length === 29")
    assert "photos/29.png" not in paths(page)  # labelled normal: never flagged
    value = float(page.locator("#threshold").input_value())
    assert value < drawn.scores.min()


@pytest.mark.parametrize("count", [0, 1, 3, 5, 12])
def test_the_command_flags_what_the_page_shows(visit, drawn, count):
    page = visit(drawn)
    page.locator("#top").fill(str(count))
    command = page.locator("#command").input_value()
    assert command.startswith(f"patchcluster report '{drawn.folder}' --flag-top ")
    asked = int(command.rsplit(" ", 1)[1])
    distinct = np.delete(drawn.scores, 3)  # a scan scores images 2 and 3, which are alike, once
    threshold = choose_threshold(distinct, Flagging(flag_top=asked), None)
    expected = [drawn.paths[i] for i in drawn.ranking if drawn.scores[i] > threshold.value]
    assert paths(page) == expected
    assert len(expected) == count + (count >= 3)


def test_filters_sorting_and_search(visit, drawn):
    page = visit(drawn)
    for kind, count in {"flagged": 6, "unflagged": 24, "regions": 6, "labelled": 1}.items():
        page.select_option("#show", kind)
        assert len(shown(page)) == count
    page.select_option("#show", "all")
    options = page.locator("#group option").all_inner_texts()
    # Image 3 is a copy of 2 and so in its group.
    assert options == [
        "any", "group 1: 4 regions in 4 images", "group 2: 2 regions in 2 images",
    ]  # fmt: skip
    page.select_option("#group", "2")
    assert shown(page) == ["photos/01.png", "photos/05.png"]
    page.select_option("#group", "")
    page.locator("#find").fill("7.PNG")
    assert sorted(shown(page)) == ["photos/07.png", "photos/17.png", "photos/27.png"]
    page.locator("#find").fill("")
    page.select_option("#sort", "path")
    assert shown(page) == sorted(drawn.paths)
    assert page.locator("#shown").inner_text() == "30 of 30 images shown"


def test_overlays_can_be_turned_off_and_faded(visit, drawn):
    page = visit(drawn)
    heat = page.locator(".card .heat").first
    opacity = "one => getComputedStyle(one).opacity"
    assert heat.evaluate(opacity) == "0.85"
    page.locator("#opacity").fill("30")
    assert heat.evaluate(opacity) == "0.3"
    page.locator("#heat").uncheck()
    assert heat.evaluate(opacity) == "0"
    assert page.locator("svg.regions").first.is_visible()
    page.locator("#regions").uncheck()
    assert not page.locator("svg.regions").first.is_visible()


def test_keys_alone_enlarge_turn_over_and_return(visit, drawn):
    page = visit(drawn)
    page.locator(".card button").first.focus()
    page.keyboard.press("Enter")
    assert page.locator("#large-name").inner_text() == "photos/00.png"
    assert page.locator("#large-similar img").count() == 4
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowLeft")
    assert page.locator("#large-name").inner_text() == "photos/01.png"
    page.keyboard.press("Escape")
    assert not page.locator("#large").is_visible()
    until(page, "document.activeElement.closest('.card')?.dataset.index === '1'")


def test_tab_reaches_every_control(visit, drawn):
    page = visit(drawn)
    reached, names = set(), "a, button:enabled, select, input, textarea, summary"
    for _ in range(80):
        page.keyboard.press("Tab")
        reached.add(
            page.evaluate(
                f"[...document.querySelectorAll('{names}')].indexOf(document.activeElement)"
            )
        )
    visible = page.locator(names).evaluate_all(
        "all => all.flatMap((one, n) => one.checkVisibility() ? [n] : [])"
    )
    assert reached >= set(visible)
    page.locator("#show").focus()
    page.keyboard.press("Tab")
    assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"


def test_copying_selects_the_list_where_there_is_no_clipboard(visit, drawn):
    page = visit(drawn)
    page.evaluate("Object.defineProperty(navigator, 'clipboard', {value: undefined})")
    page.evaluate("document.execCommand = () => false")
    page.locator("[data-copy=paths]").click()
    assert "Ctrl+C" in page.locator("[data-copy=paths] + [role=status]").inner_text()
    selected = page.evaluate("getSelection().toString()")
    assert selected.splitlines() == paths(page)


def test_hostile_names_are_only_text(visit, tmp_path):
    run = write_run(tmp_path / "<b>&run", HOSTILE, defective=len(HOSTILE), skipped=[
        Skipped(f"skipped{name}", "not an image") for name in HOSTILE
    ])  # fmt: skip
    write_report(run)
    page = visit(run)
    clean = [storage.clean(name) for name in HOSTILE]
    assert shown(page) == clean
    assert page.locator("#planted, [onerror], [onload], main b, main script").count() == 0
    assert page.locator("script").count() == 2
    page.locator(".card button").first.click()
    assert page.locator("#large-name").inner_text() == clean[0]
    assert page.evaluate("window.planted === undefined")
    cells = page.locator("td").all_text_contents()
    assert [cell for cell in cells if cell.startswith("skipped")] == [f"skipped{n}" for n in clean]


def test_scripts_that_are_not_the_pages_own_do_not_run(browser, drawn):
    text = (drawn.folder / "report.html").read_text()
    policy = re.search(r'Security-Policy" content="([^"]+)"', text).group(1)
    assert "unsafe" not in policy
    assert "http" not in policy
    assert not re.search(r"<[^>]+\s(on\w+|style)=", text.split("<script", 1)[0])
    page = browser.new_page()
    page.goto((drawn.folder / "report.html").as_uri())
    page.evaluate(
        """() => {
          const script = document.createElement("script");
          script.textContent = "window.ran = true";
          document.body.append(script);
          document.body.insertAdjacentHTML("beforeend", "<img src=x onerror='window.ran = true'>");
        }"""
    )
    page.wait_for_timeout(200)
    assert page.evaluate("window.ran") is None
    page.close()


def test_more_images_than_are_embedded_lie_beside_the_page(visit, tmp_path, monkeypatch):
    monkeypatch.setattr(pictures, "MOST_DRAWN", 20)
    run = write_run(tmp_path / "run", [f"{n:03d}.png" for n in range(400)])
    write_report(run)
    assert len(list((run.folder / "report").glob("*.png"))) == 380
    page = visit(run, viewport={"width": 1000, "height": 800})
    made = page.locator(".card").count()
    assert made < 400
    page.evaluate("scrollTo(0, document.body.scrollHeight)")
    last = page.locator(".card[data-index='399']")
    last.wait_for()
    page.locator(".card[data-index='0']").wait_for(state="detached")  # what is far is removed
    last.scroll_into_view_if_needed()
    until(
        page,
        "[...document.querySelectorAll('.card[data-index=\"399\"] img')]"
        ".every(image => image.naturalWidth > 0)",
    )
    assert last.locator("img").first.get_attribute("src") == "thumbnails/000399.jpg"
    monkeypatch.setattr(pictures, "MOST_DRAWN", 390)
    write_report(run)
    assert len(list((run.folder / "report").glob("*.png"))) == 10  # none of an earlier page


def test_the_scroll_bar_does_not_jump_as_cards_are_made(visit, tmp_path):
    run = write_run(tmp_path / "run", [f"{n:03d}.png" for n in range(300)])
    write_report(run)
    page = visit(run, viewport={"width": 1000, "height": 800})
    height = page.evaluate("document.body.scrollHeight")
    page.evaluate("scrollTo(0, document.body.scrollHeight)")
    page.locator(".card[data-index='299']").wait_for()
    assert page.evaluate("document.body.scrollHeight") == height


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_has_contrast_and_everything_has_a_name(visit, drawn, scheme):
    page = visit(drawn, color_scheme=scheme)
    page.locator("#threshold").press("ArrowLeft")
    for details in page.locator("summary").all():
        details.click()
    low = page.evaluate(LOW_CONTRAST)
    assert low == []
    assert page.locator("img:not([alt])").count() == 0
    unnamed = page.locator("input, select, textarea").evaluate_all(
        "all => all.filter(one => !one.labels.length && !one.ariaLabel && "
        "!one.hasAttribute('aria-labelledby')).map(one => one.id)"
    )
    assert unnamed == []
    levels = page.locator("h1, h2, h3").evaluate_all("all => all.map(one => +one.tagName[1])")
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in itertools.pairwise(levels))


# Contrast by WCAG 2.2, 1.4.3: of all visible text with the nearest opaque background above it.
LOW_CONTRAST = """() => {
  const parse = colour => colour.match(/[\\d.]+/g).map(Number);
  const luminance = ([r, g, b]) => [r, g, b].map(v => v / 255)
    .map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
    .reduce((sum, v, n) => sum + v * [0.2126, 0.7152, 0.0722][n], 0);
  const ground = element => {
    for (let at = element; at; at = at.parentElement) {
      const colour = parse(getComputedStyle(at).backgroundColor);
      if (colour.length === 3 || colour[3] === 1) return colour;
    }
    throw new Error("no background");
  };
  const low = [];
  for (const element of document.querySelectorAll("body *")) {
    const own = [...element.childNodes].some(node => node.nodeType === 3 && node.data.trim());
    if (!own && !element.matches("input, select, textarea")) continue;
    if (!element.checkVisibility() || element.disabled || element.matches("option")) continue;
    const a = luminance(parse(getComputedStyle(element).color)), b = luminance(ground(element));
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    if (ratio < 4.5) low.push([element.outerHTML.slice(0, 80), ratio]);
  }
  return low;
}"""


def test_no_page_is_wider_than_a_phone(visit, drawn):
    page = visit(drawn, viewport={"width": 360, "height": 740})
    for view in ("pictures", "similar"):
        page.select_option("#view", view)
        assert page.evaluate("document.documentElement.scrollWidth") == 360


def test_places_that_are_compared_are_cut_where_the_run_says(drawn):
    entries, _, _ = list_images(drawn, lambda *_: None)
    crops = entries[0]["similar"]
    assert entries[crops[0]["image"]]["path"] == "photos/00.png"
    # Neighbours of image 0 are 1, 2 and 3, all flagged here; of image 5 they are 6, 7 and 8.
    assert {crop["image"] for crop in crops[1:]} == {1, 2, 3}
    assert [crop["image"] for crop in entries[5]["similar"]] == [5, 6, 7, 8]
    here, there = (
        np.asarray(Image.open(io.BytesIO(base64.b64decode(one["crop"].split(",")[1]))))
        for one in (entries[5]["similar"][0], entries[5]["similar"][1])
    )
    assert here.shape == (144, 144, 3)
    middle = np.s_[60:84, 60:84]
    assert here[middle].mean() < 40  # the dark square that is drawn at the peak
    assert there[middle].mean() > 85


@pytest.mark.parametrize(("x", "y", "corner"), [(0.0, 0.0, 0), (1.0, 1.0, 200), (0.5, 0.5, 100)])
def test_a_crop_stays_within_the_picture(x, y, corner):
    picture = Image.fromarray(np.tile(np.arange(256, dtype=np.uint8), (256, 1))).convert("RGB")
    crop = np.asarray(Image.open(io.BytesIO(crop_jpeg(picture, x, y, 56 / 256))))
    assert crop[:, 0].mean() == pytest.approx(corner, abs=3)
    assert crop[:, -1].mean() == pytest.approx(corner + 55, abs=3)


def test_heat_is_clear_below_and_without_a_score():
    frame = np.array([[0.0, 1.0, 2.0, np.nan]], np.float32)
    pixels = np.asarray(Image.open(io.BytesIO(heat_png(frame, 1.0, 2.0))).convert("RGBA"))[0]
    assert pixels[:, 3].tolist() == [0, 0, 225, 0]
    assert pixels[2, :3].tolist() == [252, 246, 164]


def test_colours_do_not_end_below_the_threshold(drawn):
    dull = np.full((100, 100), 0.5, np.float32)
    one_pixel = dull.copy()
    one_pixel[0, 0] = 1.2
    assert colour_bounds(drawn, [one_pixel]) == (0.5, THRESHOLD)
    # Where no pixel reaches it, colours are not all dark for that.
    low, high = colour_bounds(drawn, [dull])
    assert (low, high) == (0.5, pytest.approx(0.5, abs=1e-5))


def test_colour_bounds_have_two_digits_and_stay_when_little_changes(drawn):
    frames = [np.linspace(0, 3.21 + shift, 5000, dtype=np.float32)[None] for shift in (0, 0.001)]
    bounds = [colour_bounds(drawn, [frame]) for frame in frames]
    assert bounds[0] == bounds[1] == (2.9, 3.3)  # 0.9 * 3.21 = 2.889, 0.999 * 3.21 = 3.207
    low, high = colour_bounds(drawn, [np.full((8, 8), 3.96, np.float32)])
    assert (low, high) == (4.0, 4.000001)


def test_heat_maps_beside_the_page_are_drawn_again_only_if_they_change(tmp_path, monkeypatch):
    monkeypatch.setattr(pictures, "MOST_DRAWN", 2)
    run = write_run(tmp_path / "run", [f"{n}.png" for n in range(6)], defective=1)
    write_report(run)
    first = {path: path.stat().st_ino for path in (run.folder / "report").glob("*.png")}
    assert len(first) == 4
    write_report(run)
    again = {path: path.stat().st_ino for path in (run.folder / "report").glob("*.png")}
    assert again == first
    last = run.images[int(run.ranking[-1])]
    changed, cut = runfolder.heat_path(run.folder, last.id), min(first)
    assert changed != cut
    runfolder.write_map(run.folder, last.id, run.grid(last.path) * 1.01)
    pixels = cut.read_bytes()
    cut.write_bytes(pixels[:100])
    write_report(run)
    for path, number in first.items():
        assert (path.stat().st_ino == number) == (path not in (changed, cut))
    assert cut.read_bytes() == pixels
    before = {path: path.read_bytes() for path in first}
    monkeypatch.setattr("patchcluster.runs.pictures.__version__", "another")
    write_report(run)
    assert all(path.read_bytes() != data for path, data in before.items())


def test_a_notebook_shows_the_top_images_and_escapes_names(tmp_path):
    run = write_run(tmp_path / "run", [*HOSTILE, *(f"{n}.png" for n in range(9))])
    html = run._repr_html_()
    assert html.count("data:image/jpeg") == 10
    assert html.count("<b>flagged</b>") == 2
    assert "<script" not in html
    assert "<svg" not in html
    assert "&lt;img src=x onerror=alert(1)&gt;" in html
