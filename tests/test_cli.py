"""The command: its output and its exit code, in a process of its own where that matters."""

import dataclasses
import json
import os
import re
import signal
import subprocess
import sys
from inspect import signature
from pathlib import Path

import numpy as np
import pytest
import typer
from PIL import Image

import patchcluster
from conftest import run_command, write_set
from patchcluster import Scorer
from patchcluster.benchmark import benchmark
from patchcluster.cli import app, sets
from patchcluster.demo import write_parts
from patchcluster.errors import SettingError
from patchcluster.exporting import FORMATS
from patchcluster.methods import METHODS
from patchcluster.settings import Settings, resolve

VERBS = typer.main.get_command(app).commands


def run_apart(*args: object, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """The command as a user runs it: a process of its own, which costs seconds."""
    command = [sys.executable, "-m", "patchcluster", *map(str, args)]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd)


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    """Drawn parts with truth, of which 4 are ordinary. Do not change them."""
    folder = tmp_path_factory.mktemp("drawn") / "parts"
    write_parts(folder, good=4)
    return folder


def test_help_names_every_command_with_an_example():
    top = run_command("--help").stdout
    assert set(VERBS) == {
        "scan", "score", "update", "report", "review", "export", "evaluate", "benchmark", "serve",
        "watch", "methods", "backbones", "demo",
    }  # fmt: skip
    for name in VERBS:
        assert name in top
        assert f"Example: patchcluster {name}" in run_command(name, "--help").stdout


def helps_of(option):
    """The help of an option in each verb that has it, but for demo, which does not choose."""
    verbs = [verb for name, verb in VERBS.items() if name != "demo"]
    return {p.help for verb in verbs for p in verb.params if p.name == option}


def methods_named_in(text):
    names = sorted(METHODS, key=len, reverse=True)  # or a name would be found within a longer one
    return set(re.findall("|".join(names), text))


@pytest.mark.parametrize(
    ("option", "value"),
    [("k", 2), ("ratio", 0.5), ("bank_images", 9), ("local_weight", 0.1), ("seed", 7)],
)
def test_an_option_of_methods_reaches_those_that_its_help_names_and_no_other(option, value):
    [text] = helps_of(option)
    assert methods_named_in(text) == {
        name for name, method in METHODS.items() if option in signature(method).parameters
    }
    for name in METHODS:
        if name in methods_named_in(text):
            method = resolve(method=name, **{option: value}).make_method([4], [8])
            assert getattr(method, option) == value
        else:
            with pytest.raises(SettingError, match=r"leave (it|seed) out"):
                resolve(method=name, **{option: value})


def test_options_that_not_all_methods_can_follow_say_so():
    [labels], [roi], [rules] = map(helps_of, ("labels", "roi", "image_score"))
    assert methods_named_in(labels) == {n for n, m in METHODS.items() if m.learns_from_labels}
    assert methods_named_in(roi) == {n for n, m in METHODS.items() if not m.facts.takes_parts}
    own = {}
    for name, method in METHODS.items():
        for rule in method.facts.image_scores:
            own.setdefault(rule, []).append(name)
    assert {rule: set(names) for rule, names in own.items()} == {
        rule: methods_named_in(names) for rule, names in re.findall(r"(\w+) \((.*?)\)", rules)
    }


@pytest.mark.parametrize("option", ["segmentation", "images", "image_prefix"])
def test_an_option_of_formats_names_those_that_have_it(option):
    [text] = helps_of(option)
    named = set(re.findall(r"[\w]+", text)) & set(FORMATS)
    assert named == {name for name, format_ in FORMATS.items() if option in format_.options}


def test_settings_have_one_default():
    fields = {field.name: field.default for field in dataclasses.fields(Settings)}
    for name in VERBS:
        for parameter in VERBS[name].params:
            # The seed of a drawing; what a request may cost.
            others = (name, parameter.name) in (("demo", "seed"), ("serve", "max_pixels"))
            if parameter.name in fields and not others:
                assert not parameter.default, (name, parameter.name)
    for function in (benchmark, Scorer.__init__):
        for name, parameter in signature(function).parameters.items():
            if name in fields and name != "size":  # the paper's
                assert parameter.default in (None, fields[name]), name


