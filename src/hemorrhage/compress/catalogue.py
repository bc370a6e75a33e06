"""Look up a compression method by its name: ``compress/methods/<family>/<method>.py``."""

from __future__ import annotations

import importlib
from dataclasses import replace
from pathlib import Path

from hemorrhage.compress.method import Method

FOLDER = Path(__file__).with_name("methods")


def module_of(method: str) -> str:
    """Return the name of a method's module. Raises ValueError where there is none."""
    return f"hemorrhage.compress.methods.{family_of(method)}.{method}"


def family_of(method: str) -> str:
    """Return a method's family, which is its folder's name. Raises ValueError where there is none."""
    files = sorted(FOLDER.glob(f"*/{method}.py"))
    if not files:
        raise ValueError(f"no file compress/methods/<family>/{method}.py")
    return files[0].parent.name


def method_of(name: str) -> Method:
    """Return a method by its name. Raises ValueError where there is none."""
    method: Method = importlib.import_module(module_of(name)).METHOD
    return replace(method, name=name, family=family_of(name))
