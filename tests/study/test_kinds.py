"""The kinds of output: the rows fit together, dvc.yaml says the same, and a new row is all that a new kind takes."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from hemorrhage.study import kinds
from hemorrhage.study import params as config
from hemorrhage.study.design import Design
from hemorrhage.study.kinds import KINDS, STAGES
from tests.conftest import ROOT
from tests.project import copy, replace
from tests.study.test_params import DEFAULT, changed, own

CODE = ["src/hemorrhage", "rules", "Snakefile"]


def designs() -> list[Design]:
    sibling = {"is_aligned": False, "model": {"source": "wheel", "name": "smollm2-135m-instruct"}}
    contents = (
        DEFAULT,
        changed("decode/sibling_model", sibling),
        changed("compress/gblm", {"method": "gblm", "sparsity": [0.5]}),
        changed("evaluate/engines", ["transformers", {"openai": "http://127.0.0.1:1", "model": "m"}]),
    )
    return [Design(config.Params.model_validate(content)) for content in contents]


@pytest.mark.parametrize("design", designs(), ids=["default", "sibling_model", "gradients", "engines"])
def test_inputs_are_outputs_of_the_kinds_they_name_and_of_rows_above(design: Design) -> None:
    earlier: set[str] = set()
    for name, kind in KINDS.items():
        for option, given in kind.inputs.items():
            assert set(given.kinds) <= earlier | {name}, f"{name}: --{option}"
            for output in kind.names(design):
                for of, needed in given.outputs(design, output):
                    assert of in given.kinds, f"{name}: --{option}"
                    assert needed in KINDS[of].names(design), f"{name}: --{option} {needed}"
        earlier.add(name)


def test_the_address_of_a_users_file_is_its_content_and_how_it_is_read(tmp_path: Path) -> None:
    entry = own(tmp_path, "support")

    def text(name: str = "support", **fields: str) -> object:
        content = changed("evaluate/corpora", ["prose", {**entry, **fields}])
        return KINDS["texts"].settings(Design(config.Params.model_validate(content)), name)

    first, prose = text(), text("prose")
    assert str(tmp_path) not in json.dumps(first)
    assert text(score="assistant") != first
    moved = tmp_path / "moved.jsonl"
    moved.write_bytes(Path(entry["file"]).read_bytes())
    assert text(file=str(moved)) == first
    moved.write_text('{"text": "others"}\n')
    assert text(file=str(moved)) != first
    assert text("prose", file=str(moved)) == prose
    design = Design(config.Params.model_validate(changed("evaluate/corpora", ["prose", entry])))
    assert kinds.tokens_needed(design, "support") == {"calibration": 0, "evaluation": 0, "windows": 16, "window": 64}
    assert KINDS["texts"].options(design, "support")["data"] == {
        "source": "file",
        "path": entry["file"],
        "split": "evaluation",
        "score": "all",
    }


def test_rules_and_stages_are_named_once() -> None:
    rules = [rule for kind in KINDS.values() for rule in (kind.rule, kind.rule_on_gpu) if rule]
    assert len({*rules, *STAGES.values(), "rows", "page"}) == len(rules) + len(STAGES) + 2
    assert {kind.stage for kind in KINDS.values()} == set(STAGES)
    profile = YAML(typ="safe").load((ROOT / "profiles/slurm/config.yaml").read_text())
    assert {group.partition("=")[0] for group in profile["groups"]} <= set(rules)


def test_dvc_yaml_says_what_the_rows_say() -> None:
    stages = YAML(typ="safe").load((ROOT / "dvc.yaml").read_text())["stages"]
    assert list(stages) == [*STAGES, "analyze"]
    for stage, target in STAGES.items():
        mine = [kind.name for kind in kinds.stage_kinds(stage)]
        read = {of for kind in kinds.stage_kinds(stage) for given in kind.inputs.values() for of in given.kinds}
        run, gc = stages[stage]["cmd"]
        assert run.split()[-1] == target
        assert gc.split("gc ")[1].split() == mine
        assert [name for out in stages[stage]["outs"] for name in out] == [f"data/{name}" for name in mine]
        assert all(options == {"persist": True} for out in stages[stage]["outs"] for options in out.values())
        assert sorted(stages[stage]["deps"]) == sorted([*CODE, *(f"data/{name}" for name in read - set(mine))])
    read = {kind.name for kind in kinds.analyzed_kinds()}
    assert sorted(stages["analyze"]["deps"]) == sorted([*CODE, *(f"data/{name}" for name in read)])
    files = {name for out in stages["analyze"]["outs"] for name in out}
    assert files == {f"reports/{name}" for name in (*kinds.ROWS_FILES, *kinds.PAGE_FILES, "provenance.json")}


ROW = """
        Kind(
            "heads",
            rule="heads",
            stage="evaluate",
            step="hemorrhage.evaluate.heads",
            names=_models,
            inputs={"checkpoint": MODEL, "base": BASE_MODEL},
            settings=lambda design, name: {"windows": design.params.evaluate.windows},
            on_gpu=_always,
            arithmetic=lambda load, name: load.shape.forward(load.windows()),
            of_models=True,
            is_analyzed=True,
        ),
