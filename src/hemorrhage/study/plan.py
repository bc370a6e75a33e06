"""The plan: which outputs a params.yaml asks for, and at which address each lies.

Snakemake (rules/plan.smk) and DVC (dvc.yaml) both ask this module. An address is made of exactly what an
output depends on: its part of params.yaml, the code of its step, the addresses of its inputs. So an output
is either at its path and right, or not there; nothing is judged by its age, and no metadata can go stale.

    python -m hemorrhage.study.plan show                  what a run would need, and what of it is there
    python -m hemorrhage.study.plan settle <kind>...      remove what the plan does not name (DVC records the rest)
    python -m hemorrhage.study.plan failed                which variants failed and why; exit status 1 where some did
    python -m hemorrhage.study.plan forget <variant>...   remove a variant's outputs (or base's): they are made again
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from hemorrhage.compress.method import module_of
from hemorrhage.data.texts.repositories import identity
from hemorrhage.runtime.address import SOURCE, address, fingerprint, program
from hemorrhage.runtime.artifact import MANIFEST
from hemorrhage.runtime.service import store
from hemorrhage.study import params as config
from hemorrhage.study.registry import OPEN_TASKS, PROGRAM_TASKS, TASKS

DATA = Path("data")
REPORTS = Path("reports")
REPORT_FILES = (
    "hemorrhage.parquet",
    "metrics.json",
    "thresholds.json",
    "next.yaml",
    "claims.json",
    "flags.json",
    "doctor.json",
    "recommendation.json",
    "curves.csv",
    "front.csv",
    "layers.csv",
    "thresholds.csv",
    "decoding.csv",
    "decoding.json",
    "index.html",
)
FINGERPRINTS = Path(".snakemake/fingerprints.json")

STAGES = {
    "calibrate": ("base", "relatives", "texts", "tasks", "benchmarks", "calibrations"),
    "compress": ("gradients", "checkpoints"),
    "evaluate": ("references", "evaluations", "harness", "programs"),
    "decode": ("decodes",),
    "mitigate": ("corrections",),
}
"""Step -> kinds of output it makes, in the order they are made. Gradients are a calibration that only some methods
read: they are made when compression asks for them."""

GRADIENTS = {"gradients": "loss", "local_gradients": "local"}
"""Statistics that a method may read -> part of the gradients step."""


class Plan:
    """Addresses of all outputs of one params.yaml. Raises config.ConfigError where it can't be run."""

    def __init__(self, params: config.Params) -> None:
        self.params = params
        self.variants = config.variants(params)
        self._check_texts()

    @classmethod
    def read(cls, path: Path = Path("params.yaml")) -> Plan:
        """The plan of a params.yaml."""
        return cls(config.read(path))

    # What every step is given, as plain JSON.

    @cached_property
    def model(self) -> dict[str, Any]:
        """Which model, for the base step."""
        return self.params.model.model_dump(mode="json")

    @cached_property
    def relative(self) -> dict[str, Any]:
        """The base or the aligned model of the same family, for the step that makes it ready."""
        relative = self.params.decode.relative
        return {} if relative is None else relative.model.model_dump(mode="json")

    def needs(self, corpus: str) -> dict[str, int]:
        """Tokens that the run takes from each split of a corpus."""
        params = self.params
        needed = {"calibration": 0, "evaluation": 0}
        mixed = params.calibrate.corpora
        if corpus in mixed:
            needed["calibration"] = -(-params.calibrate.samples // len(mixed)) * params.calibrate.length
        if corpus in params.evaluate.corpora:
            windows = 2 if params.evaluate.windows == "all" else params.evaluate.windows
            needed["evaluation"] = windows * params.evaluate.window
        for entry in params.decode.open:
            if corpus == entry.task:
                needed["evaluation"] = max(needed["evaluation"], entry.items * (entry.prefix or 0))
        return needed

    def data(self, corpus: str) -> dict[str, Any]:
        """Where a corpus comes from, for the text step."""
        return config.data_of(corpus, self.params)

    def benchmark_data(self, task: str) -> dict[str, Any]:
        """Where a benchmark comes from, for the step that prepares it."""
        return config.benchmark_data(task, self.params)

    def preparation(self, task: str) -> str:
        """The module that prepares a benchmark."""
        return config.benchmark_step(task).__name__

    @cached_property
    def windows(self) -> dict[str, Any]:
        """Settings of the reference step."""
        evaluate = self.params.evaluate
        inside = evaluate.inside.model_dump(mode="json", exclude={"ablate"})
        return {"dtype": evaluate.dtype, "window": evaluate.window, "windows": evaluate.windows, "inside": inside}

    def evaluation(self, variant: str) -> dict[str, Any]:
        """Settings of the evaluate step for a variant or the base."""
        return {"ablate": variant in self.params.evaluate.inside.ablate}

    @cached_property
    def harnessed(self) -> dict[str, Any]:
        """Settings of the harness step."""
        harness = self.params.evaluate.harness
        return {"items": harness.items, "batch": harness.batch, "seed": self.params.data.seed}

    @cached_property
    def programmed(self) -> dict[str, Any]:
        """Settings of the programs step."""
        programs = self.params.evaluate.programs
        return {**programs.model_dump(mode="json"), "seed": self.params.data.seed}

    @cached_property
    def sampling(self) -> dict[str, Any]:
        """Settings of the calibrate step."""
        return self.params.calibrate.model_dump(mode="json", exclude={"corpus"})

    def alteration(self, variant: str) -> dict[str, Any]:
        """Settings of the compress step for a variant."""
        found = self.variants[variant]
        return {
            "sweep": found.sweep,
            "method": found.method,
            "settings": found.settings.model_dump(mode="json"),
            "seed": found.seed,
            "on": found.on,
        }

    @cached_property
    def decoding(self) -> dict[str, Any]:
        """Settings of the decode step."""
        decode, programs = self.params.decode, self.params.evaluate.programs
        code = any(entry.task in PROGRAM_TASKS for entry in decode.closed)
        return {
            "strategies": config.strategies(self.params),
            "closed": [entry.model_dump(mode="json") for entry in decode.closed],
            "open": [entry.model_dump(mode="json") for entry in decode.open],
            "programs": {"seconds": programs.seconds, "memory_mb": programs.memory_mb} if code else None,
            "batch": decode.batch,
            "seed": decode.seed,
        }

    def asked(self, kind: Literal["closed", "open"]) -> list[str]:
        """The manifests of the decoding sweep's closed or open tasks, in their order."""
        entries = self.params.decode.closed if kind == "closed" else self.params.decode.open
        return [self.manifest(self._prepared(entry.task, kind), entry.task) for entry in entries]

    def _prepared(self, task: str, kind: str) -> str:
        """The kind of output that holds a task of the decoding sweep; a name may be a corpus and a task."""
        if kind == "closed":
            return "tasks" if task in TASKS else "benchmarks"
        return "benchmarks" if task in OPEN_TASKS else "texts"

    @property
    def aligned(self) -> str:
        """Whether the second model of the family is the aligned one: ``yes`` or ``no``."""
        relative = self.params.decode.relative
        return "yes" if relative is not None and relative.is_aligned else "no"

    @cached_property
    def correction(self) -> dict[str, Any]:
        """Settings of the mitigate step."""
        return self.params.mitigate.model_dump(mode="json", exclude={"variants"})

    @cached_property
    def analysis(self) -> dict[str, Any]:
        """Settings of the analyze step."""
        return {**self.params.analyze.model_dump(mode="json"), "calibration": self.params.calibrate.corpora}

    def needs_calibration(self, variant: str) -> bool:
        """Whether a variant's method reads the calibration statistics."""
        return bool(self.variants[variant].settings.statistics)

    def gradients_of(self, variant: str) -> list[str]:
        """The gradients that a variant's method reads."""
        return [GRADIENTS[kind] for kind in self.variants[variant].settings.statistics if kind in GRADIENTS]

    # Addresses, from the inputs to the report.

    def _address(self, step: str, *parts: object) -> str:
        return address(step, self.params.epoch, *parts)

    @cached_property
    def base(self) -> dict[str, str]:
        """The base model."""
        return {"base": self._source(self.params.model)}

    @cached_property
    def relatives(self) -> dict[str, str]:
        """The base or the aligned model of the same family, where params.yaml names one."""
        relative = self.params.decode.relative
        return {} if relative is None else {"relative": self._source(relative.model)}

    def _source(self, chosen: config.WheelModel | config.HubModel | config.PathModel) -> str:
        model = chosen.model_dump(mode="json")
        if isinstance(chosen, config.PathModel):
            model = {"source": "path", "sha256": fingerprint(Path(chosen.path), FINGERPRINTS)}
        source = f"hemorrhage.models.sources.{model['source']}"
        return self._address("base", model, program("hemorrhage.models.__main__"), program(source))

    @cached_property
    def texts(self) -> dict[str, str]:
        """Tokenised corpora."""
        return {corpus: self._text(corpus) for corpus in config.corpora(self.params)}

    def _text(self, corpus: str) -> str:
        source = identity(corpus, self.data(corpus), FINGERPRINTS)
        return self._address("text", self.base["base"], corpus, source, program("hemorrhage.data.texts.__main__"))

    @cached_property
    def tasks(self) -> dict[str, str]:
        """Generated probe tasks."""
        data = self.params.data
        return {
            task: self._address("task", task, data.items, data.seed, program("hemorrhage.data.tasks.probes"))
            for task in config.tasks(self.params)
        }

    @cached_property
    def benchmarks(self) -> dict[str, str]:
        """Data of lm-eval's tasks, of the code tasks, and of the decoding sweep's."""
        return {task: self._benchmark(task) for task in config.benchmark_names(self.params)}

    def _benchmark(self, task: str) -> str:
        step = config.benchmark_step(task)
        source = step.identity(task, self.benchmark_data(task), FINGERPRINTS)
        return self._address("benchmark", task, source, program(step.__name__))

    @cached_property
    def calibrations(self) -> dict[str, str]:
        """Calibration set and the statistics of the base model on it."""
        corpora = self.params.calibrate.corpora
        inputs = [self.base["base"], *(self.texts[corpus] for corpus in corpora)]
        return {
            "-".join(corpora): self._address(
                "calibrate", self.sampling, inputs, program("hemorrhage.calibrate.__main__")
            )
        }

    @cached_property
    def gradients(self) -> dict[str, str]:
        """Gradients of the base model on the calibration set, of the kinds that a variant reads."""
        needed = {part for variant in self.variants for part in self.gradients_of(variant)}
        inputs = [self.base["base"], *self.calibrations.values()]
        step = program("hemorrhage.calibrate.gradients")
        return {part: self._address("gradients", part, inputs, step) for part in sorted(needed)}

    @cached_property
    def checkpoints(self) -> dict[str, str]:
        """Altered models."""
        found: dict[str, str] = {}
        for name in self.variants:
            found[name] = self._checkpoint(name, found)
        return found

    def _checkpoint(self, variant: str, earlier: dict[str, str]) -> str:
        found = self.alteration(variant)
        inputs = [self.base["base"]]
        if self.needs_calibration(variant):
            inputs += self.calibrations.values()
        inputs += [self.gradients[part] for part in self.gradients_of(variant)]
        if found["on"] is not None:
            inputs.append(earlier[found["on"]])
        programs = [
            program("hemorrhage.compress.__main__"),
            program(module_of(found["method"])),
        ]
        return self._address("compress", found["method"], found["settings"], found["seed"], inputs, programs)

    @cached_property
    def references(self) -> dict[str, str]:
        """The base model's side of every comparison."""
        evaluate = self.params.evaluate
        inputs = [self.base["base"], {name: self.texts[name] for name in evaluate.corpora}]
        inputs.append({name: self.tasks[name] for name in evaluate.tasks})
        return {"base": self._address("reference", self.windows, inputs, program("hemorrhage.evaluate.reference"))}

    @cached_property
    def evaluations(self) -> dict[str, str]:
        """Damage of the base (none, by definition) and of every variant."""
        step = program("hemorrhage.evaluate.__main__")
        return {
            name: self._address("evaluate", model, self.references["base"], self.evaluation(name), step)
            for name, model in self._models.items()
        }

    @cached_property
    def harness(self) -> dict[str, str]:
        """lm-eval's tasks, on the base and on every variant."""
        return self._on_benchmarks("harness", self.params.evaluate.harness.tasks, self.harnessed)

    @cached_property
    def programs(self) -> dict[str, str]:
        """Code tasks, on the base and on every variant."""
        return self._on_benchmarks("programs", self.params.evaluate.programs.tasks, self.programmed)

    def _on_benchmarks(self, kind: str, tasks: list[str], settings: dict[str, Any]) -> dict[str, str]:
        if not tasks:
            return {}
        inputs = [self.base["base"], {task: self.benchmarks[task] for task in tasks}]
        step = program(f"hemorrhage.evaluate.{kind}")
        return {name: self._address(kind, model, settings, inputs, step) for name, model in self._models.items()}

    @property
    def _models(self) -> dict[str, str]:
        return {**self.base, **self.checkpoints}

    @cached_property
    def decodes(self) -> dict[str, str]:
        """The decoding sweep of the base and of the chosen variants."""
        decode = self.params.decode
        used = sorted({found["strategy"] for found in self.decoding["strategies"].values()})
        programs = [
            program("hemorrhage.decode.__main__"),
            *(program(f"hemorrhage.decode.strategies.{name}") for name in used),
        ]
        if self.decoding["programs"]:
            programs.append(program("hemorrhage.sandbox.runner"))
        asked = [
            {entry.task: self.names(self._prepared(entry.task, kind))[entry.task]}
            for kind, entries in (("closed", decode.closed), ("open", decode.open))
            for entry in entries
        ]
        inputs: list[Any] = [self.base["base"], *asked]
        amateurs = {found["amateur"] for found in self.decoding["strategies"].values() if found.get("amateur")}
        inputs += [fingerprint(Path(folder), FINGERPRINTS) for folder in sorted(amateurs)]
        models = {name: self._models[name] for name in ("base", *decode.variants)}
        found = {
            name: self._address("decode", model, self.decoding, inputs, programs) for name, model in models.items()
        }
        if self.relatives:
            # Measured under itself: it may have another vocabulary.
            own = [self.relatives["relative"], *inputs[1:]]
            found["relative"] = self._address("decode", own[0], self.decoding, own, programs)
        return found

    @cached_property
    def corrections(self) -> dict[str, str]:
        """Corrections of the decoding of the chosen variants."""
        step = program("hemorrhage.mitigate.__main__")
        return {
            name: self._address("mitigate", self.checkpoints[name], self.references["base"], self.correction, step)
            for name in self.params.mitigate.variants
        }

    @cached_property
    def report(self) -> str:
        """The report."""
        inputs = [self.checkpoints, self.evaluations, self.harness, self.programs, self.decodes, self.corrections]
        if self.relatives:
            inputs.append({**self.relatives, "aligned": self.aligned})
        inputs += [self.calibrations, self.references]
        return self._address("analyze", self.analysis, inputs, program("hemorrhage.analyze.__main__"), _template())

    # Paths.

    def names(self, kind: str) -> dict[str, str]:
        """Name -> address of all outputs of a kind."""
        return getattr(self, kind)

    def manifest(self, kind: str, name: str) -> str:
        """The file whose presence says that an output is there and whole."""
        return str(DATA / kind / name / self.names(kind)[name] / MANIFEST)

    def manifests(self, kind: str) -> list[str]:
        """The manifests of all outputs of a kind."""
        return [self.manifest(kind, name) for name in self.names(kind)]

    def checkpoint(self, variant: str) -> str:
        """The manifest of a variant's model; the variant ``base`` is the base model itself."""
        kinds = {"base": "base", "relative": "relatives"}
        return self.manifest(kinds.get(variant, "checkpoints"), variant)

    def measures(self, variant: str) -> str:
        """The manifest of the model under which a variant's texts are measured."""
        return self.checkpoint(variant) if variant == "relative" else self.manifest("base", "base")

    def report_is_current(self) -> bool:
        """Whether reports/ is whole and was made at the address this plan asks for.

        Reports keep stable names, so that commits can be compared; what they were built from is said inside.
        """
        try:
            made_at = json.loads((REPORTS / "provenance.json").read_text(encoding="utf-8"))["address"]
        except (FileNotFoundError, ValueError, KeyError):
            return False
        return made_at == self.report and all((REPORTS / name).is_file() for name in REPORT_FILES)

    def _check_texts(self) -> None:
        """Texts of an earlier run tell how many tokens they have: too few is an error before any work."""
        for corpus in config.corpora(self.params):
            manifest = Path(self.manifest("texts", corpus))
            if not manifest.is_file():
                continue
            there = json.loads(manifest.read_text(encoding="utf-8")).get("tokens", {})
            for split, needed in self.needs(corpus).items():
                if split in there and there[split] < needed:
                    raise config.ConfigError(
                        f"params.yaml: corpus {corpus} has {there[split]} {split} tokens, but {needed} are asked for"
                    )


def _template() -> str:
    """Digest of what is no Python: the report's page, and the runs that damage is predicted from."""
    files = [
        *sorted((SOURCE / "analyze" / "report" / "templates").glob("*.j2")),
        SOURCE / "analyze" / "doctor" / "experience.csv",
    ]
    return address([file.read_text(encoding="utf-8") for file in files])


def settle(plan: Plan, kinds: list[str]) -> list[Path]:
    """Remove outputs of ``kinds`` that the plan does not name, and parts that killed jobs left behind.

    DVC records directories whole: without this its lock would hold history instead of what was asked for.
    """
    removed = []
    for kind in kinds:
        keep = {DATA / kind / name / key for name, key in plan.names(kind).items()}
        for output in sorted((DATA / kind).glob("*/*")):
            if output not in keep:
                shutil.rmtree(output)
                removed.append(output)
        for name in sorted((DATA / kind).glob("*")):
            if not any(name.iterdir()):
                name.rmdir()
        # DVC wants to see every directory that a stage may write.
        (DATA / kind).mkdir(parents=True, exist_ok=True)
    return removed


def forget(plan: Plan, variants: list[str]) -> list[Path]:
    """Remove a variant's checkpoint, evaluations and decodes, so that the next run makes them again.

    The variant ``base`` is the base model.
    """
    removed = []
    for variant in variants:
        if variant != "base" and variant not in plan.variants:
            raise config.ConfigError(f"{variant}: no such variant; there are {', '.join(['base', *plan.variants])}")
        for kind in ("base", "checkpoints", "evaluations", "harness", "programs", "decodes", "corrections"):
            key = plan.names(kind).get(variant)
            output = DATA / kind / variant / str(key)
            if output.is_dir():
                shutil.rmtree(output)
                removed.append(output)
            store.remove(output)
    (REPORTS / "provenance.json").unlink(missing_ok=True)
    return removed


def failed(plan: Plan) -> dict[str, str]:
    """Variant -> why an output of its could not be made, of those that the plan names; the first reason of each."""
    found: dict[str, str] = {}
    for kind in ("checkpoints", "evaluations", "harness", "programs", "decodes", "corrections"):
        for name in plan.names(kind):
            manifest = Path(plan.manifest(kind, name))
            if manifest.is_file() and name not in found:
                reason = json.loads(manifest.read_text(encoding="utf-8")).get("failure")
                found |= {name: reason} if reason else {}
    return found


def show(plan: Plan) -> str:
    """A line for each kind of output: how many the plan names, how many are there."""
    lines = []
    for kinds in STAGES.values():
        for kind in kinds:
            outputs = plan.manifests(kind)
            there = sum(Path(output).is_file() for output in outputs)
            lines.append(f"{kind:13s} {there:4d} of {len(outputs):4d} there")
    lines.append(f"{'report':13s} {'current' if plan.report_is_current() else 'to be made'}")
    return "\n".join(lines)


def main() -> None:
    """Command line; see the module's docstring."""
    parser = argparse.ArgumentParser(
        prog="python -m hemorrhage.study.plan", description="what a run needs, and where it lies"
    )
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("show", help="what a run would need, and what of it is there")
    settling = commands.add_parser("settle", help="remove outputs that the plan does not name")
    settling.add_argument("kinds", nargs="+", choices=[kind for kinds in STAGES.values() for kind in kinds])
    commands.add_parser("failed", help="name the variants that failed; the exit status is 1 where there are some")
    forgetting = commands.add_parser("forget", help="remove a variant's outputs, so that they are made again")
    forgetting.add_argument("variants", nargs="+")
    arguments = parser.parse_args()
    try:
        plan = Plan.read()
        if arguments.command == "show":
            print(show(plan))
        elif arguments.command == "failed":
            reasons = failed(plan)
            for variant, reason in reasons.items():
                print(f"{variant} failed: {reason}", file=sys.stderr)
            if reasons:
                advice = (
                    f"the next run makes them again after: python -m hemorrhage.study.plan forget {' '.join(reasons)}"
                )
                sys.exit(
                    f"{len(reasons)} of {len(plan.variants) + 1} models failed, reports/ holds the others; {advice}"
                )
        else:
            removed = (
                settle(plan, arguments.kinds) if arguments.command == "settle" else forget(plan, arguments.variants)
            )
            for path in removed:
                print(f"removed {path}")
    except config.ConfigError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
