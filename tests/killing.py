"""Scans in processes of their own, which can be killed within a step."""

import json
import signal
import subprocess
import sys
from pathlib import Path

_SCAN = """
import json, sys, time, patchcluster
import patchcluster.methods.grids as c, patchcluster.pipeline.survey as e
e.BATCH_PIXELS = 2 * 128 * 128
c.COMPARED_PATCHES = 128
stop, images, out, given = sys.argv[1:]
def progress(step, done, total):
    if step == stop and 0 < done < total:
        print("reached", flush=True)
        time.sleep(600)
patchcluster.scan(images, out, size=(128,), progress=progress, **json.loads(given))
"""


def scan_apart(images: Path | str, out: Path, first: str = "", **given: object) -> str:
    """Scan, and give what was printed. first: is run before it."""
    command = _command("never", images, out, first, **given)
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


def kill_scan(step: str, images: Path | str, out: Path, **given: object) -> None:
    """Start a scan, and kill it when some of a step is done."""
    command = _command(step, images, out, "", **given)
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "reached\n"
        process.send_signal(signal.SIGKILL)


def _command(stop: str, images: Path | str, out: Path, first: str, **given: object) -> list[str]:
    return [sys.executable, "-c", first + _SCAN, stop, str(images), str(out), json.dumps(given)]
