"""The command ``hemorrhage``: its help, its exit codes, and that it imports what a subcommand needs only then."""

from __future__ import annotations

import importlib
import importlib.util
import re
import resource
import shlex
import subprocess
import sys
from collections.abc import Sequence
from types import ModuleType

import pytest

from hemorrhage import cli
from hemorrhage.runtime.command import CANNOT_TELL, USAGE, YES, CommandError
from hemorrhage.study.params import ConfigError
from tests.conftest import ROOT

NEEDS_ARGUMENTS = {
    "identify": ["http://127.0.0.1:9", "--model", "m"],
    "export": ["a", "b"],
    "params": ["a"],
    "invalidate": ["a"],
    "gc": ["base"],
    "adopt": ["HEAD"],
    "engine": ["list"],
    "judge": ["a", "b"],
}
"""Arguments without which a command is incomplete."""


def module(name: str) -> ModuleType:
    """The module of a subcommand."""
    if importlib.util.find_spec(cli.COMMANDS[name].module) is None:
        pytest.skip(f"{cli.COMMANDS[name].module} does not exist yet")
    return importlib.import_module(cli.COMMANDS[name].module)


def ended(*arguments: str) -> int:
    """The exit code of the command, also where argparse ends it."""
    try:
        return cli.main(arguments)
    except SystemExit as stopped:
        return int(stopped.code or 0)


def test_the_help_names_every_command_and_an_example(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--help"]) == YES
    shown = capsys.readouterr().out
    assert re.findall(r"^  ([a-z]+) +[a-z]", shown, flags=re.M)[: len(cli.COMMANDS)] == list(cli.COMMANDS)
    assert "example:\n  hemorrhage " in shown
    for status in (0, 1, 2, 3, 64):
        assert re.search(rf"^  {status} +\S", shown, flags=re.M)


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_the_help_of_a_command_has_an_example_that_parses_and_its_exit_codes(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    parser = module(name).parser()
    with pytest.raises(SystemExit) as stopped:
        cli.main([name, "--help"])
    assert stopped.value.code == YES
    shown = capsys.readouterr().out
    assert shown.startswith(f"usage: hemorrhage {name}")
    assert max(map(len, shown.splitlines())) <= 120
    examples = re.findall(rf"^  hemorrhage {name}(.*)$", shown, flags=re.M)
    assert examples
    for example in examples:
        parser.parse_args(shlex.split(example.partition("&&")[0]))
    codes = shown.partition("exit codes:")[2]
    assert re.search(r"^  0 +\S", codes, flags=re.M)
    assert re.search(r"^  64 +\S", codes, flags=re.M)


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_wrong_usage_is_64_and_one_line(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    module(name)
    wrong = [["--no-such-option", *NEEDS_ARGUMENTS.get(name, [])]]
    wrong += [[]] if name in NEEDS_ARGUMENTS else []
    for arguments in wrong:
        assert ended(name, *arguments) == USAGE
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith(f"hemorrhage {name}: ")


@pytest.mark.parametrize("arguments", [[], ["no_such_command"], ["Gate"]])
def test_an_unknown_command_is_64_and_one_line(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(arguments) == USAGE
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith("see hemorrhage --help")
    assert "plan, probe, costs, gate" in line


@pytest.mark.parametrize(("old", "new"), cli.RENAMED.items())
def test_a_renamed_command_names_the_new_one(old: str, new: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert new in cli.COMMANDS
    assert cli.main([old, "rtn-4"]) == USAGE
    assert capsys.readouterr().err == f"hemorrhage: {old} is now {new}\n"


@pytest.mark.parametrize(
    ("error", "status"),
    [(CommandError("two\nlines", CANNOT_TELL), CANNOT_TELL), (ConfigError("params.yaml: wrong"), USAGE)],
)
def test_an_error_is_one_line_and_its_exit_code(
    error: Exception, status: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def main(argv: Sequence[str]) -> int:
        raise error

    monkeypatch.setattr(module("plan"), "main", main)
    assert cli.main(["plan"]) == status
    assert capsys.readouterr().err == f"hemorrhage plan: {' '.join(str(error).split())}\n"


def test_a_fault_of_the_bench_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def main(argv: Sequence[str]) -> int:
        raise ValueError("a bug")

    monkeypatch.setattr(module("plan"), "main", main)
    with pytest.raises(ValueError, match="a bug"):
        cli.main(["plan"])


@pytest.mark.parametrize("number", cli.UNWRITABLE)
def test_what_cannot_be_written_is_one_line(
    number: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def main(argv: Sequence[str]) -> int:
        raise OSError(number, "no", "reports/compare.html")

    monkeypatch.setattr(module("plan"), "main", main)
    assert cli.main(["plan"]) == USAGE
    assert capsys.readouterr().err == "hemorrhage plan: reports/compare.html: no\n"


def test_a_reader_who_has_seen_enough_gets_no_traceback() -> None:
    command = f"{sys.executable} -m hemorrhage.cli plan | true"
    done = subprocess.run(["bash", "-c", command], cwd=ROOT, capture_output=True, text=True, check=False, timeout=120)
    assert done.stderr == ""


def test_an_interrupt_is_quiet(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def main(argv: Sequence[str]) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(module("plan"), "main", main)
    assert cli.main(["plan"]) == cli.INTERRUPTED
    assert capsys.readouterr().err == ""


def test_the_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--version"]) == YES
    assert re.fullmatch(r"hemorrhage \d+\.\d+\.\d+\n", capsys.readouterr().out)


def test_the_help_imports_no_library_and_is_there_at_once() -> None:
    code = (
        "import sys; from hemorrhage import cli; cli.main(['--help']);"
        "assert not {'pandas', 'numpy', 'pydantic', 'torch', 'yaml', 'ruamel'} & set(sys.modules)"
    )
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, timeout=60)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    # Of the processor: a busy machine makes everything wait.
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 0.3


def test_it_runs_as_a_module_and_ends_with_the_exit_code() -> None:
    command = [sys.executable, "-m", "hemorrhage.cli", "no_such_command"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == USAGE
    assert done.stderr.startswith("hemorrhage: 'no_such_command' is not a command")
