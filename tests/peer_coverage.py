"""Which families of models other compression tools know, beside this bench: the table of docs/peers.md.

    python -m tests.peer_coverage [FOLDER]

FOLDER holds what ``pip download --no-deps`` gets of llmcompressor, gptqmodel and nvidia-modelopt: their registries are
read from the source, and nothing of theirs is imported. Without it the columns of the peers stay as the page has them.
The bench's own column is always that of docs/families.md.
"""

from __future__ import annotations

import argparse
import ast
import tarfile
import zipfile
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path

import transformers
from transformers import CONFIG_MAPPING

from hemorrhage.models.architecture import architecture
from tests.conftest import ROOT
from tests.families import FAMILIES, config_of
from tests.family_matrix.page import UNTRIED, committed

PAGE = ROOT / "docs" / "peers.md"
BEGIN, END = "<!-- coverage: begin (python -m tests.peer_coverage) -->\n", "<!-- coverage: end -->\n"
UNTESTED = "<!-- untested: begin -->\n"

NONE = "–"


@dataclass(frozen=True)
class Family:
    """The names by which peers know a family."""

    model_type: str
    model_class: str


def family(name: str) -> Family:
    """The names of a family of tests.families."""
    config = config_of(name)
    return Family(config.model_type, architecture(config).__name__)


def keys(source: str, registry: str) -> list[str]:
    """Keys of a dictionary that is written down in a module, in its order, with those that are added one by one."""
    entries: list[ast.expr | None] = []
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Assign | ast.AnnAssign):
            continue
        for target in node.targets if isinstance(node, ast.Assign) else [node.target]:
            if isinstance(target, ast.Name) and target.id == registry and isinstance(node.value, ast.Dict):
                entries += node.value.keys
            if isinstance(target, ast.Subscript) and isinstance(target.value, ast.Name) and target.value.id == registry:
                entries.append(target.slice)
    return [key.value for key in entries if isinstance(key, ast.Constant) and isinstance(key.value, str)]


def read(folder: Path, package: str, module: str) -> str:
    """The source of a peer's module, from its wheel or source archive in ``folder``."""
    [archive] = [file for file in folder.glob(f"{package}-*") if file.suffix in (".whl", ".gz")]
    if archive.suffix == ".whl":
        with zipfile.ZipFile(archive) as wheel:
            return wheel.read(module).decode()
    with tarfile.open(archive) as packed:
        [name] = [name for name in packed.getnames() if name.partition("/")[2] == module]
        stream = packed.extractfile(name)
        if stream is None:
            raise ValueError(f"{archive}: {module} is not a file")
        return stream.read().decode()


def llm_compressor(folder: Path) -> Callable[[Family], str]:
    """What llm-compressor has an entry for: the methods that need one, and experts that it takes apart."""
    transform = "llmcompressor/modifiers/transform"
    registries = {
        "AWQ": (("awq/mappings", "AWQ_MAPPING_REGISTRY"), ("awq/dynamic_mappings", "AWQ_DYNAMIC_MAPPING_REGISTRY")),
        "SmoothQuant": (
            ("smoothquant/utils", "MAPPINGS_REGISTRY"),
            ("smoothquant/dynamic_mappings", "SMOOTHQUANT_DYNAMIC_MAPPING_REGISTRY"),
        ),
        "SpinQuant": (("spinquant/mappings", "SPINQUANT_MAPPING_REGISTRY"),),
    }
    known = {
        method: {
            key
            for module, registry in places
            for key in keys(read(folder, "llmcompressor", f"{transform}/{module}.py"), registry)
        }
        for method, places in registries.items()
    }
    conversions = read(folder, "llmcompressor", "llmcompressor/modeling/moe/conversion_mappings.py")
    experts = keys(conversions, "ARCH_TO_IMPORT_PATHS")

    def entries(family: Family) -> str:
        methods = [method for method, classes in known.items() if family.model_class in classes]
        return ", ".join([*methods, *(["experts"] if family.model_type in experts else [])]) or NONE

    return entries


def gptqmodel_types(folder: Path) -> list[str]:
    """Every model type of which GPTQModel has a definition."""
    return keys(read(folder, "gptqmodel", "gptqmodel/models/auto.py"), "MODEL_MAP")


