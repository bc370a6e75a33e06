"""``hemorrhage probe``: each row of its table is what the step then does, on models of families in bfloat16."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from hemorrhage import cli
from hemorrhage.calibrate.__main__ import calibrate
from hemorrhage.compress.__main__ import compress
from hemorrhage.compress.catalogue import method_of
from hemorrhage.decode.generation import Prompts
from hemorrhage.decode.strategies import assisted
from hemorrhage.models import __main__ as base_step
from hemorrhage.models.checkpoint import load
from hemorrhage.models.probe import Finding
from hemorrhage.models.refused import RefusedError
from hemorrhage.runtime.artifact import failure
from hemorrhage.runtime.command import CANNOT_TELL, NO, NOT_MEASURED, USAGE, YES
from hemorrhage.runtime.step import InputError
from hemorrhage.tools import probe
from tests.calibration import text_folder
from tests.families import FAMILIES, build
from tests.family_matrix.page import UNTRIED, committed
from tests.family_matrix.study import VARIANTS, Study

METHODS: dict[str, dict[str, Any]] = {
    "gptq": {"bits": 4, "group_size": 16},
    "rtn": {"bits": 4, "group_size": 32},
    "awq": {"bits": 8, "group_size": "channel"},
    "activations": {"smooth": 0.5},
    "kv_cache": {"bits": 8, "group_size": 4},
    "depth": {"removed": 0.25, "order": "deepest"},
    "duplication": {"added": 0.25},
    "llama_pro": {"added": 0.25},
    "rotation": {"bits": 8, "group_size": "channel", "transform": "quarot"},
    "slicegpt": {"removed": 0.2},
    "width": {"removed": 0.25, "importance": "magnitude", "protect_first": 1, "protect_last": 1},
    "gguf_types": {"type": "q8_0"},
    "routing": {"alteration": "noise", "amount": 0.1},
    "upcycling": {"experts": 2, "top_k": 1},
}

SAMPLE = {
    "qwen2": ("gptq", "width", "slicegpt", "upcycling"),
    "gpt2": ("rtn", "awq", "llama_pro", "rotation"),
    "gemma2": ("awq", "activations", "duplication"),
    "mixtral": ("activations", "routing", "llama_pro"),
    "jamba": ("duplication", "depth", "kv_cache"),
    "mamba": ("gptq", "kv_cache", "depth"),
    "bloom": ("kv_cache", "activations"),
    "llava": ("awq", "gguf_types", "duplication"),
}
"""Family -> methods that are run: some that go with it, and some of those that don't."""


class Bases:
    """A family's base and its calibration, made when they are asked for."""

    def __init__(self, root: Path) -> None:
        self.root = root

    @functools.cache  # noqa: B019 - one object for the module
    def base(self, family: str) -> Path:
        folder = build(self.root / family / "original", family)
        base_step.prepare({"source": "path", "path": str(folder)}, self.root / family / "base")
        return self.root / family / "base"

    @functools.cache  # noqa: B019
    def calibration(self, family: str) -> Path:
        out, spec = self.root / family / "calibration", {"samples": 4, "length": 24, "seed": 3, "max_hessian_gb": 1}
        calibrate(out, self.base(family), [text_folder(self.root / family / "text", 400)], spec)
        return out


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> Bases:
    return Bases(tmp_path_factory.mktemp("probe"))


@pytest.mark.parametrize("family", SAMPLE)
def test_a_method_does_what_its_row_says(bases: Bases, family: str, tmp_path: Path) -> None:
    methods = {name: method_of(name).settings.model_validate(METHODS[name]) for name in SAMPLE[family]}
    wanted = probe.Wanted(methods, {}, mitigates=False)
    rows = {row.part: row for row in probe.probe(bases.base(family), wanted) if row.step == "compress"}
    assert list(rows) == list(methods)
    for name, row in rows.items():
        spec = {"sweep": "s", "method": name, "settings": METHODS[name], "seed": 0, "on": None}
        out = tmp_path / name
        compress(out, name, bases.base(family), None, bases.calibration(family), [], spec)
        reason = failure(out)
        assert reason == (None if row.answer == "yes" else f"{RefusedError.__name__}: {row.reason}"), (name, row)


def test_parts_that_are_left_out_are_rows_with_the_reasons_of_the_steps(bases: Bases, tmp_path: Path) -> None:
    strategies = {"greedy": {"strategy": "greedy"}, "drafted": {"strategy": "assisted"}}
    rows = {row.part: row for row in probe.probe(bases.base("gpt2"), probe.Wanted({}, strategies, mitigates=False))}
    (odd,) = [
        row
        for row in probe.probe(bases.base("opt-projected"), probe.Wanted({}, {}, mitigates=False))
        if row.part == "self_repair"
    ]
    assert Study("opt-projected", tmp_path).gaps == {"self_repair": odd.reason}
    assert (rows["cost"].answer, rows["greedy"].answer, rows["drafted"].answer) == ("yes", "yes", "no")
    model = load(bases.base("gpt2"))
    with pytest.raises(RefusedError) as refused:
        assisted.parameters(model, assisted.Settings.model_validate({}), Prompts(torch.ones(1, 4, dtype=torch.long), 3))
    assert rows["drafted"].reason == str(refused.value)


