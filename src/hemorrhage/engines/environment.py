"""Environments of engines: a folder for each below ``.engines``, or below what HEMORRHAGE_ENGINES names.

Engines pin other versions of torch than this bench, and than each other. An environment is made from a list of packages
with hashes; the file ``ready-<digest of the list>`` in it appears last. Without that file the engine is not installed,
whatever else the folder has: a killed installation is continued by the next, and a new list of packages asks for one.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import subprocess
import sys
import sysconfig
import venv
from collections.abc import Iterator, Sequence
from pathlib import Path

from hemorrhage.engines.registry import ENGINES, Engine
from hemorrhage.runtime import lock
from hemorrhage.runtime.service import store

FOLDER_VARIABLE = "HEMORRHAGE_ENGINES"


class EngineError(RuntimeError):
    """What an engine could not do: one line."""


class NotInstalledError(EngineError):
    """The engine has no environment here."""


class InstallError(EngineError):
    """The environment could not be made or removed."""


def home() -> Path:
    """Return the folder of all environments, whole: a worker may run elsewhere.

    A temporary experiment of DVC has those of its project.
    """
    return Path(os.environ.get(FOLDER_VARIABLE) or (store.project() or Path()) / ".engines").absolute()


def folder_of(engine: Engine) -> Path:
    """Return the folder of an engine's environment, which need not be there."""
    return home() / engine.name


def marker(engine: Engine) -> Path:
    """Return the file that says the environment is whole and of today's list of packages."""
    digest = hashlib.sha256(engine.requirements.read_bytes()).hexdigest()[:16]
    return folder_of(engine) / f"ready-{digest}"


def is_installed(engine: Engine) -> bool:
    """Tell whether the engine can be started."""
    return engine.is_built_in or marker(engine).is_file()


def python_of(engine: Engine) -> Path:
    """Return the Python of an engine's environment. Raises NotInstalledError, which says how to install it."""
    if not is_installed(engine):
        other = any(folder_of(engine).glob("ready-*"))
        state = f"is not {engine.version}" if other else "is not installed"
        raise NotInstalledError(f"{engine.title} {state} in {home()}: hemorrhage engine install {engine.name}")
    return Path(sys.executable) if engine.is_built_in else folder_of(engine) / "bin" / "python"


def require(names: Sequence[str]) -> None:
    """Raise NotInstalledError for the first of these engines that is not installed; ask this before any work.

    Raises KeyError for a name that is not an engine.
    """
    for name in names:
        python_of(ENGINES[name])


def install(engine: Engine) -> None:
    """Make the environment of an engine, or finish it.

    Raises InstallError where packages can't be had.
    """
    if is_installed(engine):
        return
    folder = folder_of(engine)
    with _held(engine):
        begun = folder.exists()
        for stale in folder.glob("ready-*"):
            stale.unlink()
        if not (folder / "bin" / "python").exists():
            venv.create(folder, with_pip=_uv() is None, symlinks=True)
        # What a killed installation left of a package looks installed, and may lack files.
        _run(_command(folder, engine.requirements, again=begun), engine)
        marker(engine).touch()


def remove(engine: Engine) -> bool:
    """Remove the environment of an engine; False where there was none."""
    folder = folder_of(engine)
    if not folder.exists():
        return False
    with _held(engine):
        # The marker goes first: half a removal must not look installed.
        for ready in folder.glob("ready-*"):
            ready.unlink()
        shutil.rmtree(folder)
    return True


@contextlib.contextmanager
def _held(engine: Engine) -> Iterator[None]:
    try:
        with lock.holding(home() / f"{engine.name}.lock"):
            yield
    except BlockingIOError:
        raise InstallError(f"another process installs or removes {engine.title} in {home()}") from None
    except OSError as error:
        raise InstallError(f"{error.filename or home()}: {error.strerror}") from error


def _uv() -> str | None:
    """Return the uv next to this Python, which keeps one copy of a file for all environments."""
    return shutil.which("uv", path=sysconfig.get_path("scripts")) or shutil.which("uv")


def _command(folder: Path, requirements: Path, again: bool) -> list[str]:
    python, uv = str(folder / "bin" / "python"), _uv()
    wanted = ["--no-deps", "--require-hashes", "--only-binary", ":all:", "-r", str(requirements)]
    if uv is not None:
        return [uv, "pip", "install", "--quiet", "--python", python, *(["--reinstall"] if again else []), *wanted]
    pip = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    return [*pip, *(["--force-reinstall"] if again else []), *wanted]


def _run(command: list[str], engine: Engine) -> None:
    done = subprocess.run(command, stdout=sys.stderr, stderr=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
        reason = next((line for line in lines if "error" in line.lower()), lines[-1] if lines else "no reason given")
        raise InstallError(f"{engine} could not be installed ({reason}); run again: what was fetched stays")
