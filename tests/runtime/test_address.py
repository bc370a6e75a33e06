"""Addresses move with what an output depends on, and with nothing else."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from hemorrhage.compress.catalogue import module_of
from hemorrhage.data.texts import repositories
from hemorrhage.runtime import address
from hemorrhage.runtime.digest import Sources
from hemorrhage.study import plan
from hemorrhage.study.plan import Plan
from hemorrhage.study.registry import METHODS
from tests.conftest import ROOT
from tests.project import replace

STEPS = ["models", "data.texts", "calibrate", "compress", "evaluate", "decode", "mitigate", "analyze", "analyze.report"]


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A copy of the package."""
    copied = tmp_path / "hemorrhage"
    shutil.copytree(ROOT / "src" / "hemorrhage", copied, ignore=shutil.ignore_patterns("__pycache__"))
    return copied


@pytest.fixture(scope="module")
def here() -> Sources:
    """The package as it is."""
    return Sources(address.SOURCE)


@pytest.fixture
def moved(tree: Path, here: Sources, monkeypatch: pytest.MonkeyPatch) -> Callable[[], set[str]]:
    """Which outputs of the default study lie elsewhere with the code of the tree."""

    def addresses(sources: Sources) -> dict[str, str]:
        for module in (plan, repositories):
            monkeypatch.setattr(module, "program", sources.program)
        study = Plan.read(ROOT / "params.yaml")
        return {**study.addresses(), "rows": study.rows, "page": study.page}

    before = addresses(here)

    def compared() -> set[str]:
        after = addresses(Sources(tree))
        assert before.keys() == after.keys()
        return {name for name in before if before[name] != after[name]}

    return compared


def move(tree: Path, module: str, to: str) -> None:
    """Move a module of the package, and tell all others."""
    old, new = (f"hemorrhage.{name.replace('/', '.')}" for name in (module, to))
    (tree / to).parent.mkdir(exist_ok=True)
    (tree / f"{module}.py").rename(tree / f"{to}.py")
    package, name = old.rsplit(".", 1)
    target, renamed = new.rsplit(".", 1)
    for file in tree.rglob("*.py"):
        text = file.read_text()
        text = re.sub(rf"{re.escape(old)}\b", new, text)
        text = re.sub(
            rf"from {re.escape(package)} import {name}\b(?!,)", f"from {target} import {renamed} as {name}", text
        )
        file.write_text(text)


def test_address_depends_on_parts_and_not_on_key_order() -> None:
    assert address.address({"a": 1, "b": 2}) == address.address({"b": 2, "a": 1})
    assert address.address("x", 1) != address.address("x", 2)
    assert address.address("ab") != address.address("a", "b")


def test_a_clean_up_moves_no_address(tree: Path, moved: Callable[[], set[str]]) -> None:
    move(tree, "models/weights", "storage/tensors")
    move(tree, "models/blocks", "stacks")
    move(tree, "models/formats/packed", "storage/packed_integers")
    replace(tree / "runtime/artifact.py", "the disk is full; make room", "no room is left; make some")
    replace(tree / "compress/checks/integrity.py", "holds NaN or infinite weights", "has weights that are not finite")
    replace(tree / "evaluate/__main__.py", "above it a model is read block by block", "in GB")
    replace(
        tree / "models/blockwise.py", "def _decode(model: PreTrainedModel, batch: Tensor)", "def _decode(model, batch)"
    )
    replace(tree / "study/registry.py", '    "rtn",\n', '    "rtn",\n    "hqq",\n')
    for name in ("models/blockwise.py", "runtime/artifact.py", "calibrate/reader.py"):
        file = tree / name
        file.write_text(file.read_text() + "\n\ndef unused() -> None:\n    print(1)\n")
    assert moved() == set()


