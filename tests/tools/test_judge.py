"""``hemorrhage judge`` on a small model: the numbers are those of a study; a second call is short."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from ruamel.yaml import YAML
from safetensors.torch import load_file, save_file

from hemorrhage import cli
from hemorrhage.engines.endpoint_dialects import Vocabulary
from hemorrhage.judge.request import Request
from hemorrhage.models.checkpoint import load, load_tokenizer
from hemorrhage.runtime.command import NO, NOT_MEASURED, USAGE
from hemorrhage.tools import judge
from tests.compress.methods.published.test_external import pruned
from tests.engines.lying_server import Lying, Network, serving
from tests.models.sources import folders

pytestmark = pytest.mark.end_to_end

ASKED = ["--budget", "kl=0.0001", "--windows", "4", "--window", "32", "--cores", "2"]


@pytest.fixture(scope="module")
def files(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The tiny model with half of its weights, and with a tensor too few."""
    made = []
    tensors = load_file(tiny / "model.safetensors")
    whole = pruned(tensors)
    for name, state in (("half", whole), ("broken", {k: v for k, v in whole.items() if "1.mlp.up" not in k})):
        folder = tmp_path_factory.mktemp("files") / name
        shutil.copytree(tiny, folder)
        save_file(state, folder / "model.safetensors", folders.META)
        made.append(str(folder))
    return made


def judged(tiny: Path, files: list[str], home: Path, *more: str) -> int:
    return cli.main(["judge", str(tiny), *files, *ASKED, "--cache", str(home), *more])


