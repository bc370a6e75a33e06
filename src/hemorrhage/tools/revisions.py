"""The studies of a repository by revision: of a commit, of an experiment of DVC, or of the files as they lie here.

The rows of a revision come out of DVC's cache or remote, its params and recommendation out of git. An experiment is a
commit below ``refs/exps/<commit it started from>/<name>``, which git does not find by its name alone.
"""

from __future__ import annotations

import io
import json
import re
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, TypedDict

import pandas as pd
from ruamel.yaml import YAML

from hemorrhage.analyze.rows.blocks import Blocks, by_key
from hemorrhage.analyze.rows.differences import flatten
from hemorrhage.runtime.address import Json
from hemorrhage.runtime.command import NOT_MEASURED, CommandError
from hemorrhage.study.params import read_yaml

WORKSPACE = "workspace"
ROWS = "reports/hemorrhage.parquet"
BLOCKS = "reports/blocks.parquet"
PARAMS = Path("params.yaml")
CODE = ("src/hemorrhage", "rules", "Snakefile", "requirements.txt")
EXPERIMENT = re.compile(r"refs/exps/([0-9a-f]{2})/([0-9a-f]{38})/(.+)")


class Shipped(TypedDict):
    """The picked variant and its size as a share of the base's."""

    variant: str | None
    size: float


class Recommendation(TypedDict, total=False):
    """The keys of ``recommendation.json`` that are read."""

    overall: Shipped | None


class Provenance(TypedDict, total=False):
    """The keys of ``provenance.json`` that are read: environments by their names, and that of the analysis."""

    environments: dict[str, dict[str, str]]
    analyzed_in: str


@dataclass(frozen=True)
class Study:
    """A revision: its name, its commit with the subject, rows, params and what git has of reports/.

    ``blocks``: sums by window and group; none of a study that was analyzed before they were kept.
    """

    name: str
    commit: str
    subject: str
    rows: pd.DataFrame
    params: Json
    provenance: Provenance
    recommendation: Recommendation
    blocks: Blocks = field(default_factory=dict, repr=False)


class Experiment(NamedTuple):
    """An experiment of DVC: its name, its commit, and the commit that it started from."""

    name: str
    commit: str
    baseline: str


def experiments() -> list[Experiment]:
    """List the experiments of the repository in the current folder, the oldest first."""
    listed = git("for-each-ref", "--sort=committerdate", "--format=%(refname) %(objectname)", "refs/exps") or ""
    lines = [line.rpartition(" ") for line in listed.splitlines()]
    matches = [(EXPERIMENT.fullmatch(reference), commit) for reference, _, commit in lines]
    return [Experiment(match[3], commit, match[1] + match[2]) for match, commit in matches if match]


def of_head() -> list[str]:
    """Name HEAD, if its study was run, and its experiments, the oldest first. Raises CommandError for less than two."""
    head = git("rev-parse", "--verify", "--quiet", "HEAD^{commit}")
    names = [each.name for each in experiments() if each.baseline == head]
    if head and _is_run(head):
        names.insert(0, "HEAD")
    if len(names) < 2:
        has = f"only {names[0]} has a study" if names else "neither HEAD nor an experiment of it has a study"
        raise CommandError(f"{has}; name two revisions, or run experiments: dvc exp run", NOT_MEASURED)
    return names


def _is_run(commit: str) -> bool:
    """Tell whether dvc.lock of a commit has the analysis of its params.yaml: a commit may ask for what is to be run."""
    lock = YAML(typ="safe").load(git("show", f"{commit}:dvc.lock") or "{}")
    stages = lock.get("stages", {}) if isinstance(lock, dict) else {}
    params = flatten(_params(commit))
    recorded = [stage.get("params", {}).get(str(PARAMS), {}) for stage in stages.values()]
    return "analyze" in stages and all(
        params.get(key) == value for stage in recorded for key, value in flatten(stage).items()
    )


def resolve(name: str) -> str:
    """Return the commit of a revision of git or of an experiment of DVC. Raises CommandError."""
    if commit := git("rev-parse", "--verify", "--quiet", f"{name}^{{commit}}"):
        return commit
    known = experiments()
    named = [each for each in known if each.name == name]
    head = git("rev-parse", "--verify", "--quiet", "HEAD^{commit}")
    chosen = [each for each in named if each.baseline == head] or named
    if len(chosen) == 1:
        return chosen[0].commit
    if chosen:
        commits = ", ".join(f"{each.commit[:10]} of {each.baseline[:10]}" for each in chosen)
        raise CommandError(f"{name} is the name of {len(chosen)} experiments; name one by its commit: {commits}")
    listed = ", ".join(dict.fromkeys(each.name for each in known)) or "there are none"
    raise CommandError(f"{name} is no revision that git knows and no experiment of DVC (experiments: {listed})")


