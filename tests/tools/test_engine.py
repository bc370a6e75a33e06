"""``hemorrhage engine``; tests/engines/test_environment.py has what it does."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from hemorrhage import cli
from hemorrhage.engines import environment
from hemorrhage.engines.environment import InstallError
from hemorrhage.engines.registry import ENGINES, Engine
from hemorrhage.runtime.command import NO, USAGE, YES


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(environment.FOLDER_VARIABLE, str(tmp_path))


def mark(engine: Engine) -> None:
    environment.folder_of(engine).mkdir()
    environment.marker(engine).touch()


def test_it_lists_what_is_installed_and_says_how_to_install_the_rest(capsys: pytest.CaptureFixture[str]) -> None:
    llama_cpp = ENGINES["llama_cpp"]
    assert cli.main(["engine", "list", "llama_cpp"]) == YES
    assert capsys.readouterr().out.endswith("not installed: hemorrhage engine install llama_cpp\n")
    mark(llama_cpp)
    assert cli.main(["engine", "list", "--json"]) == YES
    known = {entry["engine"]: entry for entry in json.loads(capsys.readouterr().out)["engines"]}
    assert list(known) == list(ENGINES)
    assert known["transformers"]["installed"]
    assert known["llama_cpp"] == {
        "engine": "llama_cpp", "version": llama_cpp.version, "reads": "gguf", "installed": True,
    }  # fmt: skip


def test_it_installs_and_removes(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(environment, "install", mark)
    assert cli.main(["engine", "install", "llama_cpp"]) == YES
    assert capsys.readouterr().out == f"{ENGINES['llama_cpp']} is installed\n"
    assert cli.main(["engine", "remove", "llama_cpp"]) == YES
    assert cli.main(["engine", "remove", "llama_cpp"]) == YES
    assert capsys.readouterr().out == "llama.cpp is removed\nllama.cpp was not installed\n"


def test_what_cannot_be_installed_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(engine: Engine) -> None:
        raise InstallError(f"{engine} could not be installed (no network)")

    monkeypatch.setattr(environment, "install", refuse)
    assert cli.main(["engine", "install", "llama_cpp"]) == NO
    assert capsys.readouterr().err.endswith(f"engine: {ENGINES['llama_cpp']} could not be installed (no network)\n")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["install", "ollama"], "'ollama' is not an engine; one of llama_cpp"),
        (["remove"], "name what to remove: llama_cpp"),
        (
            ["install", "transformers"],
            "transformers is part of this bench, there is nothing to install; one of llama_cpp",
        ),
    ],
)
def test_a_wrong_name_says_what_is_allowed(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["engine", *arguments]) == USAGE
    assert message in capsys.readouterr().err