def test_what_a_method_computes_moves_its_variants(tree: Path, moved: Callable[[], set[str]]) -> None:
    file = tree / "compress/methods/unstructured_pruning/magnitude.py"
    file.write_text(file.read_text().replace(".abs()", ".square()"))
    after = {name for name in moved() if name.startswith("checkpoints/")}
    assert after == {f"checkpoints/magnitude-{share}" for share in (0.3, 0.5, 0.7)}


def test_an_edit_of_a_shared_method_moves_the_programs_that_use_it(tree: Path, here: Sources) -> None:
    names = [module_of(method) for method in METHODS]
    method = tree / "compress/methods/weight_quantization/gptq.py"
    replace(method, 'layers = Layers.of(["layer"], weights, H,', 'layers = Layers.of(["layer"] + [], weights, H,')
    after = Sources(tree)
    changed = {name.rpartition(".")[2] for name in names if here.program(name) != after.program(name)}
    assert changed == {"gptq", "mixed", "rotation"}
    assert here.program("hemorrhage.compress.__main__") == after.program("hemorrhage.compress.__main__")


def test_how_a_form_is_read_moves_the_methods_that_store_it(tree: Path, here: Sources) -> None:
    """The reader is found by name, and the method names the form alone."""
    replace(tree / "models/formats/low_rank.py", 'stored["low_rank_in"]', 'stored["low_rank_in"] + 0')
    after = Sources(tree)
    changed = {name for name in METHODS if here.program(module_of(name)) != after.program(module_of(name))}
    assert changed == {"asvd", "svd"}


def test_a_renamed_local_variable_moves_what_reaches_it(tree: Path, moved: Callable[[], set[str]]) -> None:
    """It was 95 of 99 when a program was all that its modules import."""
    file = tree / "models/blockwise.py"
    text = file.read_text()
    start = text.index("def forward_batches(")
    end = text.index("\n\n\n", start)
    file.write_text(text[:start] + re.sub(r"\bplace\b", "number", text[start:end]) + text[end:])
    after = moved()
    assert "base/base" not in after
    assert not any(name.startswith(("texts/", "tasks/")) for name in after)


@pytest.mark.parametrize("step", STEPS)
def test_no_step_depends_on_the_registry_the_config_or_the_plan(step: str) -> None:
    loaded = address.modules_of(f"hemorrhage.{step}.__main__")
    assert not loaded & {"hemorrhage.study.registry", "hemorrhage.study.params", "hemorrhage.study.plan"}


def test_no_step_reads_what_does_not_count(here: Sources) -> None:
    """Such a program would move with every word of its modules."""
    modules = [*(f"hemorrhage.{step}.__main__" for step in STEPS), *map(module_of, METHODS)]
    assert [module for module in modules if here.reads_texts(module)] == []


def test_programs_are_remembered_for_these_very_sources(
    tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(address, "SOURCE", tree)
    monkeypatch.setattr(address, "PROGRAMS", tmp_path / "programs.json")

    def program() -> str:
        for cached in (address.program, address._sources, address._known):
            cached.cache_clear()
        return address.program("hemorrhage.models.sources.path")

    found = program()
    monkeypatch.setattr(Sources, "program", lambda self, module: "f" * 64)
    assert program() == found
    file = tree / "study/registry.py"
    file.write_text(file.read_text() + "# more\n")
    assert program() == "f" * 12
    (tmp_path / "programs.json").write_text("{")
    assert program() == "f" * 12
    for cached in (address.program, address._sources, address._known):
        cached.cache_clear()


def test_fingerprint_sees_content_and_not_time(tmp_path: Path) -> None:
    folder, memory = tmp_path / "model", tmp_path / "memory.json"
    folder.mkdir()
    (folder / "weights").write_bytes(b"12")
    first = address.fingerprint(folder, memory)
    os.utime(folder / "weights", ns=(1, 1))
    assert address.fingerprint(folder, memory) == first
    (folder / "weights").write_bytes(b"13")
    assert address.fingerprint(folder, memory) != first
    with pytest.raises(FileNotFoundError):
        address.fingerprint(tmp_path / "absent", memory)
