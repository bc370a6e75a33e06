"""Benchmarks of lm-eval as they are prepared: their splits, right answers, chance and identity."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import datasets
import pyarrow as pa
import pytest
from pyarrow import parquet

from hemorrhage.data.benchmarks import harness as benchmarks
from hemorrhage.data.benchmarks.catalogue import BENCHMARKS
from hemorrhage.data.benchmarks.harness import identity, reachable
from hemorrhage.data.source import Embedded, Hub, Mirror
from hemorrhage.runtime import address
from hemorrhage.runtime.artifact import read_manifest
from hemorrhage.study.registry import HARNESS_TASKS
from tests.benchmark_rows import ROWS, SUBJECTS, prepared_all, rows_of, winogrande, write, write_mirror
from tests.conftest import MIRROR, SOURCES

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(scope="module")
def mirror(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_mirror(tmp_path_factory.mktemp("hf"))


@pytest.fixture(scope="module")
def prepared(mirror: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return prepared_all(mirror, tmp_path_factory.mktemp("benchmarks"))


@pytest.mark.parametrize(
    ("task", "chance", "floor"),
    [
        ("arc_easy", (4 / 4 + 2 / 3 + 2 / 5) / 8, 4 / 8),
        ("mmlu", 1 / 4, 3 / 8),
        ("hellaswag", 1 / 4, 1 / 2),
        ("piqa", 1 / 2, 1 / 2),
        ("winogrande", 1 / 2, 6 / 8),
        ("boolq", 1 / 2, 6 / 8),
        ("openbookqa", (4 / 4 + 2 / 3 + 2 / 5) / 8, 4 / 8),
        ("lambada_openai", 0, 0),
        ("gsm8k", 0, 0),
    ],
)
def test_chance_and_floor(task: str, chance: float, floor: float, prepared: dict[str, Path]) -> None:
    facts = read_manifest(prepared[task])
    assert facts["chance"] == pytest.approx(chance)
    assert facts["floor"] == pytest.approx(floor)
    assert facts["items"] == sum(facts["members"].values()) == ROWS * (3 if task == "mmlu" else 1)


def test_prepared_are_only_the_splits_that_are_read(prepared: dict[str, Path]) -> None:
    assert {file.name for file in prepared["arc_easy"].rglob("*.parquet")} == {"test.parquet"}
    assert {file.name for file in prepared["gsm8k"].rglob("*.parquet")} == {"test.parquet", "train.parquet"}
    assert sorted(folder.name for folder in prepared["mmlu"].iterdir() if folder.is_dir()) == [
        f"mmlu_{subject}" for subject in SUBJECTS
    ]
    assert read_manifest(prepared["boolq"])["repository"]["name"] == "google/boolq"
    table = parquet.read_table(prepared["boolq"] / "boolq" / "validation.parquet")
    assert table["label"].to_pylist() == [1, 1, 1, 1, 1, 1, 0, 0]


def test_what_is_missing_is_one_line(mirror: Path, tmp_path: Path) -> None:
    here = Mirror(source="mirror", path=str(mirror))
    assert all(reachable(task, here) is None for task in BENCHMARKS)
    assert reachable("poems", here) == f"task 'poems' is unknown; allowed: {', '.join(HARNESS_TASKS)}"
    assert (
        reachable("piqa", Embedded(source="embedded")) == "task piqa needs data.source mirror or hub (got 'embedded')"
    )
    nowhere = Mirror(source="mirror", path=str(tmp_path / "nowhere"))
    assert reachable("piqa", nowhere) == f"task piqa: data.path {tmp_path}/nowhere is not a folder"
    empty = Mirror(source="mirror", path=str(tmp_path))
    assert reachable("gsm8k", empty) == f"task gsm8k: no file openai/gsm8k/main/test-*.parquet in {tmp_path}"
    both = "baber/piqa/default/validation-*.parquet or ybisk/piqa/plain_text/validation-*.parquet"
    assert reachable("piqa", empty) == f"task piqa: no file {both} in {tmp_path}"
    assert reachable("piqa", Hub(source="hub", revisions={})) == (
        "task piqa needs the commit of baber/piqa or ybisk/piqa in data.revisions"
    )
    assert reachable("piqa", Hub(source="hub", revisions={"ybisk/piqa": COMMIT})) is None
    with pytest.raises(ValueError, match=r"no file openai/gsm8k/main/test-\*\.parquet"):
        benchmarks.prepare("gsm8k", empty, tmp_path / "out")
    with pytest.raises(ValueError, match="task 'poems' is unknown; allowed: arc_easy"):
        benchmarks.prepare("poems", here, tmp_path / "out")
    (repository,) = BENCHMARKS["winogrande"].repositories
    write(tmp_path, repository, "validation", pa.table({"sentence": ["_"], "answer": ["1"]}))
    with pytest.raises(ValueError, match=r"winogrande: allenai/winogrande validation has no column option1, option2"):
        benchmarks.prepare("winogrande", empty, tmp_path / "out")
    rows = [{**winogrande(row), "answer": "" if row == 3 else "1"} for row in range(5)]
    write(tmp_path, repository, "validation", pa.Table.from_pylist(rows))
    with pytest.raises(ValueError, match="task winogrande: validation item 3 has no right answer among its choices"):
        benchmarks.prepare("winogrande", empty, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_identity_is_what_the_files_say_and_not_where_they_lie(mirror: Path, tmp_path: Path) -> None:
    memory = tmp_path / "fingerprints.json"
    shutil.copytree(mirror, tmp_path / "there")
    here, there = (Mirror(source="mirror", path=str(folder)) for folder in (mirror, tmp_path / "there"))
    before = {task: identity(task, here, memory) for task in BENCHMARKS}
    assert before == {task: identity(task, there, memory) for task in BENCHMARKS}
    json.dumps(before)
    (repository,) = BENCHMARKS["arc_easy"].repositories
    for split in ("train", "test"):
        write(tmp_path / "there", repository, split, pa.Table.from_pylist(rows_of("arc_easy", split)[:5]))
        changed = [task for task in BENCHMARKS if identity(task, there, memory) != before[task]]
        assert changed == ([] if split == "train" else ["arc_easy"])
    pinned = Hub(source="hub", revisions={"openai/gsm8k": COMMIT, "other/one": COMMIT})
    moved = Hub(source="hub", revisions={"openai/gsm8k": COMMIT[::-1]})
    assert identity("gsm8k", pinned, memory)["revision"] == COMMIT
    assert "hemorrhage.data.benchmarks.catalogue" not in address.modules_of("hemorrhage.data.benchmarks.harness")
    assert identity("gsm8k", pinned, memory) != identity("gsm8k", moved, memory)


def test_hub_asks_for_the_pinned_commit_and_gives_what_a_mirror_gives(
    mirror: Path, prepared: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def load_dataset(repository: str, config: str, split: str, revision: str) -> datasets.Dataset:
        asked.append((repository, config, split, revision))
        return datasets.Dataset(parquet.read_table(mirror / repository / config / f"{split}-00000-of-00001.parquet"))

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for task, names in {"gsm8k": ("test", "train"), "boolq": ("validation",)}.items():
        repository = BENCHMARKS[task].repositories[-1]
        data = Hub(source="hub", revisions={repository.name: COMMIT})
        benchmarks.prepare(task, data, tmp_path / task)
        assert read_manifest(tmp_path / task)["sha256"] == read_manifest(prepared[task])["sha256"]
        assert asked[-len(names) :] == [(repository.name, repository.config, split, COMMIT) for split in names]


def test_what_the_plan_imports_is_light() -> None:
    program = (
        "import json, sys; from hemorrhage.data.benchmarks.harness import reachable;"
        "reachable('piqa', {'source': 'embedded'});"
        "print(json.dumps(sorted({name.split('.')[0] for name in sys.modules})))"
    )
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    heavy = {"torch", "transformers", "numpy", "pandas", "pyarrow", "datasets", "lm_eval", "pydantic"}
    assert not heavy & set(json.loads(ran.stdout))


SIZES = {
    "invented": dict.fromkeys(("arc_challenge", "openbookqa", "boolq", "piqa"), ROWS),
    "real": {"arc_challenge": 1172, "openbookqa": 500, "boolq": 3270, "piqa": 1838},
}
# 62.2 % of BoolQ's answers are yes (Clark et al. 2019, arXiv 1905.10044).
FLOOR = {"invented": 6 / 8, "real": 0.622}
# Of the real ARC-Challenge two of 1,172 questions have three choices, one has five.
CHANCE = {"invented": (4 / 4 + 2 / 3 + 2 / 5) / 8, "real": 0.25}


@pytest.mark.parametrize("source", SOURCES)
def test_sizes_floor_and_chance_are_those_of_the_data(source: str, mirror: Path, tmp_path: Path) -> None:
    data = Mirror(source="mirror", path=str(MIRROR if source == "real" else mirror))
    assert all(reachable(task, data) is None for task in BENCHMARKS)
    for task, items in SIZES[source].items():
        benchmarks.prepare(task, data, tmp_path / task)
        assert read_manifest(tmp_path / task)["items"] == items
    assert read_manifest(tmp_path / "boolq")["floor"] == pytest.approx(FLOOR[source], abs=5e-4)
    assert read_manifest(tmp_path / "arc_challenge")["chance"] == pytest.approx(CHANCE[source], abs=5e-4)
