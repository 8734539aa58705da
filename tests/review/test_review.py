"""`patchcluster review` as a process of its own: its store, its guard, its page in a browser."""

import csv
import io
import json
import os
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import patchcluster
from conftest import (
    PATIENCE,
    exif_of,
    run_command,
    save_image,
    textured_image,
    wait_until,
    write_set,
)
from faults.commands import RUN
from faults.processes import Command
from faults.reviewing import Reviewing
from patchcluster.pipeline.rescoring import rescore
from patchcluster.review.session import find_names
from patchcluster.review.store import GroupName, LabelStore
from patchcluster.runs.run import Run, load_run
from patchcluster.scores.labels import read_labels

HOSTILE = "<img src=x onerror=alert(1)>.png"
FIVE_BANDS = np.random.default_rng(1).integers(0, 256, (64, 64, 5), np.uint8)
ODD_BYTES = os.fsdecode(b"odd\xff.png")

# --- the store ----------------------------------------------------------------------------------

PATHS = st.sampled_from(["a.png", "b.png", "ü/c.png", ODD_BYTES])
LABELS = st.sampled_from(["normal", "anomalous", "unsure", None])
TABS = st.sampled_from(["one", "two"])
ACTIONS = st.lists(
    st.one_of(
        st.tuples(st.just("add"), TABS, st.dictionaries(PATHS, LABELS, min_size=1)),
        st.tuples(st.just("undo"), TABS),
        st.tuples(st.just("reopen")),
    ),
    max_size=25,
)


def history(file: Path) -> list[tuple]:
    with sqlite3.connect(file) as database:
        rows = database.execute("SELECT * FROM history ORDER BY id").fetchall()
    database.close()
    return rows


@settings(max_examples=40, deadline=None)
@given(ACTIONS)
def test_last_label_wins_undo_restores_and_history_only_grows(actions):
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "labels.sqlite"
        store, known = LabelStore(file), 0
        told: dict = {}  # the labels by what each tab asks for from time to time: the changes
        said: list[dict] = []  # every label ever given: path, label, who, action; undone ones go
        before: list[tuple] = []
        for number, (name, *rest) in enumerate(actions):
            if name == "add":
                who, labels = rest
                store.add(labels, who)
                said += [
                    {"path": p, "label": label, "who": who, "action": number}
                    for p, label in labels.items()
                ]
            elif name == "undo":
                last = {one["path"]: one for one in said}.values()  # of each path
                mine = [one["action"] for one in last if one["who"] == rest[0]]
                gone = [one for one in last if mine and one["action"] == max(mine)]
                assert set(store.undo(rest[0])) == {one["path"] for one in gone}
                said = [one for one in said if not any(one is other for other in gone)]
            else:
                store.close()
                store = LabelStore(file)
            now = {one["path"]: one["label"] for one in said}
            assert store.labels() == {path: label for path, label in now.items() if label}
            told |= store.changes(known)
            known = store.last
            assert {path: label for path, label in told.items() if label} == store.labels()
            rows = history(file)
            assert rows[: len(before)] == before
            # The table alone says what holds: the last row of each path.
            last_rows = {path: label for _, _, path, label, *_ in rows}
            assert len([1 for label in last_rows.values() if label]) == len(store.labels())
            before = rows
        assert store.last == len(before)
        store.close()


def test_names_go_with_the_regions_of_a_group(tmp_path):
    scratch, stain = ("a.png", 10, 10, 20, 20), ("b.png", 50, 50, 10, 10)
    with closing(LabelStore(tmp_path / "labels.sqlite")) as store:
        store.name_group(1, "scratch", [scratch, ("a.png", 80, 80, 5, 5)], "tab")
        store.name_group(2, "stain", [stain], "tab")
        store.name_group(2, "oil", [stain], "tab")
        given_names = store.group_names()
    assert find_names(given_names, {1: [scratch], 2: [stain]}) == {1: "scratch", 2: "oil"}
    # Grouped anew: numbers are swapped, regions a little larger, one is gone.
    moved = {
        1: [("b.png", 48, 48, 14, 14)],
        2: [("a.png", 9, 9, 22, 22)],
        3: [("c.png", 9, 9, 5, 5)],
    }
    assert find_names(given_names, moved) == {1: "oil", 2: "scratch"}
    assert find_names([*given_names, GroupName(1, "", [scratch])], {1: [scratch]}) == {}
    assert (
        find_names(given_names, {1: [("a.png", 30, 10, 5, 5)]}) == {}
    )  # touches, does not overlap


