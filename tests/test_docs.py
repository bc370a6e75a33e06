"""The documentation: commands parse, files exist, links resolve, and the README stays short."""

from __future__ import annotations

import importlib
import importlib.util
import re
import shlex
import subprocess
from pathlib import Path

import pandera.pandas as pa
import pytest
from ruamel.yaml import YAML

from hemorrhage import cli
from hemorrhage.study.kinds import KINDS, PAGE_FILES, ROWS_FILES
from hemorrhage.study.params import read
from hemorrhage.study.plan import Plan
from tests.conftest import ROOT

PAGES = sorted(
    [
        *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md", "data/README.md")),
        *ROOT.glob("docs/*.md"),
    ]
)
FENCE = re.compile(r"^```(\w*)\n(.*?)^```", flags=re.M | re.S)
SPAN = re.compile(r"`([^`\n]+(?:\n[^`\n]+)?)`")
WRITTEN = {*ROWS_FILES, *PAGE_FILES, "provenance.json", "compare.html", "compare.csv"}
"""Files of reports/ that a run or a command writes."""

pages = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


def blocks(page: Path, language: str = "") -> list[str]:
    """Contents of a page's code blocks of a language."""
    return [content for of, content in FENCE.findall(page.read_text()) if of == language]


def spans(page: Path) -> list[str]:
    """A page's inline code, each on one line."""
    return [" ".join(span.split()) for span in SPAN.findall(FENCE.sub("", page.read_text()))]


def commands(page: Path, program: str) -> list[list[str]]:
    """Arguments of every command line of a program, in code blocks and inline."""
    lines = [line.removeprefix("$ ") for block in blocks(page) for line in block.splitlines()]
    parts = [part.strip() for line in [*lines, *spans(page)] for part in re.split(r"&&| #", line)]
    return [shlex.split(part)[1:] for part in parts if part.split(" ")[0] == program]


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text().split()) <= 1200


@pages
def test_commands_parse(page: Path) -> None:
    for arguments in commands(page, "hemorrhage"):
        if arguments in ([], ["--help"], ["COMMAND", "--help"]):
            continue
        name, *rest = arguments
        assert name in cli.COMMANDS, arguments
        if rest and importlib.util.find_spec(cli.COMMANDS[name].module):
            values = [value.replace("KIND", "checkpoints") if name == "gc" else value for value in rest]
            importlib.import_module(cli.COMMANDS[name].module).parser().parse_args(values)


@pages
def test_make_targets_and_modules_exist(page: Path) -> None:
    targets = set(re.findall(r"^([a-z][a-z-]*):", (ROOT / "Makefile").read_text(), flags=re.M))
    for arguments in commands(page, "make"):
        assert {word for word in arguments if "=" not in word} <= targets, arguments
    for arguments in commands(page, "python"):
        assert arguments[0] == "-m", arguments
        assert importlib.util.find_spec(arguments[1]), arguments


@pages
def test_yaml_is_yaml(page: Path) -> None:
    for block in blocks(page, "yaml"):
        keys = [line.split(":")[0] for line in block.splitlines() if line[:1].isalpha()]
        documents = block.splitlines() if len(keys) > len(set(keys)) else [block]
        for document in documents:
            assert isinstance(YAML(typ="safe").load(document), dict)


def is_there(named: str) -> bool:
    """Whether a path that a page names exists: in the repository, in the package, or where a run writes it."""
    if re.search(r"[<>*{}]|\.\.\.", named):
        named = re.split(r"[<>*{}]|\.\.\.", named)[0].rpartition("/")[0]
    top, _, rest = named.rstrip("/").partition("/")
    if top == "data" and rest:
        return rest.split("/")[0] in {*KINDS, "README.md"}
    if top == "reports" and rest in WRITTEN:
        return True
    return any((root / named).exists() for root in (ROOT, ROOT / "src/hemorrhage"))


TOPS = {path.name for root in (ROOT, ROOT / "src/hemorrhage") for path in root.iterdir() if path.is_dir()} - {
    ".snakemake"
}


@pages
def test_paths_exist(page: Path) -> None:
    named = [span for span in spans(page) if re.fullmatch(r"[\w.<>*{}-]+(/[\w.<>*{}-]*)+", span)]
    missing = [path for path in named if path.split("/")[0] in TOPS and not is_there(path)]
    assert not missing