def read(name: str) -> Study:
    """Read the study of a revision of the repository in the current folder. Raises CommandError."""
    if name == WORKSPACE:
        rows = Path(ROWS)
        if not rows.is_file():
            raise CommandError(f"{ROWS} does not exist; run the study, or `dvc pull {ROWS}`", NOT_MEASURED)
        blocks = Path(BLOCKS)
        kept = blocks.read_bytes() if blocks.is_file() else None
        return _study(name, "", "files as they lie here", rows.read_bytes(), kept)
    commit = resolve(name)
    rows_there, subject = _from_dvc(name, commit, ROWS), git("log", "-1", "--format=%s", commit) or ""
    try:
        kept = _from_dvc(name, commit, BLOCKS)
    except CommandError:
        kept = None
    return _study(name, commit[:10], subject, rows_there, kept)


def _study(name: str, commit: str, subject: str, rows: bytes, blocks: bytes | None = None) -> Study:
    return Study(
        name=name,
        commit=commit,
        subject=subject,
        rows=_by_model(pd.read_parquet(io.BytesIO(rows))),
        params=_params(commit),
        provenance=json.loads(_file("reports/provenance.json", commit)),
        recommendation=json.loads(_file("reports/recommendation.json", commit)),
        blocks={} if blocks is None else by_key(_by_model(pd.read_parquet(io.BytesIO(blocks)))),
    )


def _by_model(table: pd.DataFrame) -> pd.DataFrame:
    """Return a table with the model in the name of its variants, where the study is of several."""
    return table.assign(variant=table["model"] + "/" + table["variant"]) if "model" in table else table


def _params(commit: str) -> Json:
    """Read params.yaml of a commit, or of the folder where ``commit`` is empty; empty where it does not exist."""
    if commit:
        content = YAML(typ="safe").load(git("show", f"{commit}:{PARAMS}") or "{}")
    else:
        content = read_yaml(PARAMS) if PARAMS.is_file() else {}
    return content if isinstance(content, dict) else {}


def _from_dvc(name: str, commit: str, path: str) -> bytes:
    """Read a report of a commit out of DVC's cache or remote."""
    import dvc.api
    from dvc.exceptions import DvcException

    try:
        with dvc.api.open(path, repo=".", rev=commit, mode="rb", config=_remotes()) as file:
            return bytes(file.read())
    except (DvcException, OSError) as error:
        reason = (
            f"{name}: DVC has no {path} of this revision; run `dvc repro` there and commit dvc.lock, or `dvc fetch` it"
        )
        raise CommandError(f"{reason} ({error})", NOT_MEASURED) from None


def _remotes() -> Json:
    """Return where this folder says that data lies: a revision may be older than that."""
    from dvc.config import Config

    config = Config.from_cwd()
    default = config["core"].get("remote")
    return {"remote": dict(config["remote"]), "core": {"remote": default} if default else {}}


def _file(path: str, commit: str) -> str:
    """Read a file of git, or of the folder where ``commit`` is empty; an empty mapping where it does not exist."""
    if commit:
        return git("show", f"{commit}:{path}") or "{}"
    return Path(path).read_text(encoding="utf-8") if Path(path).is_file() else "{}"


def git(*arguments: str) -> str | None:
    """Return what a command of git prints, None where it fails."""
    done = subprocess.run(["git", *arguments], capture_output=True, text=True, check=False)
    return done.stdout.strip() if done.returncode == 0 else None


def changed_code(a: Study, b: Study) -> list[tuple[str, str, str]]:
    """List (file, lines added, lines removed) of the code between two studies."""
    ends = [end.commit for end in (a, b) if end.commit]
    if not ends:
        return []
    # Against the folder, git compares from the commit: turn it where the folder is A.
    text = git("diff", "--numstat", *(["-R"] if not a.commit else []), *ends, "--", *CODE) or ""
    return [(file, added, removed) for added, removed, file in (line.split("\t") for line in text.splitlines())]


def environment(study: Study) -> dict[str, str]:
    """Return the versions and the machine that a study was analyzed with."""
    return study.provenance.get("environments", {}).get(study.provenance.get("analyzed_in", ""), {})


def shipped(study: Study) -> str:
    """Say which variant a study recommends."""
    answer = study.recommendation.get("overall")
    if not answer:
        return "no recommendation"
    if not answer["variant"]:
        return "nothing inside the budget"
    return f"{answer['variant']}, {100 * answer['size']:.1f}\u00a0% of the base's bytes"
