"""Every engine of the registry has its worker and its list of packages."""

from __future__ import annotations

import re

import pytest

from hemorrhage.engines import registry
from hemorrhage.engines.registry import ENGINES, Engine
from hemorrhage.runtime.command import CommandError

ALL = {**ENGINES, **{f"vllm-{build}": registry.vllm(build) for build in registry.VLLM_VERSIONS}}


@pytest.mark.parametrize("engine", ALL.values(), ids=list(ALL))
def test_an_engine_is_whole(engine: Engine) -> None:
    assert engine.worker.is_file()
    assert "class Worker" in engine.worker.read_text(encoding="utf-8")
    assert re.fullmatch(r"[a-z][a-z0-9_]*", engine.name)
    assert engine.tag == f"{engine.name}-{engine.version}"
    assert str(engine) == f"{engine.title} {engine.version}"


INSTALLED = [engine for engine in ALL.values() if not engine.is_built_in]


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


@pytest.mark.parametrize("engine", ALL.values(), ids=list(ALL))
def test_a_worker_imports_nothing_of_this_package(engine: Engine) -> None:
    assert "hemorrhage" not in engine.worker.read_text(encoding="utf-8")


def test_vllm_is_that_of_the_device_unless_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(registry.BUILD_VARIABLE, "cuda")
    assert registry.vllm_build() == "cuda"
    assert registry.vllm("cuda").requirements.name == "vllm-cuda.txt"
    monkeypatch.delenv(registry.BUILD_VARIABLE)
    assert registry.vllm_build() in registry.VLLM_VERSIONS
    monkeypatch.setenv(registry.BUILD_VARIABLE, "rocm")
    with pytest.raises(CommandError, match=r"HEMORRHAGE_VLLM is cpu or cuda \(got 'rocm'\)"):
        registry.vllm_build()
