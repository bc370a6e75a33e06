"""Files that others published, judged against their base in one call: ``hemorrhage judge``.

The steps and the analysis are those of a study, and so are the numbers, to the last digit. What was computed is kept in
a cache, so that another file of the same base costs its own evaluation alone.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
from collections.abc import Sequence
from contextlib import chdir
from pathlib import Path
from typing import TYPE_CHECKING

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from hemorrhage.compress.methods.published.external import file_name
from hemorrhage.engines import environment
from hemorrhage.engines.environment import FOLDER_VARIABLE
from hemorrhage.engines.registry import ENGINES
from hemorrhage.judge import cache
from hemorrhage.judge.request import BUDGET, Content, Request, unreadable
from hemorrhage.runtime.command import CANNOT_TELL, NO, NOT_MEASURED, YES, CommandError, Parser, json_text
from hemorrhage.runtime.command import parser as command_parser

if TYPE_CHECKING:
    from hemorrhage.analyze.study import Study


def parser() -> Parser:
    """Make the command line's parser."""
    made = command_parser(
        "judge",
        "Judge published files against the base that they were made from: KL, same top token, perplexity and flips\n"
        "with their intervals, and whether every bound lies inside a budget. A file is a folder of safetensors in any\n"
        "format that is read, a GGUF file, or org/name@commit[:file]; a base is a folder or org/name@commit.",
        [
            "hemorrhage judge models/base models/base-gptq models/base-Q4_K_M.gguf",
            "hemorrhage judge models/base models/base-awq --budget kl=0.05,flips=0.02 --json",
            "hemorrhage judge models/base models/base-awq --texts support.jsonl --score assistant",
            "hemorrhage judge models/base models/base-Q4_K_M.gguf --engine llama_cpp",
            "hemorrhage judge models/base models/base-awq --engine '{openai: http://127.0.0.1:8000, model: awq}'",
        ],
        {
            YES: "every file is inside the budget",
            NO: "a file is outside",
            CANNOT_TELL: "a limit lies within an interval; the line says how many windows would tell",
            NOT_MEASURED: "a file can't be read or measured",
        },
    )
    made.add_argument("base", metavar="BASE", help="the model that the files were made from")
    made.add_argument("files", nargs="+", metavar="FILE", help="what is judged")
    limits = ",".join(f"{name}={limit:g}" for name, limit in BUDGET.items())
    made.add_argument("--budget", default=limits, help=f"as for `hemorrhage gate`; default: {limits}")
    made.add_argument(
        "--texts", nargs="+", default=[], metavar="FILE", help="evaluate these .txt, .jsonl or .parquet files of yours"
    )
    made.add_argument("--score", choices=("all", "assistant"), default="all", help="what counts of conversations")
    made.add_argument(
        "--engine",
        action="append",
        default=[],
        type=_engine,
        metavar="ENGINE",
        help=f"measure and judge the files in this engine, too: {', '.join(ENGINES)}, or a server that has a file,"
        " {openai: URL, model: NAME, variant: FILE}; may be given several times",
    )
    made.add_argument("--windows", type=_count, metavar="N", help="of each corpus; default: 64, or all of --texts")
    made.add_argument("--window", type=_count, default=64, metavar="TOKENS", help="tokens of a window; default: 64")
    made.add_argument("--cores", type=_count, default=os.cpu_count() or 1, metavar="N", help="default: all")
    made.add_argument("--html", type=Path, metavar="FILE", help="write the page")
    made.add_argument("--cards", type=Path, metavar="FOLDER", help="write a model card for each file")
    made.add_argument("--junit", type=Path, metavar="FILE", help="write the answer as JUnit's XML")
    made.add_argument("--json", action="store_true", help="print the answer as JSON")
    home = cache.default_folder()
    made.add_argument("--cache", type=Path, default=home, metavar="FOLDER", help=f"default: {home}")
    made.add_argument(
        "--cache-gb", type=cache.size_gb, default=cache.LIMIT_GB, metavar="GB", help="default: %(default)g"
    )
    return made


def _count(text: str) -> int:
    """Return a number above 0."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a whole number above 0")
    return int(text)


def _engine(text: str) -> str | Content:
    """Return an engine's name, or a server as evaluate.engines of params.yaml has it."""
    if text in ENGINES:
        return text
    try:
        server = YAML(typ="safe").load(text)
    except YAMLError:
        server = None
    if not isinstance(server, dict):
        raise argparse.ArgumentTypeError(
            f"{text} is no engine; one of {', '.join(ENGINES)}, or a server: {{openai: URL, model: NAME}}"
        )
    return server


def main(argv: Sequence[str] | None = None) -> int:
    """Print the answer and return it."""
    from hemorrhage.judge import answer
    from hemorrhage.tools import gate

    arguments = parser().parse_args(argv)
    _check(arguments)
    budget = gate.parse(arguments.budget)
    unread = unreadable(arguments.files)
    files = [name for name in arguments.files if name not in unread]
    request = Request(
        arguments.base,
        files,
        budget,
        texts=arguments.texts,
        score=arguments.score,
        windows=arguments.windows,
        window=arguments.window,
        engines=[each for index, each in enumerate(arguments.engine) if each not in arguments.engine[:index]],
    )
    content = request.content()
    study = _study(content, arguments) if files else None
    measured = iter(answer.rows_of(study, files) if study else ())
    rows = [
        answer.unread(file_name(name), unread[name]) if name in unread else next(measured) for name in arguments.files
    ]
    if arguments.junit:
        arguments.junit.write_text(answer.as_junit(rows, arguments.base), encoding="utf-8")
    as_json = answer.as_json(rows, arguments.base, budget, study.provenance["address"] if study else None)
    print(json_text(as_json) if arguments.json else answer.as_table(rows, budget))
    return answer.status_of(rows)


def _check(arguments: argparse.Namespace) -> None:
    """Raise CommandError for arguments that contradict each other, and for places that nothing can be written to."""
    if arguments.score != "all" and not arguments.texts:
        raise CommandError(f"--score {arguments.score} is about --texts, and there are none")
    for option in ("html", "junit"):
        path = getattr(arguments, option)
        if path and path.is_dir():
            raise CommandError(f"--{option}: {path} is a folder")
        if path and not path.resolve().parent.is_dir():
            raise CommandError(f"--{option}: the folder of {path} is missing")
    if arguments.cards and arguments.cards.exists() and not arguments.cards.is_dir():
        raise CommandError(f"--cards: {arguments.cards} is no folder")


def _study(content: Content, arguments: argparse.Namespace) -> Study:
    """Make the study of a judgement in the cache, and write its page and cards where they are asked for."""
    from hemorrhage.analyze.report.sections.cards import cards
    from hemorrhage.judge.run import run

    html, folder = (path and path.resolve() for path in (arguments.html, arguments.cards))
    home = arguments.cache.resolve()
    # The study runs in the cache's folder; engines are those of this one.
    os.environ[FOLDER_VARIABLE] = str(environment.home())
    with cache.locked(home), chdir(home), tempfile.TemporaryDirectory(dir=home, prefix=cache.SCRATCH) as scratch:
        judged = run(content, Path(scratch), arguments.cores, _say)
        if html:
            shutil.copyfile(Path(scratch, "index.html"), html)
        cache.trim(home, arguments.cache_gb, judged.used)
    if folder:
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in cards(judged.study).items():
            (folder / f"{name}.md").write_text(text, encoding="utf-8")
    return judged.study


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
