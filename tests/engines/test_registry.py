"""Every engine of the registry has its worker and its list of packages."""

from __future__ import annotations

import re

import pytest

from hemorrhage.engines.registry import ENGINES, Engine


@pytest.mark.parametrize("engine", ENGINES.values(), ids=list(ENGINES))
def test_an_engine_is_whole(engine: Engine) -> None:
    assert engine.worker.is_file()
    assert "class Worker" in engine.worker.read_text(encoding="utf-8")
    assert re.fullmatch(r"[a-z][a-z0-9_]*", engine.name)
    assert engine.tag == f"{engine.name}-{engine.version}"
    assert str(engine) == f"{engine.title} {engine.version}"


INSTALLED = [engine for engine in ENGINES.values() if not engine.is_built_in]


@pytest.mark.parametrize("engine", INSTALLED, ids=str)
def test_its_packages_are_pinned_with_hashes_and_without_addresses(engine: Engine) -> None:
    text = engine.requirements.read_text(encoding="utf-8")
    assert "://" not in text
    packages = [line for line in text.splitlines() if line and not line.startswith((" ", "#"))]
    assert packages
    for package in packages:
        assert re.match(r"[\w.\[\]-]+==[\w.+!]+( ; [^\\]+)? \\$", package), package
    for block in re.split(r"\n(?=\S)", text.strip()):
        assert "--hash=sha256:" in block, block


@pytest.mark.parametrize("engine", ENGINES.values(), ids=list(ENGINES))
def test_a_worker_imports_nothing_of_this_package(engine: Engine) -> None:
    assert "hemorrhage" not in engine.worker.read_text(encoding="utf-8")
