"""Puts the engines that tests ask into ``.engines``: ``python -m tests.engines.install``.

Those of the registry, vLLM's CPU build among them whatever the device is, and beside them the Python code of vLLM's
release for CUDA, without what is compiled. torch for CPUs has to be found, which on most machines takes PyTorch's index
as an extra one.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from hemorrhage.engines import environment
from hemorrhage.engines.registry import ENGINES, VLLM_VERSIONS, vllm

RELEASE = (f"vllm=={VLLM_VERSIONS['cuda']}", "humming-kernels==0.1.19")
"""vLLM for CUDA, and the kernels that its metadata ask for."""


def code_of_release() -> Path:
    """Return the folder of the release's Python code."""
    return environment.home() / f"vllm-{VLLM_VERSIONS['cuda']}-code"


def main() -> None:
    """Install what is not there yet."""
    for engine in {**ENGINES, "vllm": vllm("cpu")}.values():
        environment.install(engine)
    code = code_of_release()
    if code.exists():
        return
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "download", "--quiet", "--no-deps"]
    with tempfile.TemporaryDirectory(dir=environment.home()) as scratch:
        subprocess.run([*pip, "--dest", f"{scratch}/wheels", *RELEASE], check=True)
        for wheel in Path(scratch, "wheels").glob("*.whl"):
            with zipfile.ZipFile(wheel) as archive:
                names = [name for name in archive.namelist() if name.endswith((".py", "METADATA"))]
                archive.extractall(f"{scratch}/code", names)
        Path(scratch, "code").rename(code)


if __name__ == "__main__":
    main()
