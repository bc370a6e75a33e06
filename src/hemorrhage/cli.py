"""The command ``hemorrhage``: questions that people and scripts ask of a study, a subcommand for each.

    hemorrhage COMMAND [ARGUMENT...]

A subcommand is a module with ``parser()`` and ``main(argv)``, which returns the exit code (hemorrhage.runtime.command).
It is imported when it is called: the help must not wait for pandas.
"""

from __future__ import annotations

import errno
import importlib
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from hemorrhage.runtime.command import USAGE, CommandError

PARAMS_ERROR = ("hemorrhage.study.params", "ConfigError")
"""The error of a params.yaml that can't be run; by name, since importing it would make every start slower."""

PIPE_CLOSED, INTERRUPTED = 141, 130
"""Exit codes as shells give them for SIGPIPE and SIGINT."""

UNWRITABLE = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC)
"""What the system says where a file can't be read or written: the user's to mend, so it is one line."""


@dataclass(frozen=True)
class Command:
    """A subcommand: the module that holds it, and what it does in one line."""

    module: str
    summary: str


COMMANDS = {
    "plan": Command("hemorrhage.tools.plan", "list what params.yaml asks for and how much of it is done"),
    "probe": Command("hemorrhage.tools.probe", "try on a model what every step, method and strategy assumes of it"),
    "costs": Command("hemorrhage.tools.costs", "predict time, memory, disk and GPU hours of what is missing"),
    "gate": Command("hemorrhage.tools.gate", "ask whether a variant is inside the damage budget"),
    "judge": Command("hemorrhage.tools.judge", "judge published files against their base, outside of any study"),
    "cache": Command("hemorrhage.tools.cache", "show, bound or empty what judgements keep"),
    "identify": Command("hemorrhage.tools.identify", "ask whether a server has the model that it claims to have"),
    "claims": Command("hemorrhage.tools.claims", "judge the claims over the models of several studies"),
    "compare": Command("hemorrhage.tools.compare", "put two revisions of a study next to each other"),
    "predict": Command("hemorrhage.tools.predict", "predict the damage of variants that are not evaluated yet"),
    "export": Command("hemorrhage.tools.export", "write a variant as a checkpoint for other programs"),
    "imatrix": Command("hemorrhage.tools.imatrix", "write the calibration as an importance matrix of llama.cpp"),
    "engine": Command("hemorrhage.tools.engine", "install, list or remove engines that serve models"),
    "params": Command("hemorrhage.tools.params", "write a profile into params.yaml"),
    "failed": Command("hemorrhage.tools.failed", "name the variants that failed, with the reason"),
    "invalidate": Command("hemorrhage.tools.invalidate", "remove a variant's outputs, so that they are made again"),
    "gc": Command("hemorrhage.tools.gc", "remove outputs that params.yaml no longer asks for"),
    "adopt": Command("hemorrhage.tools.adopt", "keep outputs across an edit of the code that changes no result"),
}
"""Subcommands in the order of the help."""

RENAMED = {"forget": "invalidate", "settle": "gc"}
"""Subcommands of earlier versions -> what they are called now."""

EXIT_CODES = """\
exit codes:
  0   yes, or done
  1   no
  2   cannot tell
  3   not measured
  64  wrong usage or wrong input
"""


def usage() -> str:
    """Write the help of the command itself."""
    lines = [f"  {name:10s} {command.summary}" for name, command in COMMANDS.items()]
    return "\n".join(
        [
            "usage: hemorrhage COMMAND [ARGUMENT...]",
            "",
            "Measure how much quality a language model loses when it is compressed, expanded or decoded differently.",
            "Commands read the study in the current folder; `snakemake` runs it.",
            "",
            "commands:",
            *lines,
            "",
            "example:",
            "  hemorrhage gate kl=0.1,flips=0.05 --variant gptq-4",
            "",
            EXIT_CODES,
            "`hemorrhage COMMAND --help` says more about each.",
        ]
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run a subcommand and return its exit code."""
    name, *arguments = list(sys.argv[1:] if argv is None else argv) or [""]
    if name in ("-h", "--help", "--version"):
        print(_version() if name == "--version" else usage())
        return 0
    if name in COMMANDS:
        return _run(name, arguments)
    if name in RENAMED:
        return _stop(f"hemorrhage: {name} is now {RENAMED[name]}", USAGE)
    problem = f"{name!r} is not a command" if name else "a command is missing"
    return _stop(f"hemorrhage: {problem}; one of {', '.join(COMMANDS)}; see hemorrhage --help", USAGE)


def _run(name: str, arguments: Sequence[str]) -> int:
    try:
        status = int(importlib.import_module(COMMANDS[name].module).main(arguments))
        sys.stdout.flush()
    except BrokenPipeError:
        # Whoever reads has seen enough (`| head`). Python would complain when it closes standard output.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = PIPE_CLOSED
    except KeyboardInterrupt:
        status = INTERRUPTED
    except CommandError as error:
        status = _stop(f"hemorrhage {name}: {error}", error.status)
    except OSError as error:
        if error.errno not in UNWRITABLE:
            raise
        status = _stop(f"hemorrhage {name}: {error.filename}: {error.strerror}", USAGE)
    except ValueError as error:
        if not _is_about_params(error):
            raise
        status = _stop(f"hemorrhage {name}: {error}", USAGE)
    return status


def _version() -> str:
    from importlib.metadata import version

    return f"hemorrhage {version('hemorrhage')}"


def _is_about_params(error: ValueError) -> bool:
    module, error_name = PARAMS_ERROR
    return module in sys.modules and isinstance(error, getattr(sys.modules[module], error_name))


def _stop(message: str, status: int) -> int:
    print(" ".join(message.split()), file=sys.stderr)
    return status


if __name__ == "__main__":
    sys.exit(main())