"""

STEP = '''"""Step ``heads``."""

from hemorrhage.runtime import step


def main() -> None:
    step.start()
'''


SEPARATOR = "=====\n"

COMMANDS = f"""
import sys
sys.stderr = sys.stdout
from hemorrhage import cli
for words in sys.argv[1:]:
    print("exit status", cli.main(words.split()), end={SEPARATOR!r}, flush=True)
"""
"""The commands of its arguments, one after the other: they start once."""


def test_a_new_kind_is_a_row_and_its_step(tmp_path: Path, tiny: Path) -> None:
    """Planned, ruled, costed, collected, invalidated, and given to the analysis: no other file is touched."""
    copy(tmp_path, tiny)
    run(tmp_path, sys.executable, "-m", "hemorrhage.cli", "params", "quick")
    row = '        Kind(\n            "decodes",\n'
    replace(tmp_path / "src/hemorrhage/study/kinds.py", row, ROW.removeprefix("\n") + row)
    (tmp_path / "src/hemorrhage/evaluate/heads.py").write_text(STEP)

    ran = run(tmp_path, "snakemake", "--dry-run", "--printshellcmds")
    assert re.search(r"^heads +9$", ran, re.M), "a rule makes one of each model"
    (command,) = (line for line in ran.splitlines() if "hemorrhage.analyze reports" in line)
    assert "--outputs heads data/heads/base/" in command
    (command,) = (line for line in ran.splitlines() if "hemorrhage.evaluate.heads data/heads/rtn-4/" in line)
    assert "step --gpu=0 logs/benchmarks/heads/rtn-4-" in command
    assert "--checkpoint data/checkpoints/rtn-4/" in command
    assert "--spec '{\"windows\": 12}' > logs/heads/rtn-4-" in command
    assert re.search(r"^heads +9$", run(tmp_path, "snakemake", "--dry-run", "--", "evaluated"), re.M)

    made = command.split("hemorrhage.evaluate.heads ")[1].split()[0]
    for folder in (made, "data/heads/gone-2/aaaaaaaaaaaa"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "manifest.json").write_text(json.dumps({"failure": "no luck"}))
    asked = (["costs"], ["plan"], ["gc", "heads"], ["failed"], ["invalidate", "rtn-4"])
    said = run(tmp_path, sys.executable, "-c", COMMANDS, *map(" ".join, asked)).split(SEPARATOR)
    costs, planned, collected, failed, invalidated = said[:-1]
    assert re.search(r"^heads +8 ", costs, re.M)
    assert re.search(r"^heads +1/9 done", planned, re.M)
    assert "removed data/heads/gone-2/aaaaaaaaaaaa" in collected
    assert "rtn-4 failed: no luck" in failed
    assert "exit status 1" in failed
    assert f"removed {made}" in invalidated


def run(project: Path, *command: str, status: int = 0) -> str:
    """Run a command in the project; what it said."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    environment = {**os.environ, "PATH": path, "PYTHONPATH": str(project / "src"), "COLUMNS": "200"}
    done = subprocess.run(command, cwd=project, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == status, f"{' '.join(command)}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done.stdout + done.stderr