def test_a_family_that_shares_weights_goes_with_no_method_and_still_decodes(bases: Bases) -> None:
    wanted = probe.Wanted({"rtn": method_of("rtn").examples[0]}, {"greedy": {"strategy": "greedy"}}, mitigates=False)
    rows = {(row.step, row.part): row for row in probe.probe(bases.base("zamba2"), wanted)}
    for place in (("base", "linear layers"), ("calibrate", "inputs of linear layers")):
        assert rows[place].answer == "no"
        assert "share weights" in rows[place].reason
    assert rows["compress", "rtn"].answer == "no"
    assert rows["decode", "greedy"].answer == "yes"
    with pytest.raises(InputError, match="share weights") as refused:
        bases.calibration("zamba2")
    assert str(refused.value) == rows["calibrate", "inputs of linear layers"].reason


def test_people_read_a_table_and_scripts_the_same_as_json(bases: Bases, capsys: pytest.CaptureFixture[str]) -> None:
    folder = str(bases.base("llama").parent / "original")
    assert cli.main(["probe", folder]) == NO
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["base", "decoder", "blocks", "yes"]
    assert lines[-1].endswith("depend on the calibration")
    assert cli.main(["probe", folder, "--json"]) == NO
    content = json.loads(capsys.readouterr().out)
    assert not content["goes"]
    assert len(content["findings"]) == len(lines) - 1
    reasons = {row["part"]: row["reason"] for row in content["findings"] if row["answer"] == "no"}
    assert reasons["routing: top 1"].startswith("routing needs a model with experts")
    assert {"greedy", "assisted", "beam", "cost", "diagnostics", "corrections", "gradients", "lm-eval", "packed"} <= {
        row["part"] for row in content["findings"] if row["answer"] == "yes"
    }


def test_a_variant_on_another_is_tried_on_what_its_parent_made(bases: Bases, tmp_path: Path) -> None:
    """Recovery goes with a Llama, and not with one whose layers are products of two."""
    base = bases.base("llama")
    spec = {"sweep": "s", "method": "svd", "settings": {"removed": 0.3}, "seed": 0, "on": None}
    compress(tmp_path / "svd", "svd", base, None, bases.calibration("llama"), [], spec)
    methods = {
        "alone": method_of("recovery").settings.model_validate({"steps": 1}),
        "on it": method_of("recovery").settings.model_validate({"steps": 1}),
    }

    def row(parent: probe.Parent | None) -> Finding:
        wanted = probe.Wanted(methods, {}, {"on it": parent} if parent else {}, mitigates=False, exports=False)
        (found,) = (each for each in probe._compressed(base, load(base, "stored"), wanted) if each.part == "on it")
        return found

    assert row(None).answer == "yes"
    assert row(probe.Parent("v", "svd", None)).answer == "depends"
    made = row(probe.Parent("v", "svd", tmp_path / "svd"))
    assert made.answer == "no"
    child = {"sweep": "s", "method": "recovery", "settings": {"steps": 1}, "seed": 0, "on": "v"}
    compress(tmp_path / "child", "child", base, tmp_path / "svd", bases.calibration("llama"), [], child)
    assert failure(tmp_path / "child") == f"{RefusedError.__name__}: {made.reason}"


def test_a_variant_on_one_that_does_not_go_does_not_go(bases: Bases) -> None:
    methods = {
        "parent": method_of("awq").settings.model_validate(METHODS["awq"]),
        "child": method_of("recovery").settings.model_validate({"steps": 1}),
    }
    parents = {"child": probe.Parent("parent", "awq", None)}
    base = bases.base("gemma2")
    rows = list(probe._compressed(base, load(base, "stored"), probe.Wanted(methods, {}, parents)))
    assert [each.answer for each in rows] == ["no", "no"]
    assert rows[1].reason == f"parent, which it alters further, does not go: {rows[0].reason}"


def test_a_folder_that_is_no_base_is_one_row(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["probe", str(tmp_path)]) == NO
    first, last = capsys.readouterr().out.splitlines()
    assert first == f"base  model  no  model.path: {tmp_path} holds no config.json; a Hugging Face folder is needed"
    assert last.startswith("0 of 1 go with the model, 1 do not")


def test_what_is_no_folder_is_wrong_usage(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["probe", str(tmp_path / "nope")]) == USAGE
    assert capsys.readouterr().err == f"hemorrhage probe: MODEL_FOLDER: {tmp_path / 'nope'} is not a folder\n"


def test_a_model_that_cannot_be_fetched_is_not_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def unreachable(spec: dict[str, Any], out: Path) -> None:
        raise ConnectionError("no route")

    monkeypatch.setattr(base_step, "prepare", unreachable)
    assert cli.main(["probe", str(tmp_path)]) == NOT_MEASURED
    assert capsys.readouterr().err == "hemorrhage probe: the model can't be fetched: no route\n"


def test_the_exit_code_is_the_answer() -> None:
    yes, no, depends = Finding("s", "p"), Finding("s", "p", "no", "r"), Finding("s", "p", "depends", "r")
    assert [probe.status(rows) for rows in ([yes], [yes, no, depends], [yes, depends])] == [YES, NO, CANNOT_TELL]


@pytest.mark.families
@pytest.mark.parametrize("family", FAMILIES)
def test_the_table_of_families_has_what_the_probe_says(family: str, tmp_path: Path) -> None:
    marks = committed()[family]
    methods = {
        column: method_of(made.method).settings.model_validate(made.settings)
        for column, made in VARIANTS.items()
        if made.on is None
    }
    base_step.prepare({"source": "path", "path": str(build(tmp_path / "original", family))}, tmp_path / "base")
    rows = probe.probe(tmp_path / "base", probe.Wanted(methods, {"greedy": {"strategy": "greedy"}}, mitigates=False))
    for row in rows:
        if row.step == "compress" and row.answer != "depends" and marks[row.part] != UNTRIED:
            assert row.answer == marks[row.part], row
    assert {row.part: row.answer for row in rows}["greedy"] == marks["decode"]
