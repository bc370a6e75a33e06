"""Where a compression method lies: ``compress/methods/<family>/<method>.py``."""

from __future__ import annotations

from pathlib import Path

FOLDER = Path(__file__).with_name("methods")


def module_of(method: str) -> str:
    """Return the name of a method's module. Raises ValueError where there is none."""
    files = sorted(FOLDER.glob(f"*/{method}.py"))
    if not files:
        raise ValueError(f"no file compress/methods/<family>/{method}.py")
    return f"hemorrhage.compress.methods.{files[0].parent.name}.{method}"
