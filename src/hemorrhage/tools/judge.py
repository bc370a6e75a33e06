"""Files that others published, judged against their base in one call: ``hemorrhage judge``.

The steps and the analysis are those of a study, and so are the numbers, to the last digit. What was computed is kept in
a cache, so that another file of the same base costs its own evaluation alone.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Sequence
from contextlib import chdir
from pathlib import Path

from hemorrhage.judge import cache
from hemorrhage.judge.request import BUDGET, Request
from hemorrhage.runtime.command import CANNOT_TELL, NO, NOT_MEASURED, YES, Parser, json_text
from hemorrhage.runtime.command import parser as command_parser


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
    made.add_argument("--windows", type=_count, metavar="N", help="of each corpus; default: 64, or all of --texts")
    made.add_argument("--window", type=_count, default=64, metavar="TOKENS", help="tokens of a window; default: 64")
    made.add_argument("--cores", type=_count, default=os.cpu_count() or 1, metavar="N", help="default: all")
    made.add_argument("--html", type=Path, metavar="FILE", help="write the page")
    made.add_argument("--cards", type=Path, metavar="FOLDER", help="write a model card for each file")
    made.add_argument("--junit", type=Path, metavar="FILE", help="write the answer as JUnit's XML")
    made.add_argument("--json", action="store_true", help="print the answer as JSON")
    home = cache.default_folder()
    made.add_argument("--cache", type=Path, default=home, metavar="FOLDER", help=f"default: {home}")
    made.add_argument("--cache-gb", type=float, default=cache.LIMIT_GB, metavar="GB", help="default: %(default)g")
    return made


def _count(text: str) -> int:
    """Return a number above 0."""
    number = int(text)
    if number < 1:
        raise ValueError(text)
    return number


def main(argv: Sequence[str] | None = None) -> int:
    """Print the answer and return it."""
    from hemorrhage.analyze.report.sections.cards import cards
    from hemorrhage.judge import answer
    from hemorrhage.judge.run import run
    from hemorrhage.tools import gate

    arguments = parser().parse_args(argv)
    budget = gate.parse(arguments.budget)
    request = Request(
        arguments.base,
        arguments.files,
        budget,
        texts=arguments.texts,
        score=arguments.score,
        windows=arguments.windows,
        window=arguments.window,
    )
    content = request.content()
    html, junit, folder = (path and path.resolve() for path in (arguments.html, arguments.junit, arguments.cards))
    home = arguments.cache.resolve()
    with cache.locked(home), chdir(home), tempfile.TemporaryDirectory(dir=home, prefix="results-") as scratch:
        judged = run(content, Path(scratch), arguments.cores, _say)
        if html:
            shutil.copyfile(Path(scratch, "index.html"), html)
        cache.trim(home, arguments.cache_gb, judged.used)
    rows = answer.rows_of(judged.study)
    if junit:
        junit.write_text(answer.as_junit(rows, arguments.base), encoding="utf-8")
    if folder:
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in cards(judged.study).items():
            (folder / f"{name}.md").write_text(text, encoding="utf-8")
    address = judged.study.provenance["address"]
    as_json = answer.as_json(rows, arguments.base, budget, address)
    print(json_text(as_json) if arguments.json else answer.as_table(rows, budget))
    return answer.status_of(rows)


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
