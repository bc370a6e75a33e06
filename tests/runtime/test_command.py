"""What commands share: the parser, its help, the error, and JSON."""

from __future__ import annotations

import json
import math

import pytest

from hemorrhage.runtime.command import CANNOT_TELL, NO, USAGE, CommandError, json_text, parser


def test_the_help_ends_with_examples_and_exit_codes() -> None:
    shown = parser(
        "ask", "Ask something.", ["hemorrhage ask", "hemorrhage ask --loud"], {NO: "no answer"}
    ).format_help()
    assert shown.startswith("usage: hemorrhage ask [-h]")
    assert "examples:\n  hemorrhage ask\n  hemorrhage ask --loud\n" in shown
    assert shown.endswith("exit codes:\n  0   done\n  1   no answer\n  64  wrong usage or wrong input\n")


@pytest.mark.parametrize("arguments", [["--no-such"], ["one", "two"], ["--lou"]])
def test_wrong_usage_is_one_line_and_64(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    made = parser("ask", "Ask something.", ["hemorrhage ask"])
    made.add_argument("--loud", action="store_true")
    made.add_argument("what", nargs="?")
    with pytest.raises(SystemExit) as stopped:
        made.parse_args(arguments)
    assert stopped.value.code == USAGE
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("hemorrhage ask: ")
    assert line.endswith("; see hemorrhage ask --help")


def test_subcommands_of_a_command_do_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    made = parser("ask", "Ask something.", ["hemorrhage ask"])
    made.add_subparsers().add_parser("again").add_argument("what")
    with pytest.raises(SystemExit) as stopped:
        made.parse_args(["again"])
    assert stopped.value.code == USAGE
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_an_error_has_an_exit_code() -> None:
    assert CommandError("wrong").status == USAGE
    assert CommandError("who knows", CANNOT_TELL).status == CANNOT_TELL


def test_json_has_no_nan() -> None:
    content = {"a": [1.5, math.nan, {"b": (math.inf, -math.inf, None, "x", True)}]}
    assert json.loads(json_text(content), parse_constant=pytest.fail) == {
        "a": [1.5, None, {"b": [None, None, None, "x", True]}]
    }