def test_a_judgement(tiny: Path, files: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    home = tmp_path / "home"
    assert judged(tiny, files[:1], home, "--json", "--engine", "transformers") == NO
    content: Any = json.loads(capsys.readouterr().out)
    (half,) = content["files"]
    (engine,) = half["engines"]
    assert engine["engine"].startswith("transformers ")
    assert engine["kl"]["value"] == pytest.approx(half["kl"]["value"], rel=1e-3), "the same library in float32"
    assert abs(engine["added"]["value"]) < 1e-6
    limited = {each["dataset"] for each in half["checks"]}
    assert limited == {"prose", "code", *(f"{corpus} in {engine['engine']}" for corpus in ("prose", "code"))}
    assert (half["file"], half["answer"], half["format"]) == ("half", "no", "float32")
    assert half["kl"]["low"] < half["kl"]["value"] < half["kl"]["high"]
    # A second call evaluates the new file alone; what can't be read is not measured, and the others are.
    more = ["--html", str(tmp_path / "out.html"), "--junit", str(tmp_path / "out.xml"), "--cards", str(tmp_path / "c")]
    assert judged(tiny, files, home, *more) == NO
    out = capsys.readouterr()
    assert out.err.count("\n") == 2, out.err
    assert "lacks model.layers.1.mlp.up_proj.weight" in out.out
    assert "<html" in (tmp_path / "out.html").read_text()[:2000]
    assert 'failures="1" errors="1"' in (tmp_path / "out.xml").read_text()
    assert (tmp_path / "c" / "file-half.md").read_text().startswith("---")
    assert judged(tiny, files[1:], home) == NOT_MEASURED
    capsys.readouterr()
    # Two files of one name are shown as they were given, and one that can't be read keeps its place.
    shutil.copytree(files[0], tmp_path / "again" / "half")
    (tmp_path / "x.gguf").write_bytes(b"GG")
    given = [files[0], str(tmp_path / "x.gguf"), str(tmp_path / "again" / "half")]
    assert judged(tiny, given, home, "--json") == NO
    content = json.loads(capsys.readouterr().out)
    assert [row["file"] for row in content["files"]] == [given[0], "x", given[2]]
    assert not list(home.glob("results-*"))


def test_a_server_is_judged_by_the_ends_of_its_kl(
    tiny: Path, files: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    answering = Lying(Network(load(Path(files[0]))), Vocabulary.of(load_tokenizer(tiny).backend_tokenizer).pieces)
    with serving(answering) as url:
        server = f"{{openai: '{url}', model: tiny, attempts: 1}}"
        assert judged(tiny, files[:1], tmp_path / "home", "--json", "--engine", server) == NO
    (half,) = json.loads(capsys.readouterr().out)["files"]
    (engine,) = half["engines"]
    assert engine["engine"] == f"tiny at {url.removeprefix('http://')}"
    assert engine["kl"] is None
    assert engine["kl_low"]["value"] < half["kl"]["value"] < engine["kl_high"]["value"]
    in_server = [each for each in half["checks"] if each["dataset"].endswith(engine["engine"])]
    assert [(each["kind"], each["answer"]) for each in in_server] == [("kl", "outside")] * 2
    # Away, it is a gap of the file, and the rest is judged.
    again = f"{{openai: '{url}', model: tiny, attempts: 1, name: gone}}"
    judged(tiny, files[:1], tmp_path / "home", "--engine", again)
    assert re.search(r"half in tiny at \S+: .*", capsys.readouterr().out)


def test_a_judgement_is_a_study(
    tiny: Path, files: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "home"
    judged(tiny, files[:1], home, "--json")
    content: Any = json.loads(capsys.readouterr().out)
    asked = Request(str(tiny), files[:1], {"kl": 0.0001}, windows=4, window=32)
    study = tmp_path / "study"
    study.mkdir()
    YAML().dump(asked.content(), study / "params.yaml")
    monkeypatch.chdir(study)
    from hemorrhage.study.plan import Plan

    # The addresses are the same: a study and a judgement share what they compute, and so the numbers are one.
    for kind in ("checkpoints", "evaluations"):
        manifest = Plan.read().manifest(kind, "file-half")
        assert (home / manifest).is_file()
    tokens = pd.read_parquet((home / Plan.read().manifest("evaluations", "file-half")).parent / "tokens.parquet")
    mean = tokens[tokens["corpus"] == content["files"][0]["kl"]["dataset"]]["kl"].mean()
    assert content["files"][0]["kl"]["value"] == pytest.approx(mean, rel=1e-6)


def test_wrong_arguments_are_one_line_before_any_work(
    tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert judged(tiny, [str(tmp_path / "none")], tmp_path / "home") == USAGE
    assert capsys.readouterr().err.strip().endswith("none is missing")
    for wrong in (
        ["--score", "assistant"],
        ["--junit", str(tmp_path / "none" / "out.xml")],
        ["--html", str(tmp_path)],
        ["--cards", str(tiny / "config.json")],
        ["--engine", "{openai: 'http://host/v1', model: m, key_env: K}"],
        ["--engine", "{openai: 'ftp://host', model: m}"],
        ["--engine", "{openai: 'http://127.0.0.1:1'}"],
        ["--engine", "{openai: 'http://127.0.0.1:1', model: m, variant: none}"],
        ["--engine", "{openai: 'http://127.0.0.1:1', model: m, top: 0}"],
        ["--engine", "{openai: 'http://127.0.0.1:1', model: m, colour: red}"],
    ):
        assert judged(tiny, [str(tiny)], tmp_path / "home", *wrong) == USAGE
        line = capsys.readouterr().err
        assert line.startswith(f"hemorrhage judge: {wrong[0]}")
        assert line.count("\n") == 1


@pytest.mark.parametrize(
    ("option", "line"),
    [
        (["--windows", "0"], "argument --windows: 0 is not a whole number above 0"),
        (["--cores", "two"], "argument --cores: two is not a whole number above 0"),
        (["--cache-gb", "nan"], "argument --cache-gb: nan is not a number of at least 0"),
        (["--cache-gb=-1"], "argument --cache-gb: -1 is not a number of at least 0"),
        (
            ["--engine", "vlllm"],
            "argument --engine: vlllm is no engine; one of transformers, llama_cpp, vllm, or",
        ),
        (["--engine", "{openai: ["], "argument --engine: {openai: [ is no engine"),
    ],
)
def test_a_number_that_is_none_is_one_line(option: list[str], line: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        judge.parser().parse_args(["base", "file", *option])
    assert ended.value.code == USAGE
    assert line in capsys.readouterr().err


def test_a_file_that_can_not_be_read_is_a_row(tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Nothing is computed where no file is left, and the answer is that of a file that a step refuses."""
    (tmp_path / "empty").mkdir()
    assert judged(tiny, [str(tmp_path / "empty")], tmp_path / "home", "--json") == NOT_MEASURED
    output = capsys.readouterr()
    content: Any = json.loads(output.out)
    assert (content["address"], output.err) == (None, "")
    (row,) = content["files"]
    assert (row["file"], row["reason"]) == ("empty", f"{tmp_path / 'empty'} holds no config.json")
