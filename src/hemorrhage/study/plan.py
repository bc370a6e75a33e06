"""The plan: which outputs a params.yaml asks for, and at which address each lies.

Snakemake (rules/plan.smk) and DVC (dvc.yaml) both ask this module. An address is made of exactly what an
output depends on: its part of params.yaml, the code of its step, the addresses of its inputs (hemorrhage.study.kinds
says which these are). So an output is either at its path and right, or not there; nothing is judged by its age, and no
metadata can go stale.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable
from functools import cached_property
from pathlib import Path
from shlex import quote

from hemorrhage.bracket import content as bracket
from hemorrhage.engines.endpoint_http import EndpointError, read_key
from hemorrhage.engines.environment import NotInstalledError, require
from hemorrhage.models.sources.files import architecture
from hemorrhage.runtime import lacking
from hemorrhage.runtime.address import SOURCE, address, program
from hemorrhage.runtime.artifact import MANIFEST, read_manifest
from hemorrhage.study import kinds
from hemorrhage.study import params as config
from hemorrhage.study.design import Design
from hemorrhage.study.kinds import KINDS, PAGE_FILES, ROWS_FILES, Key

DATA = Path("data")
REPORTS = Path("reports")
PROVENANCE = "provenance.json"

EXPERIENCE = SOURCE / "analyze" / "doctor" / "experience.csv"
TEMPLATES = SOURCE / "analyze" / "report" / "templates"
"""Inputs of the report other than Python: the runs that damage is predicted from, and the page's templates."""


