"""docs/peers.md: this bench's column is that of docs/families.md, and peers' registries are read from their source."""

from __future__ import annotations

import io
import re
import tarfile
import zipfile
from pathlib import Path

import pytest

from hemorrhage.study.registry import METHODS
from tests import peer_coverage
from tests.families import FAMILIES
from tests.family_matrix.page import committed
from tests.peer_coverage import END, PAGE, UNTESTED, family, keys, ours, peers_of, peers_on, renewed


def test_the_table_is_that_of_the_page_of_families() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert renewed(page, peers_on(page)) == page, "python -m tests.peer_coverage"
    assert peers_on(page).keys() == committed().keys() == FAMILIES.keys()
    unread = [name for name, cells in peers_on(page).items() if "not read" in cells.values()]
    assert unread == [], "python -m tests.peer_coverage FOLDER"


def test_what_is_said_to_be_untested_has_no_row() -> None:
    lines = PAGE.read_text(encoding="utf-8").partition(UNTESTED)[2].partition(END)[0]
    names = lines.partition("no row tests: ")[2].strip(" .\n").split(", ")
    assert names
    assert {family(name).model_type for name in FAMILIES}.isdisjoint(names)


def test_the_methods_of_this_bench_are_in_its_registry() -> None:
    table = PAGE.read_text(encoding="utf-8").partition("## Methods\n")[2].partition("## ")[0]
    cells = [line.rstrip("|").rpartition("|")[2] for line in table.splitlines() if line.startswith("|")]
    named = {name for cell in cells for name in re.findall(r"`(\w+)`", cell)}
    assert named
    assert named <= set(METHODS)


def test_a_familys_cell_counts_and_names_what_is_not_done() -> None:
    assert ours({"base": "yes", "awq": "yes"}) == "2 of 2"
    assert ours({"base": "yes", "awq": "no", "evaluate": "part"}) == "2 of 3; not awq; part of evaluate"


def test_keys_are_those_that_are_written_and_those_that_are_added() -> None:
    source = """
OTHER = {"x": 1}
MAP: dict[str, int] = {"a": 1, "b": 2}
if True:
    MAP["c"] = 3
"""
    assert keys(source, "MAP") == ["a", "b", "c"]


@pytest.fixture
def archives(tmp_path: Path) -> Path:
    """Peers' archives that know Llama and one mixture."""
    transform = "llmcompressor/modifiers/transform"
    wheels = {
        "llmcompressor-1-py3-none-any.whl": {
            f"{transform}/awq/mappings.py": "AWQ_MAPPING_REGISTRY: dict = {'LlamaForCausalLM': 1}",
            f"{transform}/awq/dynamic_mappings.py": "AWQ_DYNAMIC_MAPPING_REGISTRY = {}",
            f"{transform}/smoothquant/utils.py": "MAPPINGS_REGISTRY = {'MixtralForCausalLM': 1}",
            f"{transform}/smoothquant/dynamic_mappings.py": "",
            f"{transform}/spinquant/mappings.py": "SPINQUANT_MAPPING_REGISTRY = {'LlamaForCausalLM': 1}",
            "llmcompressor/modeling/moe/conversion_mappings.py": "ARCH_TO_IMPORT_PATHS = {'mixtral': 1}",
        },
        "nvidia_modelopt-1-py3-none-any.whl": {
            "modelopt/torch/export/model_utils.py": "MODEL_NAME_TO_TYPE = {'Llama': 'llama'}"
        },
    }
    for name, files in wheels.items():
        with zipfile.ZipFile(tmp_path / name, "w") as wheel:
            for file, content in files.items():
                wheel.writestr(file, content)
    types = b"MODEL_MAP = {'llama': 1, 'baichuan': 2, 'nemotron_h': 3}"
    with tarfile.open(tmp_path / "gptqmodel-1.tar.gz", "w:gz") as packed:
        entry = tarfile.TarInfo("gptqmodel-1/gptqmodel/models/auto.py")
        entry.size = len(types)
        packed.addfile(entry, io.BytesIO(types))
    return tmp_path


def test_registries_are_read_from_the_archives(archives: Path) -> None:
    assert peers_of(archives, ["llama", "mixtral"]) == {
        "llama": {"llm-compressor": "AWQ, SpinQuant", "GPTQModel": "yes", "ModelOpt": "Llama"},
        "mixtral": {"llm-compressor": "SmoothQuant, experts", "GPTQModel": "–", "ModelOpt": "–"},
    }
    lines = peer_coverage.untested(archives)
    assert "3 model types; 1 are in the table. 1 are of models that bring code of their own" in lines
    assert lines.endswith("no row tests: nemotron_h.\n")
