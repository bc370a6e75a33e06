"""The jobs of a plan, and how much work each is: what the cost model is fitted on and predicts from.

Work is counted, not measured: parameters that are read and written, and arithmetic in 10¹² floating-point operations
(a product of a token with a weight is two). How long that takes is the model's business (hemorrhage.study.costs.model).
"""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from hemorrhage.study import params as config
from hemorrhage.study.plan import STAGES, Plan

USAGE = Path("logs/benchmarks")

KINDS = tuple(kind for kinds in STAGES.values() for kind in kinds)

ITEM_TOKENS = {"tasks": 6, "harness": 500, "programs": 400}
"""Tokens that an item of a task costs, about: of a probe few, since items share what they begin with. Their price is
what is fitted."""

ON_GPU = ("calibrations", "gradients", "references", "evaluations", "harness", "programs", "decodes", "corrections")
"""Kinds whose jobs run the model where HEMORRHAGE_DEVICE says; the others stay on the processor. Of the compress step
the methods with ``on_gpu`` do."""


@dataclass(frozen=True)
class Work:
    """``parameters`` of the model in 10⁹; ``stored`` the same as written to disk, in 16-bit numbers; ``arithmetic``
    in 10¹² operations."""

    parameters: float
    stored: float
    arithmetic: float


@dataclass(frozen=True)
class Job:
    """A job of the plan: what it makes (``kind``, ``name``), by which ``method``, from which other jobs' outputs."""

    kind: str
    name: str
    method: str
    output: Path
    usage: Path
    work: Work
    needs: tuple[tuple[str, str], ...]

    @property
    def there(self) -> bool:
        """Whether its output is there."""
        return self.output.is_file()


@dataclass(frozen=True)
class Shape:
    """Parameters of a model: of its blocks, of a token's embedding table, and the width of its states."""

    blocks: int
    embedding: int
    width: int
    tied: bool

    @property
    def parameters(self) -> int:
        """Of everything that is stored."""
        return self.blocks + self.embedding * (1 if self.tied else 2)

    def forward(self, tokens: float) -> float:
        """10¹² operations of reading so many tokens, logits included."""
        return 2e-12 * tokens * (self.blocks + self.embedding)


def shape(plan: Plan) -> Shape | None:
    """Shape of the plan's model; None where nothing of it is on this machine yet."""
    folder = Path(plan.manifest("base", "base")).parent
    model = plan.params.model
    if isinstance(model, config.PathModel):
        folder = Path(model.path)
    if (folder / "config.json").is_file():
        facts = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        counted = sum(map(_elements, folder.glob("*.safetensors")))
        return _shape(facts, counted)
    known = config.architecture(plan.params)
    return None if known is None else _shape(known, None)


def _shape(facts: dict[str, Any], counted: int | None) -> Shape:
    width, tied = int(facts["hidden_size"]), bool(facts.get("tie_word_embeddings", False))
    embedding = int(facts["vocab_size"]) * width
    if counted is None:
        heads = int(facts["num_attention_heads"])
        head = facts.get("head_dim") or width // heads
        attention = width * head * (2 * heads + 2 * facts.get("num_key_value_heads", heads))
        mlp = 3 * width * facts["intermediate_size"]
        return Shape(int(facts["num_hidden_layers"] * (attention + mlp)), embedding, width, tied)
    return Shape(max(counted - embedding * (1 if tied else 2), 1), embedding, width, tied)


def _elements(file: Path) -> int:
    """Numbers in a safetensors file, by its header."""
    with file.open("rb") as stream:
        (length,) = struct.unpack("<Q", stream.read(8))
        header = json.loads(stream.read(length))
    total = 0
    for name, entry in header.items():
        if name != "__metadata__":
            count = 1
            for size in entry["shape"]:
                count *= size
            total += count
    return total


def _output(manifest: str) -> tuple[str, str]:
    """Kind and name of the output that a manifest of the plan belongs to."""
    return Path(manifest).parts[1], Path(manifest).parts[2]