def test_tiles_and_a_mask(tmp_path):
    write_set(tmp_path / "images", 4, size=160)
    Image.fromarray(np.arange(160)[None].repeat(160, 0) < 80).save(tmp_path / "mask.png")
    chosen = ("--size", 64, "--tile", "--roi", tmp_path / "mask.png", "--json")
    result = run_command("scan", tmp_path / "images", "-o", tmp_path / "run", *chosen)
    assert result.exit_code == 0, result.stderr
    scanned = patchcluster.load_run(json.loads(result.stdout)["run"])
    assert scanned.grid("part0.png").shape == (10, 10)
    assert np.isfinite(scanned.map("part0.png")).sum() == 160 * 80
    result = run_command("scan", tmp_path / "images", "-o", tmp_path / "other", "--roi", "none.png")
    assert result.exit_code == 1
    assert result.stderr.strip().splitlines()[-1].startswith("patchcluster: no region of interest")


def test_methods_lists_every_method_with_its_parameters():
    rows = json.loads(run_command("methods", "--json").stdout)
    assert [row["name"] for row in rows] == list(METHODS)
    assert {row["name"]: row["parameters"] for row in rows}["patchcore-lof"] == {"k": 100}
    text = run_command("methods").stdout
    assert all(row["does"] in text and row["does"].endswith(".") for row in rows)


# Runs commands, one a line, and prints the exit code of each and what is loaded by then.
WITHOUT_TORCH = """
import contextlib, io, sys
from patchcluster import cli
for line in sys.stdin:
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        try:
            cli.app(line.split())
        except SystemExit as end:
            code = end.code
    loaded = [name for name in ("torch", "timm", "fastapi") if name in sys.modules]
    print(code, *loaded, line.strip())
"""


OPENED_REVIEW = """
import sys
from pathlib import Path
from patchcluster.review import review
from patchcluster.review.session import Review
opened = Review(Path("run")).describe()
print(sum(image["flagged"] for image in opened["images"]), "torch" in sys.modules)
"""


def run_without_torch(commands: dict[str, int], folder: Path) -> None:
    """Run commands in one process that must end with these exit codes, and without torch."""
    command = [sys.executable, "-c", WITHOUT_TORCH]
    text = "\n".join(commands)
    done = subprocess.run(command, input=text, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [f"{code} {line}" for line, code in commands.items()]


def test_what_needs_no_network_does_not_load_torch(tmp_path):
    commands = {
        **{f"{verb} --help": 0 for verb in VERBS},
        "--help": 0,
        "methods": 0,
        "backbones": 0,
        "scan": 2,
        "scan photos --nope": 2,
        "scan photos --size big": 2,
        "scan photos --expect some": 2,
        "scan photos --method nope": 1,
        "scan photos --preset nope": 1,
        "scan photos --k 0": 1,
        "scan photos --seed 7": 1,
        "scan photos --method padim --k 3": 1,
        "scan photos --method padim --roi mask.png": 1,
        "scan photos --image-score global": 1,
        "update run": 2,
        "report run --flag-top many": 2,
        "export run": 2,
        "export run --format csv": 1,
        "evaluate run --truth dataset": 1,
        "benchmark mvtec --tables two": 2,
    }
    run_without_torch(commands, tmp_path)


def test_what_is_done_with_a_finished_run_does_not_load_torch(parts, tmp_path):
    """Regions that change are grouped by their patches: not here, where the flags stay."""
    patchcluster.scan(parts / "test", tmp_path / "run", size=(64,), flag_top=3)
    commands = {
        **{f"export run --format {name} -o {name}": 0 for name in set(FORMATS) - {"onnx"}},
        "export run --flagged-to flagged": 0,
        "report run --flag-top 3": 0,
        f"evaluate run --truth {parts}": 0,
    }
    run_without_torch(commands, tmp_path)
    command = [sys.executable, "-c", OPENED_REVIEW]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout == "3 False\n"


@pytest.mark.parametrize(("given", "expected"), [(None, "PASSIVE"), ("ACTIVE", "ACTIVE")])
def test_threads_leave_the_cores_to_others_while_they_wait(given, expected):
    code = "import patchcluster, os; print(os.environ['OMP_WAIT_POLICY'])"
    env = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
    env |= {"OMP_WAIT_POLICY": given} if given else {}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
    assert done.stdout == f"{expected}\n"


def test_benchmark_prints_where_the_tables_are_and_says_each_cell(parts, tmp_path):
    command = ("benchmark", parts, "-o", tmp_path / "out", "--size", 64)
    chosen = ("--tables", "2,7", "--methods", "padim,patchcore", "--setting", "test")
    result = run_command(*command, *chosen)
    assert result.exit_code == 0
    assert result.stdout == f"{tmp_path / 'out' / 'report.md'}\n"
    for cell in ("padim", "patchcore-10%", "patchcore-25%", "patchcore-100%"):
        assert f"test parts {cell}: " in result.stderr
    again = run_command(*command, *chosen, "--json", "--quiet")
    assert again.stderr == ""
    cells = json.loads(again.stdout)["cells"]
    assert cells[0]["variant"] == "padim"
    assert 0 <= cells[0]["figures"]["pixel_auroc"] <= 1


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        (["--tables", "two"], 2, "write 2,5,7"),
        (["--methods", "spade,musc", "--seed", 3], 1, "nothing is random in spade, musc: leave"),
    ],
)
def test_benchmark_says_what_is_wrong(parts, tmp_path, options, code, words):
    result = run_command("benchmark", parts, "-o", tmp_path / "out", *options)
    assert result.exit_code == code
    assert words in " ".join(result.stderr.replace("│", " ").split())
    assert not (tmp_path / "out").exists()


