"""docs/add-a-method.md, followed word for word: HQQ is taken out of a copy of the repository and added by the page.

    python -m tests.compress.test_add_a_method_step

writes the page's code anew from the repository's files, after these have changed.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import ROOT

PAGE = ROOT / "docs" / "add-a-method.md"
REGISTRY = "src/hemorrhage/study/registry.py"
FILES = (
    "src/hemorrhage/compress/methods/weight_quantization/hqq.py",
    "tests/compress/methods/weight_quantization/test_hqq.py",
)
WRITTEN = ("README.md", "docs/methods.md")
"""Files that ``python -m hemorrhage.tools.methods`` writes."""

BLOCK = re.compile(r"^`(\S+\.py)`:\n\n```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINE = re.compile(r"`METHODS` of `(\S+)`.* below `(\S+)`:\n\n```text\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def shown() -> dict[str, str]:
    """The files that the page shows: path and text."""
    return dict(BLOCK.findall(PAGE.read_text(encoding="utf-8")))


def registry_line() -> tuple[str, str, str]:
    """The file that the page has a line for, the line above it, and the line."""
    found = LINE.search(PAGE.read_text(encoding="utf-8"))
    assert found
    return found[1], f"    {found[2]}\n", found[3]


@pytest.mark.parametrize("path", FILES)
def test_the_page_shows_the_repositorys_file(path: str) -> None:
    assert shown()[path] == (ROOT / path).read_text(encoding="utf-8"), "python -m tests.compress.test_add_a_method_step"


@pytest.fixture(scope="module")
def before(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the repository as it was before there was HQQ."""
    tree = tmp_path_factory.mktemp("page") / "hemorrhage"
    for name in ("src", "tests", "docs"):
        shutil.copytree(ROOT / name, tree / name, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    for name in ("README.md", "params.yaml"):
        shutil.copyfile(ROOT / name, tree / name)
    path, _, line = registry_line()
    assert path == REGISTRY
    text = (tree / path).read_text(encoding="utf-8")
    assert text.count(line) == 1
    (tree / path).write_text(text.replace(line, ""), encoding="utf-8")
    for name in FILES:
        (tree / name).unlink()
    run(tree, "-m", "hemorrhage.tools.methods")
    for name in WRITTEN:
        assert "`hqq`" not in (tree / name).read_text(encoding="utf-8")
    return tree


def run(tree: Path, *arguments: str) -> None:
    """Run Python with the sources of ``tree``."""
    environment = {**os.environ, "PYTHONPATH": f"{tree / 'src'}:{tree}", "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run([sys.executable, *arguments], cwd=tree, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]


def digests(tree: Path) -> dict[str, str]:
    """Path -> digest, of every file."""
    files = sorted(file for file in tree.rglob("*") if file.is_file())
    return {str(file.relative_to(tree)): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def follow(tree: Path) -> Iterator[str]:
    """Do in ``tree`` what the page says; the paths of the files that it names."""
    for path, text in shown().items():
        assert not (tree / path).exists()
        (tree / path).write_text(text, encoding="utf-8")
        yield path
    path, above, line = registry_line()
    text = (tree / path).read_text(encoding="utf-8")
    assert text.count(above) == 1
    (tree / path).write_text(text.replace(above, above + line), encoding="utf-8")
    yield path
    run(tree, "-m", "hemorrhage.tools.methods")
    yield from WRITTEN


USE = """
import json, sys
from pathlib import Path
import hemorrhage
import pandas as pd
from hemorrhage.analyze import inputs
from hemorrhage.analyze.__main__ import analyze
from hemorrhage.analyze.spec import Spec
from hemorrhage.compress.__main__ import compress
from hemorrhage.models.checkpoint import load
from hemorrhage.models.formats.storage import formatted_layers
from hemorrhage.study import params as config
from tests import synthetic

folder, tiny = map(Path, sys.argv[1:])
assert Path(hemorrhage.__file__).is_relative_to(Path.cwd())

# What a user writes in params.yaml.
params = config.read(Path("params.yaml"))
sweep = {"method": "hqq", "bits": [4, 3, 2], "group_size": 64}
variants = config.variants(params.model_copy(update={"compress": {**params.compress, "hqq": sweep}}))
assert [name for name in variants if name.startswith("hqq")] == ["hqq-4", "hqq-3", "hqq-2"]
assert variants["hqq-3"].family == "weight_quantization"

# The compress step.
spec = {"sweep": "hqq", "method": "hqq", "settings": {"bits": 3, "group_size": 4}, "seed": 3}
compress(folder / "out", "hqq-3", tiny, None, None, [], spec)
manifest = json.loads((folder / "out/manifest.json").read_text())
assert "failure" not in manifest, manifest
assert (manifest["curve"], manifest["label"]) == ("groups of 4", "3 bit, groups of 4")
layers = formatted_layers(load(folder / "out", as_stored=True, base=tiny)).values()
assert {layer.storage_format for layer in layers} == {"affine"}

# The analysis, of made-up damage that is half of round to nearest's.
points = synthetic.points()
plain = {point.severity: point for point in points if point.method == "rtn"}
more = [
    synthetic.Point(f"hqq-{bits}", "hqq", "hqq", {"bits": bits, "group_size": 64}, bits, plain[bits].stored_bits,
                    synthetic.PARAMETERS, plain[bits].damage / 2)
    for bits in (4, 3, 2)
]
synthetic.points = lambda: [*points, *more]
written = synthetic.write(folder / "study", windows=8, window=32, items=16)
outputs = inputs.read({kind: written[kind] for kind in ("base", "checkpoints", "evaluations")})
analyze(folder / "reports", outputs, Spec(100, 0.95, 0, budget=synthetic.BUDGET), "0123456789ab")
rows = pd.read_parquet(folder / "reports/hemorrhage.parquet")
for bits in (4, 3, 2):
    of = rows[(rows.variant == f"hqq-{bits}") & rows.metric.str.startswith("recovery{of=kl_mean")]
    assert set(of.metric.str.extract(r"plain=([\\w-]+)")[0]) == {f"rtn-{bits}"}, of
    assert of.estimate.between(0, 1).any(), of
curves = json.loads((folder / "reports/thresholds.json").read_text())["curves"]
assert "hqq" in {curve["name"] for curve in curves}
"""


def test_the_page_makes_a_method_and_touches_nothing_else(before: Path, tiny: Path, tmp_path: Path) -> None:
    """The compress step, the plan, the analysis and the tables know it, and the repository is what it was."""
    without = digests(before)
    named = set(follow(before))
    now = digests(before)
    assert {path for path in now if now[path] != without.get(path)} == named == {*FILES, REGISTRY, *WRITTEN}
    assert set(without) <= set(now)
    assert {path: digest for path, digest in now.items() if digest != digests_of(path)} == {}
    run(before, "-c", USE, str(tmp_path), str(tiny))


def digests_of(path: str) -> str:
    """The digest of a file of the repository."""
    return hashlib.sha256((ROOT / path).read_bytes()).hexdigest()


def main() -> None:
    """Write the page's code anew."""
    text = PAGE.read_text(encoding="utf-8")
    for path in FILES:
        head = f"`{path}`:\n\n```python\n"
        first, found, rest = text.partition(head)
        assert found, path
        text = first + head + (ROOT / path).read_text(encoding="utf-8") + "```" + rest.partition("```")[2]
    PAGE.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