class Workload:
    """All jobs of a plan. Without a known shape the work of each is zero, and nothing can be predicted."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.shape = shape(plan)

    def on_gpu(self, kind: str, name: str) -> bool:
        """Whether a job has use for a GPU."""
        if kind == "checkpoints":
            return self.plan.variants[name].settings.on_gpu
        return kind in ON_GPU

    @cached_property
    def jobs(self) -> dict[tuple[str, str], Job]:
        """(kind, name) -> job, in an order in which they can be made."""
        found = {
            (kind, name): self._job(kind, name, Path(self.plan.manifest(kind, name)))
            for kind in KINDS
            for name in self.plan.names(kind)
        }
        everything = tuple(found)
        report = Path(f".snakemake/current/{self.plan.report}")
        usage = USAGE / "analyze" / f"{self.plan.report}.tsv"
        found["report", "report"] = Job("report", "report", "", report, usage, self._report(), everything)
        return found

    def _job(self, kind: str, name: str, output: Path) -> Job:
        plan = self.plan
        usage = USAGE / kind / f"{name}-{plan.names(kind)[name]}.tsv"
        work = Work(0, 0, 0) if self.shape is None else self._work(kind, name, self.shape)
        variant = plan.variants.get(name)
        method = variant.method if variant else ""
        if variant and variant.settings.propagates:
            method += " sequential"
        return Job(kind, name, method, output, usage, work, tuple(self._needs(kind, name)))

    def _needs(self, kind: str, name: str) -> list[tuple[str, str]]:
        plan, base = self.plan, ("base", "base")
        calibrated = [("calibrations", each) for each in plan.calibrations]
        if kind in ("base", "relatives", "tasks", "benchmarks"):
            return []
        if kind == "texts":
            return [base]
        if kind == "calibrations":
            return [base, *(("texts", corpus) for corpus in plan.params.calibrate.corpora)]
        if kind == "gradients":
            return [base, *calibrated]
        if kind == "checkpoints":
            parts = [("gradients", part) for part in plan.gradients_of(name)]
            earlier = [("checkpoints", each) for each in plan.variants[name].after]
            return [base, *(calibrated if plan.needs_calibration(name) else []), *parts, *earlier]
        if kind == "references":
            return [base, *(("texts", each) for each in plan.params.evaluate.corpora), *self._tasks()]
        if kind == "evaluations":
            return [self._model(name), ("references", "base"), *self._tasks()]
        if kind == "decodes":
            tasks = map(_output, (plan.measures(name), *plan.asked("closed"), *plan.asked("open")))
            return [self._model(name), *tasks]
        if kind == "corrections":
            return [self._model(name), base, ("references", "base")]
        if kind in ("harness", "programs"):
            asked = getattr(plan.params.evaluate, kind).tasks
            return [self._model(name), base, *(("benchmarks", task) for task in asked)]
        return [self._model(name)]

    def _model(self, name: str) -> tuple[str, str]:
        return _output(self.plan.checkpoint(name))

    def _tasks(self) -> list[tuple[str, str]]:
        return [("tasks", task) for task in self.plan.params.evaluate.tasks]

    def _work(self, kind: str, name: str, shape: Shape) -> Work:
        params = self.plan.params
        calibration = params.calibrate.samples * params.calibrate.length
        arithmetic = {
            "calibrations": lambda: shape.forward(calibration),
            "gradients": lambda: 3 * shape.forward(calibration),
            "checkpoints": lambda: self._altering(name, shape, calibration),
            "references": lambda: shape.forward(self._read(ablated=False)),
            # The head is multiplied with the base model's states once more.
            "evaluations": lambda: (
                shape.forward(self._read(name in params.evaluate.inside.ablate))
                + 2e-12 * self._windows() * shape.embedding
            ),
            "harness": lambda: shape.forward(self._asked("harness")),
            "programs": lambda: shape.forward(self._asked("programs")),
            "corrections": lambda: shape.forward(self._windows()),
            "decodes": lambda: shape.forward(self._generated()),
        }.get(kind, lambda: 0.0)()
        parameters = 1e-9 * shape.parameters
        stored = parameters if kind in ("base", "relatives") else 0.0
        if kind == "calibrations":
            # Second moments of the inputs: about half a float32 for each weight.
            stored = 1e-9 * shape.blocks
        if kind == "gradients":
            stored = 2e-9 * shape.blocks
        if kind == "checkpoints":
            stored = self._stored(name, shape)
        return Work(parameters, stored, arithmetic)

    def _altering(self, name: str, shape: Shape, calibration: int) -> float:
        """Arithmetic of a method: solving with second moments, and passes over the calibration set."""
        settings = self.plan.variants[name].settings
        total = 2e-12 * shape.blocks * shape.width if "hessian" in settings.statistics else 0.0
        streams = settings.propagates or self.plan.variants[name].on is not None
        if "tokens" in settings.statistics or (streams and settings.statistics):
            total += 2 * shape.forward(calibration)
        return total

    def _stored(self, name: str, shape: Shape) -> float:
        bits = self.plan.variants[name].settings.code_bits
        share = 1.0 if bits is None else min(bits, 16) / 16
        return 1e-9 * (shape.blocks * share + (shape.parameters - shape.blocks))

    def _windows(self) -> float:
        """Tokens of all windows of an evaluation."""
        evaluate = self.plan.params.evaluate
        if evaluate.windows != "all":
            return float(len(evaluate.corpora) * evaluate.windows * evaluate.window)
        total = 0.0
        for corpus in evaluate.corpora:
            manifest = Path(self.plan.manifest("texts", corpus))
            there = json.loads(manifest.read_text(encoding="utf-8")) if manifest.is_file() else {}
            total += there.get("tokens", {}).get("evaluation", 100_000)
        return total

    def _read(self, ablated: bool) -> float:
        """Tokens that an evaluation reads."""
        evaluate, data = self.plan.params.evaluate, self.plan.params.data
        items = len(evaluate.tasks) * data.items * ITEM_TOKENS["tasks"]
        looked = evaluate.inside.windows * evaluate.inside.window
        blocks = 10 if ablated else 1
        return self._windows() + items + looked * 3 * blocks

    def _asked(self, kind: str) -> float:
        chosen = self.plan.params.evaluate.harness if kind == "harness" else self.plan.params.evaluate.programs
        items = 1000 if chosen.items == "all" else chosen.items
        tokens = chosen.new_tokens if isinstance(chosen, config.Programs) else 0
        return float(len(chosen.tasks) * items * (ITEM_TOKENS[kind] + tokens))

    def _generated(self) -> float:
        """Tokens that a decoding sweep generates, each as often as its strategy computes it."""
        decode = self.plan.params.decode
        tokens = sum(entry.items * entry.new_tokens for entry in decode.closed)
        tokens += sum(entry.items * ((entry.prefix or 0) + entry.new_tokens) for entry in decode.open)
        times = 0
        for settings in self.plan.decoding["strategies"].values():
            candidates = settings["k"] + 1 if settings["strategy"].startswith(("contrastive_s", "fsd")) else 1
            times += settings.get("beams", candidates)
        return float(times * tokens)

    def _report(self) -> Work:
        draws = self.plan.params.analyze.resamples * (1 + len(self.plan.variants))
        return Work(0, 0, 1e-6 * draws)
