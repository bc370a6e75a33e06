"""``hemorrhage params``: a profile is written, or nothing is."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from hemorrhage import cli
from hemorrhage.runtime.command import USAGE, YES
from hemorrhage.study import params as config
from hemorrhage.tools.params import merge, model_name
from tests.chats import write_jsonl
from tests.conftest import ROOT


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the default params.yaml and two profiles."""
    shutil.copyfile(ROOT / "params.yaml", tmp_path / "params.yaml")
    (tmp_path / "params/studies").mkdir(parents=True)
    (tmp_path / "params/few.yaml").write_text("compress: {rtn: {bits: [4]}}\ndecode: {variants: [gptq-3]}\n")
    (tmp_path / "params/studies/wrong.yaml").write_text("compress: {rtn: {bits: [40]}}\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("name", ["few", "params/few.yaml"])
def test_a_profile_is_written_and_comments_stay(folder: Path, name: str) -> None:
    before = (folder / "params.yaml").read_text()
    assert cli.main(["params", name]) == YES
    after = (folder / "params.yaml").read_text()
    assert YAML(typ="safe").load(after)["compress"]["rtn"]["bits"] == [4]
    assert before.splitlines()[0] == after.splitlines()[0]
    assert "# raise it to run everything again" in after


def test_what_cannot_be_run_changes_nothing(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = (folder / "params.yaml").read_bytes()
    (folder / "list.yaml").write_text("[1, 2]\n")
    (folder / "broken.yaml").write_text("a: [1\n")
    for name in ("studies/wrong", "list.yaml", "broken.yaml", "nowhere"):
        assert cli.main(["params", name]) == USAGE
    wrong, listed, broken, nowhere = capsys.readouterr().err.splitlines()
    assert wrong.startswith("hemorrhage params: params.yaml with params/studies/wrong.yaml: compress.rtn")
    assert "list.yaml is not a mapping" in listed
    assert "not YAML" in broken
    assert nowhere.endswith("nowhere is neither a file nor a profile; profiles are few, studies/wrong")
    assert (folder / "params.yaml").read_bytes() == before
    assert not (folder / "params.yaml.part").exists()


def test_files_are_read_in_utf_8_with_or_without_a_byte_order_mark(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = (folder / "params.yaml").read_text(encoding="utf-8")
    (folder / "params.yaml").write_text(text, encoding="utf-8-sig")
    (folder / "marked.yaml").write_text("compress: {rtn: {bits: [4]}}\n", encoding="utf-8-sig")
    assert cli.main(["params", "marked.yaml"]) == YES
    (folder / "wide.yaml").write_bytes("compress: {rtn: {bits: [4]}}\n".encode("utf-16"))
    (folder / "latin.yaml").write_bytes(b"compress: {rtn: {bits: [4]}} # caf\xe9\n")
    assert cli.main(["params", "wide.yaml"]) == cli.main(["params", "latin.yaml"]) == USAGE
    (folder / "params.yaml").write_text(text, encoding="utf-16")
    assert cli.main(["params", "few"]) == USAGE
    (folder / "params.yaml").unlink()
    assert cli.main(["params", "few"]) == USAGE
    assert capsys.readouterr().err.splitlines() == [
        "hemorrhage params: wide.yaml: it is in UTF-16; save it as UTF-8",
        "hemorrhage params: latin.yaml: line 1 is not in UTF-8; save it as UTF-8",
        "hemorrhage params: params.yaml: it is in UTF-16; save it as UTF-8",
        "hemorrhage params: params.yaml: there is no such file",
    ]


def test_an_old_key_of_a_profile_is_refused_with_its_new_name(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "old.yaml").write_text("evaluate: {inside: {windows: 0}}\n")
    assert cli.main(["params", "old.yaml"]) == USAGE
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith("params.yaml with old.yaml: evaluate.inside is now evaluate.diagnostics")


def test_another_source_drops_what_the_old_one_needed() -> None:
    target = {"data": {"source": "mirror", "path": "a", "items": 5, "seed": 0}, "gone": 1}
    merge(target, {"data": {"source": "embedded", "seed": 1}, "gone": None})
    assert target == {"data": {"source": "embedded", "items": 5, "seed": 1}}


def test_a_pattern_keeps_its_quotes(folder: Path) -> None:
    """A colon between digits means a base of 60 to readers of YAML 1.1: without its quotes "2:4" would be 124."""
    (folder / "pattern.yaml").write_text('compress: {wanda: {sparsity: [0.5, "2:4"]}}\n')
    assert cli.main(["params", "pattern.yaml"]) == YES
    text = (folder / "params.yaml").read_text()
    read = config.read(folder / "params.yaml")
    assert text.count('"2:4"') == 2
    assert [read.compress[name]["sparsity"][-1] for name in ("wanda", "sparsegpt")] == ["2:4", "2:4"]


PROFILES = sorted(
    file.relative_to(ROOT / "params").with_suffix("").as_posix() for file in (ROOT / "params").rglob("*.yaml")
)


@pytest.fixture
def clone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What a fresh clone has that profiles name, in a folder that has nothing beside it."""
    root = tmp_path / "clone"
    root.mkdir()
    shutil.copyfile(ROOT / "params.yaml", root / "params.yaml")
    for name in ("params", "tests/tiny"):
        shutil.copytree(ROOT / name, root / name)
    monkeypatch.chdir(root)
    return root


def written(name: str) -> list[str]:
    """The profile, behind the study that it is a small one of."""
    return [name] if "/quick/" not in name else [name.replace("/quick/", "/"), name]


@pytest.mark.parametrize("name", PROFILES)
def test_in_a_fresh_clone_a_profile_is_written_or_says_what_it_needs(
    clone: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (clone / "params.yaml").read_bytes()
    status = cli.main(["params", *written(name)])
    if status == YES:
        return
    assert status == USAGE
    (line,) = capsys.readouterr().err.splitlines()
    if name == "ship":
        assert line.endswith("; --fit makes smaller or leaves out what the model can't take")
    else:
        assert "is not a folder, and the run reads" in line
        assert "--data DIR" in line
        assert "data: {source: hub, revisions: {" in line
    assert (clone / "params.yaml").read_bytes() == before


@pytest.mark.end_to_end
@pytest.mark.parametrize("name", PROFILES)
def test_what_is_written_can_be_planned(clone: Path, name: str) -> None:
    if cli.main(["params", *written(name), "--fit"]) == YES:
        assert cli.main(["plan"]) == YES


def test_quick_and_ship_need_nothing_but_the_clone(clone: Path) -> None:
    assert cli.main(["params", "quick"]) == YES
    assert cli.main(["params", "ship", "--model", "tests/tiny/plain"]) == YES


def test_what_a_model_cannot_take_is_made_smaller_or_left_out(clone: Path, capsys: pytest.CaptureFixture[str]) -> None:
    texts = write_jsonl(clone / "texts.jsonl", [{"text": "Some words. " * 40}] * 40)
    tasks = write_jsonl(clone / "tasks.jsonl", [{"prompt": "A", "choices": ["b", "c"], "answer": 0}])
    given = ["--model", "tests/tiny/plain", "--texts", str(texts), "--tasks", str(tasks)]
    assert cli.main(["params", "ship", *given]) == YES
    lines = capsys.readouterr().out.splitlines()
    read = config.read(clone / "params.yaml")
    # 64 features and 172 channels: no group of 32 divides 172, nor the 16 of NVFP4.
    assert read.compress["gptq"]["group_size"] == "channel"
    assert "compress.gptq.group_size: channel instead of 128: group_size 128 does not divide" in " ".join(lines)
    assert any(line.startswith("compress.nvfp4 is left out: ") for line in lines)
    assert "nvfp4" not in read.compress
    assert (read.evaluate.window, read.calibrate.length) == (512, 512)
    assert read.evaluate.corpora == ["own_texts"]
    assert read.decode.open_ended[0].task == "own_texts"
    assert read.evaluate.tasks[-1] == "own_tasks"
    assert cli.main(["params", "ship", *given]) == YES
    assert config.read(clone / "params.yaml") == read, "a second time changes nothing"


def test_a_folder_that_is_no_model_changes_nothing(clone: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = (clone / "params.yaml").read_bytes()
    assert cli.main(["params", "ship", "--model", "params"]) == USAGE
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("hemorrhage params: params.yaml with params/ship.yaml: model.path: ")
    assert (clone / "params.yaml").read_bytes() == before


def test_it_says_on_which_model_the_study_will_run(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["params", "few"]) == YES
    assert capsys.readouterr().out == "params.yaml runs on smollm2-135m-instruct (wheel)\n"
    assert "sibling_model: null" in (folder / "params.yaml").read_text(), "an empty value stays as it was"
    assert model_name({"model": {"source": "models"}, "models": {"a": {}, "b": {}}}) == "the models a, b"