def gptqmodel(folder: Path) -> Callable[[Family], str]:
    """Whether GPTQModel has a definition of a family."""
    types = gptqmodel_types(folder)
    return lambda family: "yes" if family.model_type in types else NONE


def modelopt(folder: Path) -> Callable[[Family], str]:
    """What ModelOpt takes a family for: the first name that the class of a model holds."""
    module = read(folder, "nvidia_modelopt", "modelopt/torch/export/model_utils.py")
    names = keys(module, "MODEL_NAME_TO_TYPE")

    def type_of(family: Family) -> str:
        return next((name for name in names if name.lower() in family.model_class.lower()), NONE)

    return type_of


PEERS = {"llm-compressor": llm_compressor, "GPTQModel": gptqmodel, "ModelOpt": modelopt}
"""Column of a peer -> its reader."""


def ours(marks: dict[str, str]) -> str:
    """What this bench does with a family, from the marks of docs/families.md."""
    no = [column for column, mark in marks.items() if mark == "no"]
    part = [column for column, mark in marks.items() if mark == "part"]
    tried = [mark for mark in marks.values() if mark != UNTRIED]
    said = [f"{len(tried) - len(no)} of {len(tried)}"]
    said += [f"{word} {', '.join(columns)}" for word, columns in (("not", no), ("part of", part)) if columns]
    return "; ".join(said)


def peers_of(folder: Path, names: Collection[str]) -> dict[str, dict[str, str]]:
    """Family -> peer -> cell, read from the peers' archives."""
    readers = {peer: reader(folder) for peer, reader in PEERS.items()}
    return {name: {peer: entry(family(name)) for peer, entry in readers.items()} for name in names}


def untested(folder: Path) -> str:
    """Lines about the model types that GPTQModel has and docs/families.md has not."""
    types, own = gptqmodel_types(folder), {family(name).model_type for name in FAMILIES}
    others = [name for name in types if name not in own]
    known = [name for name in others if name in CONFIG_MAPPING]
    return (
        f"GPTQModel has definitions of {len(types)} model types; {len(types) - len(others)} are in the table."
        f" {len(others) - len(known)} are of models that bring code of their own, which is never executed here. Of the"
        f" {len(known)} that transformers {transformers.__version__} has, no row tests: {', '.join(known)}.\n"
    )


def peers_on(page: str) -> dict[str, dict[str, str]]:
    """Family -> peer -> cell, as the page has them."""
    table = page.partition(BEGIN)[2].partition(END)[0].splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table if line.startswith("|")]
    return {name: dict(zip(PEERS, cells, strict=False)) for name, *cells in rows[2:]}


def renewed(page: str, peers: dict[str, dict[str, str]]) -> str:
    """The page with a table of these peers' columns, and this bench's."""
    before, _, rest = page.partition(BEGIN)
    after = rest.partition(END)[2]
    lines = [f"| family | {' | '.join(PEERS)} | this bench |", f"|---|{'---|' * (len(PEERS) + 1)}"]
    for name, marks in committed().items():
        cells = [peers.get(name, {}).get(peer, "not read") for peer in PEERS]
        lines.append(f"| {name} | {' | '.join(cells)} | {ours(marks)} |")
    return before + BEGIN + "\n".join(lines) + "\n" + END + after


def with_untested(page: str, lines: str) -> str:
    """The page with these lines about untested model types."""
    before, _, rest = page.partition(UNTESTED)
    return before + UNTESTED + lines + END + rest.partition(END)[2]


def renew(folder: Path | None = None) -> None:
    """Write the page anew, the peers' columns from their archives in ``folder`` where there is one."""
    page = PAGE.read_text(encoding="utf-8")
    if folder:
        page = with_untested(renewed(page, peers_of(folder, FAMILIES)), untested(folder))
    PAGE.write_text(renewed(page, peers_on(page)), encoding="utf-8")


def main() -> None:
    """Command line; see the module's docstring."""
    parser = argparse.ArgumentParser(prog="python -m tests.peer_coverage", description="families that peers know")
    parser.add_argument("folder", type=Path, nargs="?", help="of the peers' archives; default: their columns stay")
    renew(parser.parse_args().folder)


if __name__ == "__main__":
    main()
