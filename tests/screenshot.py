"""Picture of the report in headless Chromium.

    python -m tests.screenshot HTML PNG WIDTH HEIGHT light|dark

HEIGHT is the window's: what lies below is cut off. Needs Debian's chromium (or $CHROMIUM).
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import tempfile
from pathlib import Path


def chromium() -> str | None:
    """The browser's command, or None where there is none."""
    return os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")


def headless() -> list[str]:
    """The command of a browser without a window that asks nobody and calls nobody. Raises FileNotFoundError."""
    command = chromium()
    if command is None:
        raise FileNotFoundError("no chromium found; set CHROMIUM to its path")
    options = ("no-sandbox", "disable-gpu", "disable-quic", "no-first-run", "disable-background-networking")
    return [command, "--headless", *(f"--{each}" for each in options), "--disable-component-update", "--disable-sync"]


def browse(html: Path, width: int, height: int, theme: str, *options: str) -> subprocess.CompletedProcess[str]:
    """Open a page in a fresh profile, with ``options`` such as ``--dump-dom``; its output and errors."""
    command = headless()
    with tempfile.TemporaryDirectory() as profile:
        return subprocess.run(
            [
                *command,
                "--hide-scrollbars",
                "--virtual-time-budget=20000",
                f"--user-data-dir={profile}",
                f"--window-size={width},{height}",
                *options,
                f"{html.resolve().as_uri()}#{theme}",
            ],
            check=True,
            capture_output=True,
            text=True,
            timeout=180,
        )


def main() -> None:
    """Command line; see the module's docstring."""
    parser = argparse.ArgumentParser(prog="python -m tests.screenshot")
    parser.add_argument("html", type=Path)
    parser.add_argument("png", type=Path)
    parser.add_argument("width", type=int)
    parser.add_argument("height", type=int)
    parser.add_argument("theme", choices=["light", "dark"])
    given = parser.parse_args()
    browse(given.html, given.width, given.height, given.theme, f"--screenshot={given.png.resolve()}")


if __name__ == "__main__":
    main()
