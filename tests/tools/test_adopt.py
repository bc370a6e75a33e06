"""Taking over what an earlier revision made: which outputs, how they are compared, what is left when it is refused."""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from ruamel.yaml import YAML

from hemorrhage import cli
from hemorrhage.runtime.artifact import write_manifest
from hemorrhage.runtime.command import NOT_MEASURED, CommandError
from hemorrhage.runtime.service import store
from hemorrhage.study.plan import Plan
from hemorrhage.tools import adopt
from hemorrhage.tools.adopt import DifferentError, Moved, UnanswerableError, difference
from tests.conftest import ROOT
from tests.project import Project, replace

OLD, NEW = "0" * 12, "f" * 12


def output(folder: Path, files: dict[str, Any] | None = None, **fields: Any) -> Path:
    """An output with these files, tables where they are a list of rows, and these fields in its manifest."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in (files or {"weights": "1"}).items():
        if isinstance(content, list):
            pd.DataFrame(content).to_parquet(folder / name)
        else:
            (folder / name).write_text(content if isinstance(content, str) else json.dumps(content))
    write_manifest(folder, **fields)
    return folder


# What is compared.


def test_clocks_and_the_machine_are_not_compared(tmp_path: Path) -> None:
    def made(name: str, clock: float) -> Path:
        files = {
            "weights": "1",
            "cost.json": {"prefill": [clock], "decode": [clock], "peak_bytes": clock, "kv_bytes": 8},
            "generations.parquet": [{"text": "a", "base_nll": float("nan"), "seconds": clock}],
        }
        folder = output(tmp_path / name, files, variant="a")
        manifest = json.loads((folder / "manifest.json").read_text())
        manifest["environment"] = {"threads": str(clock)}
        (folder / "manifest.json").write_text(json.dumps(manifest))
        return folder

    assert difference(made("old", 1.0), made("new", 2.0)) is None


@pytest.mark.parametrize(
    ("files", "fields", "message"),
    [
        ({"weights": "2"}, {}, "weights differs"),
        ({"cost.json": {"prefill": [1], "decode": [1], "peak_bytes": 1, "kv_bytes": 9}}, {}, "cost.json differs"),
        ({"cost.json": {"prefill": [1], "decode": [1], "kv_bytes": 8}}, {}, "cost.json differs"),
        ({"programs.parquet": [{"text": "b", "seconds": 1.0}]}, {}, "programs.parquet differs"),
        ({"programs.parquet": [{"text": "a"}]}, {}, "programs.parquet differs"),
        ({"more": "1"}, {}, "more is new"),
        ({}, {"size_ratio": 0.6}, "size_ratio in manifest.json differs"),
        ({}, {"failure": "ValueError: no"}, "it fails: ValueError: no"),
    ],
)
def test_everything_else_is_compared(
    tmp_path: Path, files: dict[str, Any], fields: dict[str, Any], message: str
) -> None:
    usual = {
        "weights": "1",
        "cost.json": {"prefill": [1], "decode": [1], "peak_bytes": 1, "kv_bytes": 8},
        "programs.parquet": [{"text": "a", "seconds": 1.0}],
    }
    old = output(tmp_path / "old", usual, size_ratio=0.5)
    new = output(tmp_path / "new", {**usual, **files}, **{"size_ratio": 0.5, **fields})
    assert difference(old, new) == message
    assert difference(old, old) is None


def test_a_file_that_is_gone_is_named(tmp_path: Path) -> None:
    old = output(tmp_path / "old", {"weights": "1", "check": "2"})
    assert difference(old, output(tmp_path / "new", {"weights": "1"})) == "check is gone"


# Which outputs, which samples.


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def checkpoint(name: str, sweep: str, settings: dict[str, Any], key: str = OLD, **fields: Any) -> Path:
    files = {"weights": name, "config.json": {"model_type": "llama", **fields}}
    return output(Path("data/checkpoints", name, key), files, sweep=sweep, method="m", settings=settings)


def test_candidates_are_there_at_their_old_address_alone(here: Path) -> None:
    for name in ("a", "b"):
        checkpoint(name, "s", {})
    checkpoint("b", "s", {}, NEW)
    output(Path("data/checkpoints/c", OLD), failure="no")
    keys = [f"checkpoints/{name}" for name in "abcde"]
    before, now = dict.fromkeys(keys[:4], OLD) | {"checkpoints/same": OLD}, dict.fromkeys(keys, NEW)
    moved, failures = adopt.candidates(before, {**now, "checkpoints/same": OLD})
    assert moved == [Moved("checkpoints", "a", OLD, NEW)]
    assert failures == 1


def test_samples_are_made_of_each_sort(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for bits in (8, 4, 3):
        checkpoint(f"rtn-{bits}", "rtn", {"bits": bits, "symmetric": True})
    for sparsity in (0.3, 0.5, 0.7):
        checkpoint(f"wanda-{sparsity}", "wanda", {"sparsity": sparsity})
    checkpoint("rtn-sym", "rtn", {"bits": 4, "symmetric": False})
    checkpoint("awq-4", "awq", {"bits": 4}, hemorrhage={"forms": ["rotated"]})
    names = ["rtn-8", "rtn-4", "rtn-3", "wanda-0.3", "wanda-0.5", "wanda-0.7", "rtn-sym", "awq-4"]
    made: list[str] = []

    def make(chosen: list[Moved]) -> None:
        for each in chosen:
            store.link(each.before, each.after)
        made.extend(f"{each.kind}/{each.name}" for each in chosen)

    monkeypatch.setattr(adopt, "_make", make)
    adopt._take_over("compress", [Moved("checkpoints", name, OLD, NEW) for name in names], 1)
    # A width may be a path of its own through the code; a share is not.
    each = ("rtn-8", "rtn-4", "rtn-3", "wanda-0.5", "rtn-sym", "awq-4")
    assert made == [f"checkpoints/{name}" for name in each]
    made.clear()
    evaluated = ("base", *(name for name in names if not name.startswith("wanda")))
    for name in evaluated:
        output(Path("data/evaluations", name, OLD), variant=name)
    adopt._take_over("evaluate", [Moved("evaluations", name, OLD, NEW) for name in evaluated], 2)
    assert made == [f"evaluations/{name}" for name in ("base", "rtn-4", "rtn-sym", "awq-4")]
    made.clear()
    served = [f"{engine}.{name}" for engine in ("transformers", "llama_cpp") for name in ("rtn-4", "rtn-3", "awq-4")]
    for name in served:
        output(Path("data/served", name, OLD), variant=name.partition(".")[2])
    adopt._take_over("evaluate", [Moved("served", name, OLD, NEW) for name in served], 1)
    assert made == [
        f"served/{engine}.{name}" for engine in ("transformers", "llama_cpp") for name in ("rtn-3", "awq-4")
    ]


# The whole, with a snakemake that is played.


@pytest.fixture
def study(here: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """A study of two checkpoints and their evaluations that a revision made; what its code computes can be said."""
    keys = [f"{kind}/{name}" for kind in ("checkpoints", "evaluations") for name in ("a", "b")]

    class Played:
        def addresses(self) -> dict[str, str]:
            return dict.fromkeys(keys, NEW)

    monkeypatch.setattr("hemorrhage.tools.adopt.Plan.read", Played)
    monkeypatch.setattr(adopt, "SOURCE", here / "src/hemorrhage")
    monkeypatch.setattr(adopt, "addresses_at", lambda revision: dict.fromkeys(keys, OLD))
    for name in ("a", "b"):
        checkpoint(name, "s", {})
        output(Path("data/evaluations", name, OLD), {"tokens": name}, variant=name)
        usage = Path("logs/benchmarks/evaluations", f"{name}-{OLD}.tsv")
        usage.parent.mkdir(parents=True, exist_ok=True)
        usage.write_text("cpu_time\n1\n")

    def run(tokens: str = "b", killed: bool = False) -> None:
        def make(chosen: list[Moved]) -> None:
            for each in chosen:
                if killed and each.kind == "evaluations":
                    os._exit(9)
                if each.kind == "checkpoints":
                    checkpoint(each.name, "s", {}, NEW)
                elif tokens:
                    output(each.after, {"tokens": tokens}, variant=each.name)
                else:
                    raise DifferentError(f"{each.kind}/{each.name} can't be made")

        monkeypatch.setattr(adopt, "_make", make)

    return run


def files() -> dict[str, str]:
    """Every file of data/ but manifests, and what is in it."""
    return {str(file): file.read_text() for file in sorted(Path("data").rglob("*")) if file.is_file()}


def test_equal_samples_take_all_over(study: Callable[..., Any], capsys: pytest.CaptureFixture[str]) -> None:
    before = files()
    study()
    assert adopt.main(["HEAD"]) == 0
    assert capsys.readouterr().out == (
        "adopted 4 outputs: 2 were made anew and are equal, 2 were taken over on that evidence;"
        " the next run makes the report again\n"
    )
    assert files() == {name.replace(OLD, NEW): content for name, content in before.items()}
    assert {file.name for file in Path("logs/benchmarks/evaluations").iterdir()} == {
        f"{name}-{NEW}.tsv" for name in "ab"
    }
    assert not adopt.JOURNAL.exists()
    assert adopt.main(["HEAD"]) == 0
    assert "adopted 0 outputs" in capsys.readouterr().out


def test_nothing_on_disk_is_not_taken_for_an_adoption(study: Callable[..., Any]) -> None:
    study()
    shutil.rmtree("data")
    with pytest.raises(CommandError, match="data/ holds no output of HEAD") as raised:
        adopt.main(["HEAD"])
    assert raised.value.status == NOT_MEASURED


def test_old_addresses_can_be_kept(study: Callable[..., Any]) -> None:
    before = files()
    study()
    assert adopt.main(["HEAD", "--keep"]) == 0
    assert files() == before | {name.replace(OLD, NEW): content for name, content in before.items()}


@pytest.mark.parametrize(
    ("tokens", "message"), [("c", "evaluations/b is not what it was: tokens differs"), ("", "can't be made")]
)
def test_one_difference_refuses_everything(
    study: Callable[..., Any], capsys: pytest.CaptureFixture[str], tokens: str, message: str
) -> None:
    before = files()
    study(tokens)
    assert cli.main(["adopt", "HEAD"]) == 1
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("hemorrhage adopt: refused, nothing was taken over: ")
    assert message in line
    assert files() == before
    assert not list(Path("data").glob(f"*/*/{NEW}*"))
    assert not adopt.JOURNAL.exists()


def test_a_killed_adoption_is_taken_back_by_the_next_start(study: Callable[..., Any]) -> None:
    before = files()
    study(killed=True)
    child = os.fork()
    if child == 0:
        adopt.main(["HEAD"])
        os._exit(0)
    os.waitpid(child, 0)
    assert Path("data/checkpoints/a", NEW).is_dir()
    adopt.take_back()
    assert files() == before
    assert not adopt.JOURNAL.exists()


def test_one_that_was_killed_while_it_removed_is_finished(
    study: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = files()
    study()
    with monkeypatch.context() as patched:
        patched.setattr(adopt, "_finish", lambda: None)
        adopt.main(["HEAD"])
    assert files().keys() > before.keys()
    adopt.take_back()
    assert files() == {name.replace(OLD, NEW): content for name, content in before.items()}


@pytest.mark.parametrize("lock", [adopt.LOCK, adopt.RUN])
def test_nothing_is_touched_while_another_is_at_work(
    study: Callable[..., Any], capsys: pytest.CaptureFixture[str], lock: Path
) -> None:
    study()
    lock.parent.mkdir()
    adopt.JOURNAL.write_text(json.dumps({"absent": [f"data/checkpoints/a/{OLD}"]}))
    with lock.open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        assert cli.main(["adopt", "HEAD"]) == 64
        adopt.take_back()
    assert capsys.readouterr().err.startswith("hemorrhage adopt: a run is at work in this folder")
    assert Path("data/checkpoints/a", OLD).is_dir()


def test_it_is_for_the_folder_of_its_code(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["adopt", "HEAD"]) == 64
    line = capsys.readouterr().err
    assert line.startswith("hemorrhage adopt: ")
    assert "is not this folder's code" in line


# What a revision says.


@pytest.mark.parametrize("words", [[], ["HEAD", "--samples", "0"], ["HEAD", "--all"]])
def test_a_wrong_command_line_ends_with_64(words: list[str]) -> None:
    with pytest.raises(SystemExit) as end:
        adopt.main(words)
    assert end.value.code == 64


def repository(folder: Path, plan: str) -> None:
    """A repository whose plan is this program."""
    for name in ("__init__", "study/__init__", "study/plan"):
        file = folder / "src/hemorrhage" / f"{name}.py"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(plan if name == "study/plan" else "")
    user = ("-c", "user.name=test", "-c", "user.email=test@example.org")
    for command in (("init", "-q"), ("add", "-A"), (*user, "commit", "-qm", "one")):
        subprocess.run(["git", *command], check=True, cwd=folder)


def test_a_revisions_own_code_says_where_outputs_lie(here: Path) -> None:
    repository(here, "import sys\nprint('{\"base/base\": \"' + sys.argv[1] + '\"}')\n")
    assert adopt.addresses_at("HEAD") == {"base/base": "addresses"}


ANOTHER_COMMAND = """
import argparse
parser = argparse.ArgumentParser()
parser.add_subparsers(required=True).add_parser("show")
parser.parse_args()
"""


@pytest.mark.parametrize(
    ("plan", "revision", "message"),
    [
        ("", "no", "no: no such revision"),
        (
            "import sys\nsys.exit('params.yaml: model is unknown')\n",
            "HEAD",
            "can't plan this params.yaml: params.yaml: model",
        ),
        (ANOTHER_COMMAND, "HEAD", "HEAD: too old"),
        ("import hemorrhage.address\n", "HEAD", "HEAD: too old"),
    ],
)
def test_a_revision_that_says_nothing_is_one_line(here: Path, plan: str, revision: str, message: str) -> None:
    repository(here, plan)
    with pytest.raises(UnanswerableError, match=message) as error:
        adopt.addresses_at(revision)
    assert "\n" not in str(error.value)


def test_the_plan_lists_addresses_as_json() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "hemorrhage.study", "addresses"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert json.loads(done.stdout) == Plan.read(ROOT / "params.yaml").addresses()


# With the real Snakemake.


@pytest.mark.end_to_end
def test_an_edit_that_changes_no_result_is_taken_over_and_one_that_does_is_refused(project: Project) -> None:
    params = project.root / "params.yaml"
    yaml = YAML()
    content = yaml.load(params)
    content["compress"] = {"rtn": content["compress"]["rtn"]}
    content["calibrate"] |= {"samples": 2}
    content["evaluate"] |= {"windows": 3, "tasks": []}
    content["evaluate"]["diagnostics"] |= {"windows": 1}
    content["decode"] |= {"variants": [], "closed_ended": []}
    content["mitigate"]["variants"] = []
    yaml.dump(content, params)
    project.run("snakemake")
    project.commit("computed")
    metrics = project.metrics()

    def data() -> dict[str, bytes]:
        folders = (project.root / "data").glob("*/*/*")
        return {str(file): file.read_bytes() for each in folders for file in each.rglob("*") if file.is_file()}

    def addresses() -> dict[str, str]:
        done = project.run("env", "PYTHONPATH=src", "python", "-m", "hemorrhage.study", "addresses")
        by_output: dict[str, str] = json.loads(done.stdout)
        return by_output

    before, places = data(), addresses()
    blockwise = project.root / "src/hemorrhage/models/blockwise.py"
    source = blockwise.read_text()
    start = source.index("def forward_batches(")
    blockwise.write_text(source[:start] + source[start:].replace("arguments", "given"))
    changed = {name for name, key in addresses().items() if places[name] != key}
    assert {"references/base", "checkpoints/rtn-4", "evaluations/base"} <= changed
    done = project.run("env", "PYTHONPATH=src", "python", "-m", "hemorrhage.cli", "adopt", "HEAD")
    anew = re.search(rf"adopted {len(changed)} outputs: (\d+) were made anew", done.stdout)
    assert anew is not None
    assert 1 <= int(anew[1]) <= len(changed)
    assert sorted(data().values()) == sorted(before.values())
    assert project.jobs("snakemake") == {"analyze": 1, "analyze.report": 1}
    assert project.metrics() == metrics

    project.commit("another name")
    before, grid = data(), project.root / "src/hemorrhage/compress/solvers/grid.py"
    replace(grid, "scale = (span / steps).to(dtype)", "scale = (span / steps * 1.01).to(dtype)")
    done = project.run("env", "PYTHONPATH=src", "python", "-m", "hemorrhage.cli", "adopt", "HEAD", check=False)
    assert done.returncode == 1
    assert (
        "hemorrhage adopt: refused, nothing was taken over: "
        "checkpoints/rtn-8 is not what it was: check.safetensors differs" in done.stderr
    )
    assert data() == before

    left = project.root / "data/checkpoints/rtn-4/ffffffffffff"
    left.mkdir()
    journal = project.root / ".snakemake/adopt.json"
    journal.write_text(json.dumps({"absent": [str(left.relative_to(project.root))]}))
    project.run("snakemake", "--dry-run", "--quiet")
    assert not left.exists(), "what a killed adoption left is not taken for an output"
    assert data() == before