def anchors(page: Path) -> set[str]:
    """Anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", FENCE.sub("", page.read_text()), flags=re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pages
def test_links_resolve(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", FENCE.sub("", page.read_text())):
        if target.startswith("https://"):
            continue
        path, _, anchor = target.partition("#")
        file = page.parent / path if path else page
        assert file.exists(), target
        assert not anchor or anchor in anchors(file), target


def test_every_page_is_linked_from_the_readme() -> None:
    linked = set(re.findall(r"\]\((docs/[\w.-]+\.md)\)", (ROOT / "README.md").read_text()))
    assert linked == {f"docs/{page.name}" for page in ROOT.glob("docs/*.md")}


def test_every_command_and_its_exit_codes_are_in_the_operations_page() -> None:
    text = (ROOT / "docs/operations.md").read_text()
    for name in cli.COMMANDS:
        assert f"`hemorrhage {name}" in text, name


def table(page: Path, column: str) -> list[list[str]]:
    """The cells of the table whose first column has this title, without code marks."""
    rows = page.read_text().partition(f"\n| {column} |")[2].partition("\n\n")[0].splitlines()[2:]
    return [[cell.strip(" `") for cell in row.split("|")[1:-1]] for row in rows]


def test_every_kind_of_output_has_a_row_in_the_readme_of_data_and_a_section_of_the_formats() -> None:
    assert sorted(row[0] for row in table(ROOT / "data/README.md", "folder")) == sorted(KINDS)
    sections = " ".join(re.findall(r"^## (.+)$", (ROOT / "docs/formats.md").read_text(), flags=re.M))
    assert set(KINDS) <= set(re.findall(r"\w+", sections))


def test_every_file_of_the_report_is_in_the_formats() -> None:
    text = (ROOT / "docs/formats.md").read_text()
    assert all(f"`reports/{name}`" in text for name in WRITTEN)


NOT_OUTPUTS = ("rows", "page", "failures", "reported", "all")
"""Jobs of a run besides those that make an output in data/."""


@pytest.mark.parametrize("page", ["README.md", "docs/quickstart.md"])
def test_the_size_of_the_default_study_is_that_of_its_plan(page: str) -> None:
    plan = Plan(read(ROOT / "params.yaml"))
    jobs = sum(len(plan.names(kind)) for kind in KINDS) + len(NOT_OUTPUTS)
    assert f"{len(plan.variants)} variants of the model in {jobs} jobs" in " ".join((ROOT / page).read_text().split())


SCHEMAS = (
    "analyze.rows.schema",
    "data.texts.schema",
    "decode.schema",
    "evaluate.code_tasks_schema",
    "evaluate.diagnostics.collect",
    "evaluate.harness_schema",
    "evaluate.schema",
    "evaluate.served_schema",
    "mitigate.schema",
    "train.schema",
)
"""Modules that declare the columns of what is written."""


def test_every_column_that_is_written_is_in_the_formats() -> None:
    words = {word for span in spans(ROOT / "docs/formats.md") for word in re.findall(r"\w+", span)}
    missing = {
        f"{module}.{name}.{column}"
        for module in SCHEMAS
        for name, schema in vars(importlib.import_module(f"hemorrhage.{module}")).items()
        if isinstance(schema, pa.DataFrameSchema)
        for column in schema.columns
        if column not in words
    }
    assert missing == set()
    declared = {
        str(path.relative_to(ROOT / "src/hemorrhage").with_suffix("")).replace("/", ".")
        for path in (ROOT / "src/hemorrhage").rglob("*.py")
        if "= pa.DataFrameSchema(" in path.read_text()
    }
    assert declared == set(SCHEMAS)


def test_git_keeps_the_readme_of_data_and_ignores_what_runs_make() -> None:
    def ignored(path: str) -> bool:
        return subprocess.run(["git", "check-ignore", "--quiet", path], cwd=ROOT, check=False).returncode == 0

    assert not ignored("data/README.md")
    assert all(ignored(f"data/{kind}/") for kind in KINDS)
    outs = [
        next(iter(out))
        for stage in YAML(typ="safe").load(ROOT / "dvc.yaml")["stages"].values()
        for out in stage["outs"]
    ]
    assert {out for out in outs if out.startswith("data/")} == {f"data/{kind}" for kind in KINDS}
    stages = YAML(typ="safe").load(ROOT / "dvc.yaml")["stages"]
    kept_by_dvc = [name for out in stages["analyze"]["outs"] for name, how in out.items() if how.get("cache", True)]
    assert kept_by_dvc
    assert all(ignored(name) for name in kept_by_dvc), "DVC refuses an output that git tracks"


def test_cleaning_leaves_the_readme_of_data(tmp_path: Path) -> None:
    for file in ("Makefile", "requirements.txt", "requirements-uv.txt", "pyproject.toml"):
        (tmp_path / file).write_bytes((ROOT / file).read_bytes())
    (tmp_path / "data/checkpoints/rtn-4").mkdir(parents=True)
    (tmp_path / "data/README.md").write_text("kept")
    subprocess.run(["make", "clean"], cwd=tmp_path, check=True, capture_output=True)
    assert [path.name for path in (tmp_path / "data").iterdir()] == ["README.md"]
