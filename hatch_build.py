"""Compiles the C files of the package where that can be done; without it all works, but slower."""

import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

PACKAGE = Path("src/patchcluster")
SOURCES = ("kernels.c", "placing.c")


class KernelsHook(BuildHookInterface):  # type: ignore[type-arg]
    def initialize(self, version: str, build_data: dict[str, Any]) -> None:  # noqa: ARG002
        if sys.platform != "linux" or platform.machine() != "x86_64":
            return
        library = PACKAGE / "_kernels.so"
        compiler = os.environ.get("CC", "cc")
        command = [
            *compiler.split(), "-O3", "-shared", "-fPIC", "-fvisibility=hidden", "-Wall",
            "-o", str(library), *(str(PACKAGE / source) for source in SOURCES), "-lm",
        ]  # fmt: skip
        if shutil.which(command[0]) is None:
            self.app.display_warning("no C compiler: searches will use float32 products")
            return
        done = subprocess.run(command, cwd=self.root, capture_output=True, text=True, check=False)
        if done.returncode:
            self.app.display_warning(f"the kernels were not compiled: {done.stderr.strip()[-500:]}")
            return
        build_data["artifacts"].append(str(library))
        build_data["pure_python"] = False
        build_data["tag"] = "py3-none-linux_x86_64"
