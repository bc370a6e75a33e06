"""A study and its models: a plan for each, in one folder of outputs, and what is concluded from all of them.

Most studies have one model, whose numbers and page are the study's. Of several, each has its own in
``reports/<model>``, and reports/ holds what follows from all of them (hemorrhage.analyze.family).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from shlex import quote

from hemorrhage.runtime.address import address, program
from hemorrhage.study import kinds, members
from hemorrhage.study.kinds import KINDS, PAGE_FILES, ROWS_FILES
from hemorrhage.study.members import Member
from hemorrhage.study.plan import REPORTS, TEMPLATES, Plan, are_made, content_of


class Family:
    """The plans of a study by model; of one model the name is empty. Raises config.ConfigError where one can't be run.

    ``refresh`` is for a model whose screening has added variants meanwhile.
    """

    def __init__(self, described: Sequence[Member]) -> None:
        self.members = {member.name: member for member in described}
        self.plans = {name: Plan(each.params, self.reports(name)) for name, each in self.members.items()}

    @classmethod
    def read(cls, path: Path = Path("params.yaml")) -> Family:
        """Make the plans of a params.yaml."""
        return cls(members.read(path))

    @property
    def is_one(self) -> bool:
        """Tell whether the study has one model, whose reports are the study's."""
        return "" in self.members

    @staticmethod
    def reports(name: str) -> Path:
        """Return the folder of a model's numbers and page."""
        return REPORTS / name

    def refresh(self, name: str) -> Plan:
        """Make a model's plan anew."""
        self.plans[name] = Plan(self.members[name].params, self.reports(name))
        return self.plans[name]

    @cached_property
    def _owners(self) -> dict[tuple[str, str, str], str]:
        return {
            (kind, output, key): name
            for name, plan in reversed(self.plans.items())
            for kind in KINDS
            for output, key in plan.possible_names(kind).items()
        }

    def owner(self, kind: str, output: str, key: str) -> str:
        """Return a model that asks for an output: models share what does not depend on them."""
        return self._owners[kind, output, key]

    def addresses(self) -> dict[str, str]:
        """Return the addresses of all outputs by ``<kind>/<name>``; of several models ``<model>/<kind>/<name>``."""
        return {
            f"{name}/{key}" if name else key: address
            for name, plan in self.plans.items()
            for key, address in plan.addresses().items()
        }

    # The numbers and the page of several models.

    @cached_property
    def rows(self) -> str:
        """The address of what follows from all models."""
        numbers = {name: plan.rows for name, plan in self.plans.items()}
        return address(
            "family", numbers, self._described(), self._settings(), program("hemorrhage.analyze.family.__main__")
        )

    @cached_property
    def page(self) -> str:
        """The address of the page of all models."""
        code = program("hemorrhage.analyze.family.page.__main__")
        return address("family page", self.rows, code, content_of(sorted(TEMPLATES.glob("*.j2"))))

    def rows_command(self) -> str:
        """Return the module and the arguments of what is concluded from all models, as shell words."""
        words = ["hemorrhage.analyze.family", str(REPORTS), "--models", json.dumps(self._described())]
        words += ["--spec", json.dumps(self._settings()), "--address", self.rows]
        return " ".join(map(quote, words))

    def page_command(self) -> str:
        """Return the module and the arguments of the page of all models, as shell words."""
        return " ".join(map(quote, ["hemorrhage.analyze.family.page", str(REPORTS), "--address", self.page]))

    def _described(self) -> dict[str, Mapping[str, object]]:
        return {name: {"group": each.group, "factors": each.factors} for name, each in self.members.items()}

    def _settings(self) -> Mapping[str, object]:
        return kinds.analysis(next(iter(self.plans.values())).design)

    @staticmethod
    def marker(address: str) -> str:
        """Name what says in .snakemake/current/ that reports at an address are made."""
        return address

    def rows_are_current(self) -> bool:
        """Tell whether what follows from all models is in reports/."""
        return are_made(REPORTS, "address", self.rows, ROWS_FILES)

    def report_is_current(self) -> bool:
        """Tell whether its page is, too."""
        return are_made(REPORTS, "page", self.page, PAGE_FILES) and self.rows_are_current()