# --- a running review ---------------------------------------------------------------------------


@contextmanager
def serve(folder: Path) -> Iterator[Reviewing]:
    """A review in a process of its own."""
    assert folder.name == RUN
    server = Reviewing(folder.parent)
    try:
        server.address  # noqa: B018 (it listens)
        yield server
    finally:
        server.command.kill()


def get(server: Reviewing, path: str) -> dict:
    return server.ask("GET", path)


def copy_of(run: Run, to: Path) -> Path:
    return Path(shutil.copytree(run.folder, to / "run"))


@pytest.fixture(scope="module")
def server(small_run: Run, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Reviewing]:
    """A review of a copy of the small run, for what does not depend on its labels."""
    with serve(copy_of(small_run, tmp_path_factory.mktemp("review"))) as running:
        yield running


@pytest.fixture(scope="module")
def odd_run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Files with hostile names, and of kinds that browsers do not show as they were scanned."""
    root = tmp_path_factory.mktemp("odd")
    write_set(root / "images", 3, size=64)
    (root / "images" / "part0.png").rename(root / "images" / HOSTILE)
    (root / "images" / "part1.png").rename(root / "images" / ODD_BYTES)
    deep = np.random.default_rng(0).integers(0, 65536, (64, 80), np.uint16)
    Image.fromarray(deep).save(root / "images" / "deep.tif")
    tifffile.imwrite(
        root / "images" / "bands.tif", FIVE_BANDS, photometric="minisblack", planarconfig="contig"
    )
    exif = exif_of(6)  # the camera was turned
    turned = Image.fromarray(textured_image(9, 80, 64))
    turned.save(root / "images" / "turned.jpg", exif=exif, quality=95)
    Image.fromarray(textured_image(10, 64, 64)).save(root / "images" / "plain.jpg")
    return patchcluster.scan(root / "images", root / "run", size=(64,))


READS = ("/", "/static/main.js", "/api/run", "/api/changes?since=0", "/image/0", "/map/0")
READS += ("/thumbnail/0", "/crop/0?x=1&y=1&side=16", "/api/neighbours/0?x=1&y=1", "/labels.csv")
WRITES = {
    "/api/labels": {"ids": [0], "label": "normal", "tab": "t"},
    "/api/undo": {"tab": "t"},
    "/api/group-name": {"group": 1, "name": "x", "tab": "t"},
    "/api/flag": {"count": 1},
    "/api/rescore": {},
}


@pytest.mark.parametrize("path", READS)
def test_only_who_has_the_token_and_names_the_host_reads(server, path):
    response, _ = server.send("GET", path)
    assert response.status == 200
    assert "default-src 'none'; script-src 'self';" in response.headers["Content-Security-Policy"]
    assert "unsafe" not in response.headers["Content-Security-Policy"]
    assert response.headers["X-Content-Type-Options"] == "nosniff"
    assert response.headers["Referrer-Policy"] == "no-referrer"
    assert response.headers["Cache-Control"] == "no-store"
    wrong = f"patchcluster-{server.port}={'x' * len(server.token)}"
    for headers in (
        {"Cookie": None},
        {"Cookie": wrong},
        {"Cookie": f"patchcluster-{server.port}=\u00fc"},
        {"Host": f"evil.example:{server.port}"},
        {"Host": "127.0.0.1"},
        {"Host": None},
        {"Origin": "https://evil.example"},
        {"Sec_Fetch_Site": "cross-site"},
        {"Sec_Fetch_Site": "same-site"},  # another port of this machine
    ):
        response, content = server.send("GET", path, **headers)
        assert response.status in (400, 403), headers  # 400: HTTP itself asks for a host
        assert len(content) < 200
        if response.status == 403:
            assert "default-src 'none'" in response.headers["Content-Security-Policy"]


def test_the_token_in_the_address_becomes_a_cookie(server):
    response, content = server.send("GET", f"/?token={server.token}", Cookie=None)
    assert response.status == 200
    cookie = response.headers["Set-Cookie"]
    assert cookie.startswith(f"patchcluster-{server.port}={server.token};")
    assert "HttpOnly" in cookie
    assert "SameSite=Strict" in cookie
    assert server.token.encode() not in content
    for address in ("/?token=", "/?token=x", f"/api/run?token={server.token}"):
        assert server.send("GET", address, Cookie=None)[0].status == 403


@pytest.mark.parametrize("path", WRITES)
def test_only_the_page_itself_changes_anything(server, path):
    before = get(server, "/api/changes?since=0")
    same = f"http://127.0.0.1:{server.port}"
    for headers in (
        {"Cookie": None},
        {"Host": f"evil.example:{server.port}"},
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
        {"Origin": f"http://127.0.0.1:{server.port + 1}"},
        {"Origin": f"http://localhost:{server.port}"},
        {"Origin": None},
        {"Origin": None, "Sec_Fetch_Site": "none"},
        {"Origin": same, "Sec_Fetch_Site": "cross-site"},
        {"X_Patchcluster": None},
    ):
        assert server.send("POST", path, WRITES[path], **headers)[0].status == 403, headers
        assert server.send("GET", path)[0].status in (404, 405)
    assert get(server, "/api/changes?since=0") == before


def test_nothing_but_the_runs_images_can_be_read(server):
    for path in (
        "/image/8", "/image/-1", "/image/99999999999999999999", "/image/0.png", "/image/..",
        "/image/../run.json", "/image/%2e%2e%2frun.json", "/image//etc/passwd", "/run.json",
        "/static/../session.py", "/static/..%2fsession.py", "/static/%2fetc%2fpasswd",
        "/static/", "/map/labels.sqlite", "/thumbnail/..%2f..%2flabels.sqlite", "/docs",
        "/openapi.json", "/labels.sqlite",
    ):  # fmt: skip
        response, content = server.send("GET", path)
        assert response.status in (404, 422), path
        assert b"root:" not in content
        assert b"import" not in content
    assert server.send("GET", "/api/neighbours/0?x=1000&y=1")[0].status == 400
    assert server.send("GET", "/api/neighbours/0?x=nan&y=1")[0].status == 422
    asked = {"ids": [0], "label": "<b>", "tab": "t"}
    assert server.send("POST", "/api/labels", asked)[0].status == 422
    asked = {"ids": [0, 77], "label": "normal", "tab": "t"}
    assert server.send("POST", "/api/labels", asked)[0].status == 404
    assert get(server, "/api/changes?since=0")["labels"] == {}


def test_it_listens_on_this_machine_only(server):
    lines = Path("/proc/net/tcp").read_text().splitlines() if Path("/proc/net/tcp").exists() else []
    listening = [line.split()[1] for line in lines if line.split()[3] == "0A"]
    ours = [address for address in listening if address.endswith(f":{server.port:04X}")]
    assert all(address.startswith("0100007F") for address in ours)
    assert ours or not lines


def test_pictures_show_what_was_scanned(odd_run, tmp_path):
    folder = copy_of(odd_run, tmp_path)
    gone = Path(odd_run.paths[odd_run.index("part2.png")])
    kept, changed = gone.read_bytes(), Path(odd_run.paths[odd_run.index("plain.jpg")])
    with serve(folder) as running:
        images = {Path(one["path"]).name: one for one in get(running, "/api/run")["images"]}

        def shown(name: str, kind: str = "image") -> tuple[np.ndarray, dict[str, str]]:
            response, content = running.send("GET", f"/{kind}/{images[name]['id']}")
            assert response.status == 200
            return np.asarray(Image.open(io.BytesIO(content))), dict(response.headers)

        for name in (HOSTILE, ODD_BYTES, "plain.jpg"):  # as they are in the file
            path = odd_run.paths[odd_run.index(name)]
            _, content = running.send("GET", f"/image/{images[name]['id']}")
            assert content == Path(path).read_bytes()
        turned, headers = shown("turned.jpg")
        raw = np.asarray(Image.open(odd_run.paths[odd_run.index("turned.jpg")]))
        assert np.array_equal(turned, np.rot90(raw, -1))
        assert headers["content-type"] == "image/png"
        deep, _ = shown("deep.tif")
        values = np.asarray(Image.open(odd_run.paths[odd_run.index("deep.tif")]), np.float64)
        assert np.abs(deep - (values * 255 / 65535)[..., None]).max() <= 0.51
        assert np.array_equal(shown("bands.tif")[0], FIVE_BANDS[..., :3])  # Pillow cannot open it
        assert (images["turned.jpg"]["width"], images["turned.jpg"]["height"]) == (64, 80)
        assert shown("turned.jpg", "map")[0].shape[:2] == (80, 64)
        # A crop around (x, y): the pixel itself is right of and below its middle.
        _, content = running.send("GET", f"/crop/{images['turned.jpg']['id']}?x=20&y=30&side=16")
        crop = np.asarray(Image.open(io.BytesIO(content)))
        assert np.array_equal(crop, turned[22:38, 12:28])
        try:
            gone.unlink()
            small, headers = shown("part2.png")
            assert "not where it was" in headers["x-patchcluster-note"]
            thumbnail = folder / "thumbnails" / f"{images['part2.png']['id']:06d}.jpg"
            assert np.array_equal(small, np.asarray(Image.open(thumbnail)))
            original = changed.read_bytes()
            changed.write_bytes(original + b"\0")
            _, headers = shown("plain.jpg")
            assert "changed since" in headers["x-patchcluster-note"]
            changed.write_bytes(original)
        finally:
            gone.write_bytes(kept)


def test_labels_as_csv_are_what_scan_reads(odd_run, tmp_path):
    folder = copy_of(odd_run, tmp_path)
    with serve(folder) as running:
        ids = [one["id"] for one in get(running, "/api/run")["images"]]
        for number, label in zip(ids, ["normal", "anomalous", "unsure", "normal"], strict=False):
            body = {"ids": [number], "label": label, "tab": "t"}
            assert running.send("POST", "/api/labels", body)[0].status == 200
        _, content = running.send("GET", "/labels.csv")
    (tmp_path / "labels.csv").write_bytes(content)
    expected = dict(zip(odd_run.paths, ["normal", "anomalous", "unsure", "normal"], strict=False))
    del expected[odd_run.paths[2]]
    assert read_labels(tmp_path / "labels.csv") == expected
    rows = list(csv.reader(io.StringIO(content.decode("utf-8", "surrogateescape"))))
    assert rows[3] == [odd_run.paths[2], "unsure"]


def test_one_review_of_a_run_at_a_time_and_a_clean_end(small_run, tmp_path):
    folder = copy_of(small_run, tmp_path)
    with serve(folder) as running:
        second = run_command("review", folder, "--no-browser")
        assert second.exit_code == 1
        assert "is being reviewed by another process" in second.stderr
        taken = run_command("review", small_run.folder, "--no-browser", "--port", running.port)
        assert taken.exit_code == 1
        assert "cannot listen on port" in taken.stderr
        assert get(running, "/api/run")["version"] == 0
        running.command.interrupt()
        assert "Traceback" not in running.command.printed
    (tmp_path / "photos").mkdir()
    missing = run_command("review", tmp_path / "photos")
    assert missing.exit_code == 1
    assert missing.stderr.startswith("patchcluster: ")
    assert not list((tmp_path / "photos").iterdir())


@pytest.mark.skipif(os.name == "nt", reason="the stand-in for a browser is a shell script")
def test_the_token_is_on_no_command_line(small_run, tmp_path):
    folder, script, seen = copy_of(small_run, tmp_path), tmp_path / "browser", tmp_path / "seen"
    script.write_text(
        f'#!/bin/sh\nfile="${{1#file://}}"\n(echo "$*"; ls -l "$file"; cat "$file") > {seen}.part\n'
        f"mv {seen}.part {seen}\n"
    )
    script.chmod(0o700)
    command = [sys.executable, "-m", "patchcluster", "review", str(folder)]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, env={**os.environ, "BROWSER": str(script)}
    ) as review:
        address = review.stdout.readline().strip()
        wait_until(seen.exists)
        review.send_signal(signal.SIGINT)
    asked, listed, content = seen.read_text().split("\n", 2)
    assert asked == (folder / "review.html").as_uri()
    assert listed.startswith("-rw-------")
    assert address in content
    assert not (folder / "review.html").exists()


def test_it_follows_what_another_process_does_to_the_run(small_run, tmp_path):
    folder = copy_of(small_run, tmp_path)
    with serve(folder) as running:
        command = Command(("report", str(folder), "--flag-top", "5"), tmp_path)
        command.finish()
        assert get(running, "/api/changes?since=0")["version"] == 1
        assert sum(one["flagged"] for one in get(running, "/api/run")["images"]) == 5
        (folder / "run.json").rename(folder / "away.json")  # as if in the middle of a change
        assert get(running, "/api/changes?since=0")["version"] == 1


def test_labels_of_the_scan_are_kept(small_run, tmp_path):
    folder = copy_of(small_run, tmp_path)
    info = json.loads((folder / "run.json").read_text())
    info["labels"] = {small_run.paths[2]: "normal", small_run.paths[3]: "anomalous"}
    (folder / "run.json").write_text(json.dumps(info))
    with closing(LabelStore(folder / "labels.sqlite")) as store:
        store.add({small_run.paths[3]: "normal"}, "tab")
        store.undo("tab")
    with serve(folder) as running:
        assert get(running, "/api/changes?since=0")["labels"] == {"2": "normal", "3": None}


# --- the page in a browser ----------------------------------------------------------------------


@contextmanager
def open_page(browser, server: Reviewing, problems: bool = True) -> Iterator:
    """A tab with the page; afterwards nothing must have gone wrong or left the machine."""
    context = browser.new_context(viewport={"width": 1400, "height": 900})
    said: list[str] = []
    context.on("request", lambda request: _check_local(request.url, server, said))
    context.on("console", lambda message: said.append(f"{message.type}: {message.text}"))
    context.on("dialog", lambda dialog: (said.append("dialog"), dialog.dismiss()))
    context.on("weberror", lambda error: said.append(str(error.error)))
    context.set_default_timeout(1000 * PATIENCE)
    page = context.new_page()
    go_to(page, server)
    yield page
    context.close()
    assert not problems or said == []


def _check_local(url: str, server: Reviewing, said: list[str]) -> None:
    if not url.startswith((f"http://127.0.0.1:{server.port}/", "blob:")):
        said.append(f"request: {url}")


def go_to(page, server: Reviewing) -> None:
    page.goto(server.address)
    ready(page)


def ready(page) -> None:
    page.wait_for_selector("body[data-ready]")
    page.wait_for_selector("#view[data-id]")


def label_of(page, name: str) -> str:
    """The tag of the label in the row of an image."""
    tag = page.locator(".row-image", has_text=name).locator(
        ".tag.normal, .tag.anomalous, .tag.unsure"
    )
    return tag.inner_text() if tag.count() else ""


def wait_for(page, script: str, argument: object = None) -> None:
    page.wait_for_function(script, arg=argument)


def wait_for_label(page, name: str, label: str) -> None:
    wait_for(
        page,
        "([name, label]) => [...document.querySelectorAll('.row-image')].some((row) => "
        "row.textContent.includes(name) && ('' + (row.querySelector('.normal, .anomalous, .unsure')"
        "?.textContent ?? '')) === label && !row.querySelector('.saving'))",
        [name, label],
    )


def names(page) -> list[str]:
    rows = page.locator(".row-image").all()
    by_place = {
        int(r.get_attribute("aria-posinset")): r.locator(".name").inner_text() for r in rows
    }
    return [by_place[place].split("/")[-1] for place in sorted(by_place)]


def wait_for_current(page, name: str) -> None:
    wait_for(page, "(name) => document.querySelector('#path').innerText.endsWith(name)", name)


def current(page) -> str:
    return page.locator("#path").inner_text().split("/")[-1]


def test_labels_outlive_reload_undo_and_kill_of_the_server(browser, small_run, tmp_path):
    folder = copy_of(small_run, tmp_path)
    with serve(folder) as running, open_page(browser, running) as page:
        assert page.url == f"http://127.0.0.1:{running.port}/"  # the token is out of sight
        ranked = [Path(small_run.paths[int(i)]).name for i in small_run.ranking]
        assert names(page) == ranked
        assert current(page) == "part7.png"
        page.keyboard.press("a")  # and goes on
        wait_for_label(page, ranked[0], "anomalous")
        assert current(page) == ranked[1]
        page.keyboard.press("n")
        page.keyboard.press("u")
        wait_for_label(page, ranked[1], "normal")
        wait_for_label(page, ranked[2], "unsure")
        page.keyboard.press("ArrowLeft")
        assert current(page) == ranked[2]
        page.keyboard.press("z")
        wait_for_label(page, ranked[2], "")
        page.keyboard.press("Backspace")
        wait_for_label(page, ranked[1], "")
        wait_for_current(page, ranked[1])  # the list is told first
        page.uncheck("#advance")
        page.click("#unsure")
        wait_for_label(page, ranked[1], "unsure")
        assert current(page) == ranked[1]
        assert page.locator("#progress").inner_text() == "2 of 8 labelled"
        page.reload()
        ready(page)
        assert [label_of(page, name) for name in ranked[:3]] == ["anomalous", "unsure", ""]
        page.keyboard.press("End")
        page.keyboard.press("n")
        wait_for_label(page, ranked[7], "normal")
    # The server was killed as soon as the page showed the last label as saved.
    with serve(folder) as running, open_page(browser, running) as page:
        assert [label_of(page, name) for name in ranked[:2]] == ["anomalous", "unsure"]
        assert label_of(page, ranked[7]) == "normal"
        assert page.locator("#progress").inner_text() == "3 of 8 labelled"


def test_two_tabs_see_each_others_labels(browser, small_run, tmp_path):
    folder = copy_of(small_run, tmp_path)
    with serve(folder) as running, open_page(browser, running) as one:
        other = one.context.new_page()
        go_to(other, running)
        one.keyboard.press("a")
        other.keyboard.press("End")
        other.keyboard.press("n")
        last = names(other)[-1]
        for page in (one, other):
            wait_for_label(page, "part7.png", "anomalous")
            wait_for_label(page, last, "normal")
            wait_for(page, "() => progress.textContent.startsWith('2 of 8')")
        one.keyboard.press("z")  # only what this tab did
        wait_for_label(other, "part7.png", "")
        assert label_of(other, last) == "normal"


def test_slider_flags_at_once_and_the_button_makes_it_last(browser, small_run, tmp_path):
    folder = copy_of(small_run, tmp_path)
    with serve(folder) as running, open_page(browser, running) as page:
        page.focus("#count")
        page.keyboard.press("Home")
        assert page.locator(".tag.flagged").count() == 0
        for _ in range(3):
            page.keyboard.press("ArrowRight")
        assert page.locator(".tag.flagged").count() == 3
        assert page.locator("#count-text").inner_text() == "3 of 8 flagged"
        chance = [small_run.probabilities[int(i)] for i in small_run.ranking]
        assert page.locator("#expected").inner_text() == (
            f"Of 3 flagged about {round(sum(chance[:3]))} are expected to be anomalous, "
            f"about {round(sum(chance[3:]))} are missed"
        )
        assert load_run(folder).flagged.sum() == small_run.flagged.sum()
        page.select_option("#filter", "flagged")
        expected = [Path(small_run.paths[int(i)]).name for i in small_run.ranking[:3]]
        wait_for(page, "() => document.querySelectorAll('.row-image').length === 3")
        assert names(page) == expected
        page.click("#keep")
        wait_for(page, "() => keep.disabled && job.hidden")
        wait_for(page, "() => document.querySelectorAll('.row-image').length === 3")
        kept = load_run(folder)
        assert kept.flagged.sum() == 3
        assert kept.info.flagging == {"expect": None, "flag_top": 3}


def test_a_click_shows_what_a_place_was_compared_with(browser, server, small_run):
    with open_page(browser, server) as page:
        box = page.locator("#view").bounding_box()
        side = min(box["width"], box["height"])
        left, top = box["x"] + (box["width"] - side) / 2, box["y"] + (box["height"] - side) / 2
        x, y = 27 / 96, 63 / 96  # the middle of a patch
        page.mouse.click(left + x * side, top + y * side)
        page.wait_for_selector("#neighbours li")
        expected = small_run.neighbours("part7.png", x * 96, y * 96)
        texts = page.locator("#neighbours li").all_inner_texts()
        assert "this place" in texts[0]
        found = [float(re.search(r"distance (\S+)", text)[1]) for text in texts[1:]]
        assert found == [round(one.distance, 4) for one in expected]
        for text, one in zip(texts[1:], expected, strict=True):
            assert Path(one.path).name in text
        loaded = (
            "() => [...document.querySelectorAll('#neighbours img')].every((i) => i.naturalWidth)"
        )
        wait_for(page, loaded)
        # The same place by keys alone.
        page.keyboard.press("c")
        page.keyboard.press("Shift+ArrowLeft")
        page.keyboard.press("Shift+ArrowLeft")
        page.keyboard.press("ArrowLeft")
        page.keyboard.press("Shift+ArrowDown")
        for _ in range(5):
            page.keyboard.press("ArrowDown")
        assert page.locator("#place").inner_text() == "Pixel 27, 63"
        page.keyboard.press("Enter")
        page.wait_for_timeout(200)
        again = page.locator("#neighbours li").all_inner_texts()[1:]
        expected = [round(one.distance, 4) for one in small_run.neighbours("part7.png", 27, 63)]
        assert [float(re.search(r"distance (\S+)", text)[1]) for text in again] == expected
        page.locator("#neighbours button").nth(1).click()  # that image beside
        wait_for(
            page, "() => document.querySelector('#other-caption').textContent.includes('Compared')"
        )


def test_what_is_odd_about_an_image_is_in_its_row_and_its_facts(browser, tmp_path):
    for i in range(9):  # one darker
        pixels = textured_image(i) * (0.6 if i == 4 else 1.0)
        save_image(tmp_path / "images" / f"{i}.png", pixels.astype(np.uint8))
    patchcluster.scan(tmp_path / "images", tmp_path / "run", size=(64,))
    with serve(tmp_path / "run") as running, open_page(browser, running) as page:
        row = page.locator(".row-image", has_text="4.png")
        assert row.locator(".tag.remark").all_inner_texts() == ["darker"]
        assert page.locator(".row-image .tag.remark").count() == 1
        row.click()
        wait_for_current(page, "4.png")
        assert page.locator("#facts .tag.remark").all_inner_texts() == ["darker"]


def test_zoom_map_and_nearest_image(browser, server, small_run):
    with open_page(browser, server) as page:
        with_map = seen(page)
        page.keyboard.press("m")
        assert not np.array_equal(seen(page), with_map)
        page.keyboard.press("1")
        assert page.locator("#zoom").inner_text() == f"{round(fit_scale(page) * 100)} %"
        page.keyboard.press("+")
        page.keyboard.press("+")
        scale = float(page.locator("#zoom").get_attribute("data-scale"))
        assert scale == pytest.approx(fit_scale(page) * 1.5**2)
        # Without the map, the pixel in the middle of the canvas is that of the image.
        picture = seen(page)
        middle = picture[picture.shape[0] // 2 + 2, picture.shape[1] // 2 + 2]
        image = np.asarray(Image.open(small_run.paths[small_run.index("part7.png")]))
        assert middle.tolist() == image[48, 48].tolist()
        before = seen(page)
        page.keyboard.press("Shift+ArrowRight")
        assert not np.array_equal(seen(page), before)
        page.keyboard.press("s")
        page.wait_for_selector("#other[data-id]")
        nearest = Path(small_run.nearest[small_run.index("part7.png")]).name
        assert nearest in page.locator("#other-caption").inner_text()
        page.keyboard.press("s")
        assert page.locator("#other").is_hidden()
        page.keyboard.press("?")
        assert page.locator("#keys").is_visible()


def seen(page) -> np.ndarray:
    """What the picture's canvas looks like, uint8 [height, width, 3]."""
    shot = page.locator("#view").screenshot()
    return np.asarray(Image.open(io.BytesIO(shot)).convert("RGB"))