def test_version():
    assert run_apart("--version").stdout == f"patchcluster {patchcluster.__version__}\n"


def test_scan_prints_results_and_only_these_on_standard_output(tmp_path):
    write_set(tmp_path / "photos")
    (tmp_path / "photos" / "notes.txt").write_text("x")
    (tmp_path / "photos" / "Thumbs.db").write_text("x")
    result = run_apart("scan", "photos", "--size", 64, cwd=tmp_path)
    assert result.returncode == 0
    lines = result.stdout.splitlines()
    assert lines[1].split()[0] == "1"
    assert lines[1].endswith("photos/part7.png")
    assert "skipped  photos/notes.txt: not an image" in result.stdout
    assert re.fullmatch(
        r"8 images scored, \d flagged, 1 skipped; report: photos-run/report.html", lines[-1]
    )
    assert "files and folders of the system left out: 1 (Thumbs.db)\n" in result.stderr
    assert "features: 8 done" in result.stderr
    assert (tmp_path / "photos-run" / "report.html").is_file()


def test_max_pixels_is_a_setting_of_the_scan(tmp_path):
    write_set(tmp_path / "photos", 3, size=64)
    write_set(tmp_path / "photos" / "large", 1)
    chosen = ("--size", 64, "--dry-run", "--json", "--max-pixels", 96 * 96 - 1)
    said = json.loads(run_command("scan", tmp_path / "photos", *chosen).stdout)
    assert (said["images"], said["skipped"], said["settings"]["max_pixels"]) == (3, 1, 9215)


def test_a_dry_run_says_what_a_scan_needs_and_writes_nothing(tmp_path, monkeypatch):
    write_set(tmp_path / "photos", 5)
    (tmp_path / "photos" / "notes.txt").write_text("x")
    monkeypatch.chdir(tmp_path)
    command = ["scan", "photos", "--size", "128", "--dry-run"]
    shown = run_command(*command)
    assert shown.exit_code == 0
    first, skipped = shown.stdout.splitlines()
    assert re.fullmatch(
        r"5 images, 320 patches: about \d+ \w+ \(start .*, features .*, compare .*, maps .*, "
        r"report .*\); about .* of memory",
        first,
    )
    assert skipped == "1 files cannot be read"
    value = json.loads(run_command(*command, "--json").stdout)
    assert (value["images"], value["skipped"], value["patches"]) == (5, 1, 320)
    assert value["memory"] > 1 << 20
    assert sum(value["seconds"].values()) > 0
    assert [path.name for path in tmp_path.iterdir()] == ["photos"]


@pytest.mark.parametrize(
    ("args", "code", "words"),
    [
        (["scan", "nowhere"], 1, "'nowhere' does not exist"),
        (["scan", ".", "--size", "big"], 2, "write 448"),
        (["scan"], 2, "Missing argument"),
        (["report", "nowhere"], 1, "not a run"),
        (["review", "nowhere", "--no-browser"], 1, "not a run"),
        (["score", "nowhere", "."], 1, "not a run"),
        (["serve", "nowhere", "--port", "0"], 1, "not a run"),
        (["evaluate", "nowhere", "--truth", "."], 1, "not a run"),
    ],
)
def test_errors_are_one_line_with_the_right_exit_code(tmp_path, monkeypatch, args, code, words):
    write_set(tmp_path, 2)
    monkeypatch.chdir(tmp_path)
    result = run_command(*args)
    assert result.exit_code == code
    assert words in result.stderr
    assert "Traceback" not in result.stderr
    assert result.stdout == ""
    if code == 1:
        assert len(result.stderr.splitlines()) == 1 + result.stderr.count(" done\n")


