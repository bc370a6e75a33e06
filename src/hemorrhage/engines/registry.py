"""The engines: a line for each, with the file of its worker.

To add one: ``workers/<name>.py`` with a class ``Worker`` (``workers/host.py`` says what it has),
``requirements/<name>.in`` with the release, ``make lock``, which writes ``requirements/<name>.txt``, and a line here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Literal

from hemorrhage.runtime.address import Json

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Engine:
    """An engine: ``name`` in params.yaml and commands, ``title`` for people, the release, what kind of model it reads.

    ``version`` is what its worker says of itself; another release is refused, so that rows say what made them.
    ``variables`` are set in the worker's environment. ``is_built_in``: it is in the environment of this bench.
    """

    name: str
    title: str
    version: str
    reads: Literal["gguf", "hf"]
    variables: Mapping[str, str] = field(default_factory=dict)
    is_built_in: bool = False

    @property
    def worker(self) -> Path:
        """File of its worker."""
        return HERE / "workers" / f"{self.name}.py"

    @property
    def requirements(self) -> Path:
        """Packages of its environment, with their hashes; there is no such file of what is built in."""
        return HERE / "requirements" / f"{self.name}.txt"

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


ENGINES = {
    engine.name: engine
    for engine in (
        Engine("transformers", "transformers", version("transformers"), reads="hf", is_built_in=True),
        Engine("llama_cpp", "llama.cpp", "b11549", reads="gguf"),
    )
}
"""Name -> engine."""