def test_a_picture_never_stands_under_another_name(browser, server, small_run):
    with open_page(browser, server) as page:
        held, released = [], []
        page.route(
            "**/image/*", lambda route: route.continue_() if released else held.append(route)
        )
        page.keyboard.press("End")
        last = names(page)[-1]
        assert current(page) == last
        assert page.locator("#view[data-id]").count() == 0
        assert page.locator("#caption").inner_text() == "Loading"
        page.keyboard.press("c")  # no place to point at yet
        page.keyboard.press("Enter")
        page.keyboard.press("s")
        released.append(True)
        while held:
            held.pop().continue_()
        expected = small_run.images[small_run.index(last)].id
        page.wait_for_selector(f"#view[data-id='{expected}']")
        assert last in page.locator("#caption").inner_text()
        page.wait_for_selector("#other[data-id]")


def fit_scale(page) -> float:
    return page.evaluate("() => Math.min(view.width, view.height) / 96")


def test_rescore_with_labels_changes_the_ranking(browser, small_run, tmp_path):
    folder = copy_of(small_run, tmp_path)
    with serve(folder) as running, open_page(browser, running) as page:
        page.uncheck("#advance")
        before = names(page)
        page.keyboard.press("n")
        page.keyboard.press("End")
        page.keyboard.press("a")
        page.keyboard.press("ArrowUp")
        page.keyboard.press("u")
        wait_for_label(page, before[-2], "unsure")
        labels = {before[0]: "normal", before[-1]: "anomalous"}  # unsure says nothing
        expected = rescore(copy_of(small_run, tmp_path / "expected"), labels)
        ranked = [Path(expected.paths[int(i)]).name for i in expected.ranking]
        assert ranked != before
        page.click("#rescore")
        wait_until(lambda: names(page) == ranked)
        after = load_run(folder)
        said = {Path(path).name: label for path, label in after.info.labels.items()}
        assert said == labels
        assert page.locator("#progress").inner_text() == "3 of 8 labelled"
        assert label_of(page, before[-2]) == "unsure"


