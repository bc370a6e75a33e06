"""The engines: a line for each, with the file of its worker.

To add one: ``workers/<name>.py`` with a class ``Worker`` (``workers/host.py`` says what it has),
``requirements/<name>.in`` with the release, ``make lock``, which writes ``requirements/<name>.txt``, and a line here.
An engine whose releases differ by device has a list for each, ``requirements/<name>-<build>``.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Literal

from hemorrhage.runtime.address import Json
from hemorrhage.runtime.command import CommandError

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Engine:
    """An engine: ``name`` in params.yaml and commands, ``title`` for people, the release, what kind of model it reads.

    ``version`` is what its worker says of itself; another release is refused, so that rows say what made them.
    ``variables`` are set in the worker's environment. ``is_built_in``: it is in the environment of this bench.
    ``build``: the device of its packages, where these differ.
    """

    name: str
    title: str
    version: str
    reads: Literal["gguf", "hf"]
    variables: Mapping[str, str] = field(default_factory=dict)
    is_built_in: bool = False
    build: str = ""

    @property
    def worker(self) -> Path:
        """File of its worker."""
        return HERE / "workers" / f"{self.name}.py"

    @property
    def requirements(self) -> Path:
        """Packages of its environment, with their hashes; there is no such file of what is built in."""
        return HERE / "requirements" / f"{'-'.join(filter(None, (self.name, self.build)))}.txt"

    @property
    def tag(self) -> str:
        """Name and version in the tag of a protocol: ``llama_cpp-b11549``."""
        return f"{self.name}-{self.version}"

    def as_json(self) -> Json:
        """Return it as a step is given it."""
        return asdict(self)

    def __str__(self) -> str:
        """Return its title with the version."""
        return f"{self.title} {self.version}"


VLLM_VERSIONS = {"cpu": "0.32.0", "cuda": "0.33.0"}
"""Build -> its release; those of the processor come later."""

BUILD_VARIABLE = "HEMORRHAGE_VLLM"
"""Set it to cpu or cuda where the machine that installs has other devices than those that compute."""


def vllm_build() -> str:
    """Return which vLLM this machine takes: ``cuda`` where NVIDIA's driver is loaded, else ``cpu``.

    Raises CommandError where the variable names another.
    """
    driver = Path("/proc/driver/nvidia/version").exists()
    build = os.environ.get(BUILD_VARIABLE) or ("cuda" if driver else "cpu")
    if build not in VLLM_VERSIONS:
        raise CommandError(f"{BUILD_VARIABLE} is {' or '.join(VLLM_VERSIONS)} (got {build!r})")
    return build


def vllm(build: str) -> Engine:
    """Return vLLM for a device of VLLM_VERSIONS."""
    return Engine(name="vllm", title="vLLM", version=VLLM_VERSIONS[build], reads="hf", build=build)


ENGINES = {
    engine.name: engine
    for engine in (
        Engine("transformers", "transformers", version("transformers"), reads="hf", is_built_in=True),
        Engine("llama_cpp", "llama.cpp", "b11549", reads="gguf"),
        vllm(vllm_build()),
    )
}
"""Name -> engine."""