def test_an_error_ends_the_process_with_its_exit_code(tmp_path):
    result = run_apart("scan", "nowhere", cwd=tmp_path)
    assert (result.returncode, result.stdout) == (1, "")
    assert len(result.stderr.splitlines()) == 1


# Stands still when the first features are written, until it is interrupted.
STOPPED = """
import time
from patchcluster import cli
from patchcluster.runs import storage
write = storage.write_tensors
def write_and_stop(*given):
    write(*given)
    print("reached", flush=True)
    time.sleep(600)
storage.write_tensors = write_and_stop
cli.main()
"""


def test_interrupted_it_says_that_it_resumes_and_exits_with_130(tmp_path):
    write_set(tmp_path / "photos")
    command = [sys.executable, "-c", STOPPED, "scan", "photos", "--size", "64", "-q"]
    with subprocess.Popen(
        command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout.readline() == "reached\n"
        process.send_signal(signal.SIGINT)
        printed, errors = process.communicate()
    assert process.returncode == 130
    assert (printed, errors) == ("", "patchcluster: interrupted; the same command resumes\n")
    assert list(tmp_path.glob("photos-run/.work/features-*"))


def test_what_does_not_resume_does_not_say_so_when_interrupted(monkeypatch):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("patchcluster.pipeline.scoring.score", interrupt)
    result = run_command("score", "RUN", "image.png")
    assert (result.exit_code, result.stderr) == (130, "patchcluster: interrupted\n")


def test_evaluate_and_report_on_drawn_parts(tmp_path):
    write_parts(tmp_path / "parts", good=8, defective=4)
    out = tmp_path / "run"
    run_command("scan", tmp_path / "parts" / "test", "-o", out, "--size", 128, "-q")
    result = run_command("evaluate", out, "--truth", tmp_path / "parts", "--json", "-q")
    figures = json.loads(result.stdout)
    assert set(figures) == {
        "image_auroc", "image_ap", "image_f1max", "pixel_auroc", "pixel_ap", "pro",
    }  # fmt: skip
    assert figures["pixel_auroc"] > 0.9
    text = run_command("evaluate", out, "--truth", tmp_path / "parts" / "ground_truth", "-q").stdout
    assert f"pixel AUROC {100 * figures['pixel_auroc']:.1f}" in text
    (out / "report.html").unlink()
    assert run_command("report", out).stdout == f"{out / 'report.html'}\n"
    assert (out / "report.html").is_file()


def test_names_cannot_harm_the_terminal(tmp_path):
    """Nor the page and the tables: see test_report.py and test_parsers.py."""
    names = ("\x1b[31mred.png", "new\nline.png", os.fsdecode(b"latin\xe9.png"))
    for path, name in zip(write_set(tmp_path / "photos", 3), names, strict=True):
        path.rename(path.with_name(name))
    result = run_command("scan", tmp_path / "photos", "-o", tmp_path / "out", "--size", 64, "-q")
    assert result.exit_code == 0, result.stderr
    assert "\x1b" not in result.stdout
    assert "new\nline" not in result.stdout
    loaded = patchcluster.load_run(tmp_path / "out")
    assert {Path(path).name for path in loaded.paths} == set(names)


@pytest.mark.parametrize(
    "command",
    [
        "scan photos -o s3://b/run",
        "score run photos -o s3://b/new.csv",
        "export run --format csv -o s3://b/run.csv",
        "export run --flagged-to s3://b/flagged",
        "benchmark photos -o s3://b/bench",
        "demo -o s3://b/demo",
        "score s3://b/run photos",
        "update s3://b/run --add photos",
        "report s3://b/run",
        "review s3://b/run --no-browser",
        "export s3://b/run --format csv",
        "evaluate s3://b/run --truth photos",
        "serve s3://b/run --port 0",
        "watch s3://b/run .",
    ],
)
def test_only_images_can_be_at_urls(command, small_run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("run").symlink_to(small_run.folder)
    write_set(tmp_path / "photos", 2)
    result = run_command(*command.split())
    assert (result.exit_code, len(result.stderr.splitlines())) == (1, 1)
    assert "is a URL, and only images can be at one: name a path on this" in result.stderr
    assert sorted(os.listdir()) == ["photos", "run"]


def test_default_output_is_named_after_the_input(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert sets.name_run("photos/") == Path("photos-run")
    assert sets.name_run("a/b/*.png") == Path("patchcluster-run")
    assert sets.name_run("s3://bucket/key") == Path("patchcluster-run")
    assert sets.name_run(".") == Path(f"{tmp_path.name}-run")