def test_filters_search_batch_and_group_names(browser, small_run, tmp_path):
    folder = copy_of(small_run, tmp_path)
    with serve(folder) as running, open_page(browser, running) as page:
        page.keyboard.press("/")
        page.keyboard.type("part3")
        wait_for(page, "() => document.querySelectorAll('.row-image').length === 1")
        page.keyboard.press("Control+A")
        page.keyboard.press("Backspace")  # in a field it is no undo
        page.keyboard.press("Escape")
        page.select_option("#order", "path")
        assert names(page) == [f"part{i}.png" for i in range(8)]
        group = small_run.regions("part7.png")[0].group
        page.select_option("#group", str(group))
        assert "part7.png" in names(page)
        page.click("#rename")
        page.fill("#name", "dark <b>blot</b>")
        page.click("#name-save")
        wait_for(page, "() => group.selectedOptions[0].text.startsWith('dark <b>blot</b> (')")
        in_group = len(names(page))
        page.click("#batch")
        page.click("#batch-dialog [data-label=anomalous]")
        wait_for_label(page, "part7.png", "anomalous")
        assert page.locator("#progress").inner_text() == f"{in_group} of 8 labelled"
        page.select_option("#group", "")
        page.select_option("#filter", "unlabelled")
        assert len(names(page)) == 8 - in_group
        page.reload()
        ready(page)
        assert page.locator("#group option").nth(group).inner_text().startswith("dark <b>blot</b>")