class Plan:
    """Addresses of all outputs of one params.yaml. Raises config.ConfigError where it can't be run.

    Where a screening adds points to the sweeps, ``design`` has them as soon as the bracket exists. Their addresses are
    those that they have where params.yaml names them, and are known before. ``reports``: where its numbers and its page
    go, which no address holds.
    """

    def __init__(self, params: config.Params, reports: Path = REPORTS) -> None:
        self.params = params
        self.reports = reports
        self.named = Design(params)
        self._addresses: dict[Key, str] = {}
        self.design = self._extended()
        self._check_base()
        self._check_texts()
        self._check_engines()

    @classmethod
    def read(cls, path: Path = Path("params.yaml")) -> Plan:
        """Make the plan of a params.yaml."""
        return cls(config.read(path))

    @property
    def variants(self) -> dict[str, config.Variant]:
        """The variants of params.yaml, and those that were added."""
        return self.design.variants

    @property
    def possible(self) -> Design:
        """The design with every point that could be added."""
        return self.named.possible

    @property
    def is_open(self) -> bool:
        """Tell whether points will be added, and the bracket that says which does not exist."""
        return bool(self.named.screened) and not Path(self.manifest(*kinds.BRACKET)).is_file()

    def _extended(self) -> Design:
        """Return the design with what the bracket adds, where it exists."""
        if not self.named.screened or self.is_open:
            return self.named
        made = bracket.read(Path(self.manifest(*kinds.BRACKET)).parent)
        added = [config.Point(each.sweep, each.values) for each in made.added]
        return Design(self.params, added, made.confirmed)

    # Addresses.

    def names(self, kind: str) -> dict[str, str]:
        """Return the addresses of all outputs of a kind by name."""
        return {name: self.address(kind, name) for name in KINDS[kind].names(self.design)}

    def possible_names(self, kind: str) -> dict[str, str]:
        """Return the same with all outputs that the kind could get."""
        return {name: self.address(kind, name) for name in KINDS[kind].names(self.possible)}

    def address(self, kind: str, name: str) -> str:
        """Return the address of an output: of its settings, its inputs and its code."""
        key = kind, name
        if key not in self._addresses:
            row = KINDS[kind]
            inputs = {
                option: [self.address(*needed) for needed in given.outputs(self.possible, name)]
                for option, given in row.inputs.items()
                if given.is_read
            }
            code = [program(_entry(module)) for module in (row.module(name), *row.code(self.possible, name))]
            self._addresses[key] = address(
                kind, self.params.cache_version, row.settings(self.possible, name), inputs, code
            )
        return self._addresses[key]

    @cached_property
    def rows(self) -> str:
        """Everything with numbers in reports/.

        What a bracket adds follows from its own address, so that this one is known before the bracket is made. How that
        is measured does not: everything that could be added or confirmed counts.
        """
        inputs = {kind.name: self.possible_names(kind.name) for kind in kinds.analyzed_kinds()}
        settings = {**kinds.analysis(self.design), "aligned": kinds.is_aligned(self.design)}
        code = [program("hemorrhage.analyze.__main__"), content_of([EXPERIENCE])]
        return address("rows", self.params.cache_version, settings, inputs, code)

    @cached_property
    def page(self) -> str:
        """The page, which is drawn from them."""
        templates = content_of(sorted(TEMPLATES.glob("*.j2")))
        return address("page", self.rows, program("hemorrhage.analyze.report.__main__"), templates)

    # Paths.

    def addresses(self) -> dict[str, str]:
        """Return the addresses of all outputs by ``<kind>/<name>``, in the order in which they are made.

        While it is open what could be added has some, too.
        """
        names = self.possible_names if self.is_open else self.names
        return {f"{kind}/{name}": key for kind in KINDS for name, key in names(kind).items()}

    def manifest(self, kind: str, name: str) -> str:
        """Return the file whose presence says that an output is complete."""
        return str(DATA / kind / name / self.address(kind, name) / MANIFEST)

    def manifests(self, kind: str) -> list[str]:
        """List the manifests of all outputs of a kind."""
        return [self.manifest(kind, name) for name in self.names(kind)]

    def checkpoint(self, variant: str) -> str:
        """Return the manifest of a variant's model; the variant ``base`` is the base model itself."""
        return self.manifest(*kinds.model_of(variant))

    def inputs(self, kind: str, name: str) -> dict[str, list[str]]:
        """Return the manifests of an output's inputs by option; also of those that must only come first."""
        given = KINDS[kind].inputs.items()
        return {option: [self.manifest(*key) for key in each.outputs(self.possible, name)] for option, each in given}

    def command(self, kind: str, name: str) -> str:
        """Return the module that makes an output with its arguments, as shell words."""
        row = KINDS[kind]
        words = [row.module(name), str(DATA / kind / name / self.address(kind, name))]
        for option, manifests in self.inputs(kind, name).items():
            if manifests and row.inputs[option].is_read:
                words += [_flag(option), *(str(Path(manifest).parent) for manifest in manifests)]
        for option, value in row.options(self.possible, name).items():
            words += [_flag(option), json.dumps(value) if isinstance(value, dict) else str(value)]
        return " ".join(map(quote, words))

    def rows_command(self, out: Path | None = None, of: Collection[str] = tuple(KINDS)) -> str:
        """Return the module and the arguments of the analysis of the kinds ``of``, as shell words."""
        words = ["hemorrhage.analyze", str(out or self.reports)]
        for kind in (kind for kind in kinds.analyzed_kinds() if kind.name in of):
            folders = [str(Path(manifest).parent) for manifest in self.manifests(kind.name)]
            words += ["--outputs", kind.name, *folders] if folders else []
        words += ["--aligned"] if kinds.is_aligned(self.design) else []
        words += ["--several"] if self.reports != REPORTS else []
        words += ["--spec", json.dumps(kinds.analysis(self.design)), "--address", self.rows]
        return " ".join(map(quote, words))

    def page_command(self, reports: Path | None = None) -> str:
        """Return the module and the arguments of the page, as shell words."""
        words = ["hemorrhage.analyze.report", str(reports or self.reports), "--address", self.page]
        return " ".join(map(quote, words))

    # Status.

    def marker(self, address: str) -> str:
        """Name what says in .snakemake/current/ that reports at an address are made; two models may have equal ones."""
        return address if self.reports == REPORTS else f"{address}.{self.reports.name}"

    def rows_are_current(self) -> bool:
        """Tell whether the numbers in reports/ are complete and were made at the address this plan asks for.

        Reports keep stable names, so that commits can be compared; what they were built from is said inside.
        """
        return are_made(self.reports, "address", self.rows, ROWS_FILES)

    def report_is_current(self) -> bool:
        """Tell whether the page is current, too.

        Numbers that were made anew have taken its address out of provenance.json.
        """
        return are_made(self.reports, "page", self.page, PAGE_FILES) and self.rows_are_current()

    def _check_base(self) -> None:
        """Refuse what a prepared base model rules out, by its config.json or by what the base step tried."""
        manifest = Path(self.checkpoint(kinds.BASE))
        if not manifest.is_file() or lacking.reason(manifest.parent) is not None:
            return
        for entry in read_manifest(manifest.parent).get("probe", []):
            if entry["answer"] == "no":
                raise config.ConfigError(f"params.yaml: model: {entry['part']}: {entry['reason']}")
        if config.architecture(self.params) is None:
            try:
                config.check_model(self.params, architecture(manifest.parent))
            except config.ConfigError as error:
                raise config.ConfigError(f"params.yaml: {error}") from None

    def _check_texts(self) -> None:
        """Refuse a corpus whose prepared text has too few tokens, before any work."""
        for corpus in self.names("texts"):
            tokens = evaluable(Path(self.manifest("texts", corpus)))
            for split, needed in kinds.tokens_needed(self.design, corpus).items():
                if split in tokens and tokens[split] < needed:
                    raise config.ConfigError(
                        f"params.yaml: corpus {corpus} has {tokens[split]} {split} tokens, but {needed} are asked for"
                    )

    def _check_engines(self) -> None:
        """Refuse an engine that is not installed, and a server without its key, where something is left to measure."""
        left = [name for name in self.names("served") if not Path(self.manifest("served", name)).is_file()]
        servers = {name: kinds.server_of(self.design, name) for name in left}
        try:
            require(list(dict.fromkeys(name.partition(".")[0] for name in left if servers[name] is None)))
            for server in filter(None, servers.values()):
                read_key(server.key_env)
        except (NotInstalledError, EndpointError) as error:
            raise config.ConfigError(f"params.yaml: evaluate.engines: {error}") from None


def are_made(reports: Path, field: str, address: str, names: Iterable[str]) -> bool:
    """Tell whether ``names`` are in a folder of reports, whose provenance.json says in ``field`` that they were made at
    ``address``. Of a model that could not be made there are none."""
    try:
        provenance = json.loads((reports / PROVENANCE).read_text(encoding="utf-8"))
        is_gap, said = "failure" in provenance, provenance[field]
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return False
    return bool(said == address) and (is_gap or all((reports / name).is_file() for name in names))


def evaluable(manifest: Path) -> dict[str, int]:
    """Count the tokens of a prepared text by split; empty where it is not prepared yet."""
    if not manifest.is_file():
        return {}
    tokens: dict[str, int] = json.loads(manifest.read_text(encoding="utf-8")).get("tokens", {})
    return tokens


def _flag(option: str) -> str:
    return f"--{option.replace('_', '-')}"


def _entry(module: str) -> str:
    """Return the module that ``python -m`` runs: a package's is its ``__main__``."""
    return f"{module}.__main__" if SOURCE.joinpath(*module.split(".")[1:]).is_dir() else module


def content_of(files: list[Path]) -> str:
    """Return the address of what files hold."""
    return address([file.read_text(encoding="utf-8") for file in files])
