"""The installed packages whose documentation and source small models are trained on.

Nothing heavy is imported: the plan asks for the versions, which the address of the text holds.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path

from hemorrhage.runtime.step import InputError

PACKAGES: Mapping[str, str] = {
    "torch": "torch",
    "transformers": "transformers",
    "scipy": "scipy",
    "sklearn": "scikit-learn",
    "pandas": "pandas",
    "sympy": "sympy",
    "sqlalchemy": "SQLAlchemy",
    "nltk": "nltk",
    "mpmath": "mpmath",
    "docutils": "docutils",
    "huggingface_hub": "huggingface_hub",
    "datasets": "datasets",
    "pydantic": "pydantic",
    "snakemake": "snakemake",
    "celery": "celery",
    "asyncssh": "asyncssh",
    "dulwich": "dulwich",
    "prompt_toolkit": "prompt_toolkit",
    "PIL": "pillow",
    "rich": "rich",
    "jinja2": "Jinja2",
    "aiohttp": "aiohttp",
}
"""Package -> distribution. Not those of the corpus ``prose``, nor the standard library, whose modules are ``code``."""


PACKAGES_OF: Mapping[str, Sequence[str]] = {"installed": tuple(PACKAGES), "few": ("jinja2", "rich")}
"""Text -> the packages that it is made of: all, or a few that are read in seconds."""


def versions(packages: Sequence[str] = PACKAGES_OF["installed"]) -> dict[str, str]:
    """Return the version of each package. Raises InputError where one is not installed."""
    return {package: _version(PACKAGES[package]) for package in packages}


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        raise InputError(f"the training text needs the package {name}, which is not installed") from None


def folder(package: str) -> Path:
    """Return where a package lies. Raises InputError where it is not installed."""
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise InputError(f"the training text needs the package {package}, which is not installed")
    return Path(spec.submodule_search_locations[0])