def test_hostile_names_and_a_lost_server_do_nothing(browser, odd_run, tmp_path):
    folder = copy_of(odd_run, tmp_path)
    with serve(folder) as running:
        with open_page(browser, running) as page:
            row = page.locator(".row-image", has_text=HOSTILE)
            row.click()
            wait_for(page, "() => caption.textContent.includes('<img src=x')")
            page.keyboard.press("c")
            page.keyboard.press("Enter")
            page.wait_for_selector("#neighbours li")
            page.keyboard.press("n")
            wait_for_label(page, HOSTILE, "normal")
            page.locator(".row-image", has_text="odd").click()
            page.keyboard.press("a")
            wait_for_label(page, "odd", "anomalous")
            assert page.locator("img[src=x]").count() == 0
        with open_page(browser, running, problems=False) as page:
            page.locator(".row-image", has_text="deep.tif").click()
            running.command.kill()
            page.keyboard.press("a")
            page.wait_for_selector("#banner:not([hidden])")
            wait_for_label(page, "deep.tif", "")  # it does not say what is not on the disk
    with closing(LabelStore(folder / "labels.sqlite")) as store:
        assert store.labels() == {
            odd_run.paths[odd_run.index(HOSTILE)]: "normal",
            odd_run.paths[odd_run.index(ODD_BYTES)]: "anomalous",
        }
