"""The jobs of a plan, and how much work each is."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from hemorrhage.models.memory import Sizes
from hemorrhage.models.sources.files import architecture, contents, tensors
from hemorrhage.study import params as config
from hemorrhage.study.kinds import KINDS, Key
from hemorrhage.study.plan import Plan, evaluable
from hemorrhage.study.work import Load, Shape, Work

USAGE = Path("logs/benchmarks")

ROWS, PAGE = ("rows", "rows"), ("page", "page")
"""The two jobs that make reports/, as keys of jobs."""


@dataclass(frozen=True)
class Job:
    """A job of the plan: what it makes (``kind``, ``name``), by which ``method``, from which other jobs' outputs."""

    kind: str
    name: str
    method: str
    output: Path
    usage: Path
    work: Work
    needs: tuple[Key, ...]

    @property
    def is_done(self) -> bool:
        """Tell whether its output exists."""
        return self.output.is_file()

    @property
    def is_kept(self) -> bool:
        """Tell whether its output is a folder of data/, and not a file of reports/."""
        return self.kind in KINDS


def shape(plan: Plan) -> Shape | None:
    """Return the shape of the plan's model; None where nothing of it is on this machine yet."""
    folder = _folder(plan)
    if (folder / "config.json").is_file():
        counted = sum(math.prod(tensor.shape) for tensor in tensors(contents(folder).weights).values())
        sizes = architecture(folder)
        # A family may leave out what is its default, or have other names still.
        return _shape(sizes, counted) if sizes.keys() >= {"hidden_size", "vocab_size"} else None
    known = config.architecture(plan.params)
    return None if known is None else _shape(known, None)


def sizes(plan: Plan) -> Sizes | None:
    """Return the sizes that the formula of memory reads; None where the model or a formula for it is not known."""
    folder = _folder(plan)
    is_here = (folder / "config.json").is_file()
    known = architecture(folder) if is_here else config.architecture(plan.params)
    return None if known is None else Sizes.of(known)


def _folder(plan: Plan) -> Path:
    """Return the folder of the base, or of the model that it is prepared from."""
    model = plan.params.model
    return Path(model.path) if isinstance(model, config.PathModel) else Path(plan.manifest("base", "base")).parent


def _shape(sizes: config.ModelConfig, counted: int | None) -> Shape:
    width, tied = int(sizes["hidden_size"]), bool(sizes.get("tie_word_embeddings", False))
    embedding, number = int(sizes["vocab_size"]) * width, int(sizes.get("num_hidden_layers") or 1)
    if counted is None:
        heads = int(sizes["num_attention_heads"])
        head = sizes.get("head_dim") or width // heads
        attention = width * head * (2 * heads + 2 * sizes.get("num_key_value_heads", heads))
        mlp = 3 * width * sizes["intermediate_size"]
        return Shape(int(sizes["num_hidden_layers"] * (attention + mlp)), embedding, width, tied, number)
    return Shape(max(counted - embedding * (1 if tied else 2), 1), embedding, width, tied, number)


class Workload:
    """All jobs of a plan. Without a known shape the work of each is zero, and nothing can be predicted."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.shape = shape(plan)

    def on_gpu(self, kind: str, name: str) -> bool:
        """Tell whether a job has use for a GPU."""
        asks = KINDS[kind].on_gpu if kind in KINDS else None
        return asks is not None and asks(self.plan.possible, name)

    @cached_property
    def jobs(self) -> dict[Key, Job]:
        """All jobs by kind and name, in an order in which they can be made."""
        plan = self.plan
        jobs = {
            (kind, name): self._job(kind, name, Path(plan.manifest(kind, name)))
            for kind in KINDS
            for name in plan.names(kind)
        }
        everything = tuple(jobs)
        jobs[ROWS] = self._report(ROWS, plan.rows, "analyze", self._resampled(), everything)
        jobs[PAGE] = self._report(PAGE, plan.page, "page", Work(0, 0, 0), (ROWS,))
        return jobs

    def job(self, kind: str, name: str) -> Job:
        """Return a job of the plan, or of what could be added to it."""
        return self.jobs.get((kind, name)) or self._job(kind, name, Path(self.plan.manifest(kind, name)))

    def _job(self, kind: str, name: str, output: Path) -> Job:
        plan, row = self.plan, KINDS[kind]
        usage = USAGE / kind / f"{name}-{plan.address(kind, name)}.tsv"
        work = Work(0, 0, 0)
        if self.shape is not None:
            load = Load(plan.possible, self.shape, self._evaluation_tokens)
            work = Work(1e-9 * self.shape.parameters, row.stored(load, name), row.arithmetic(load, name))
        variant = plan.possible.variants.get(name)
        method = variant.method if variant else ""
        if variant and variant.settings.propagates:
            method += " sequential"
        return Job(kind, name, method, output, usage, work, tuple(row.needs(plan.possible, name)))

    def _evaluation_tokens(self, corpus: str) -> int:
        tokens = evaluable(Path(self.plan.manifest("texts", corpus)))
        return tokens.get("evaluation", 100_000)

    def _report(self, key: Key, address: str, logs: str, work: Work, needs: tuple[Key, ...]) -> Job:
        marker = Path(f".snakemake/current/{self.plan.marker(address)}")
        return Job(*key, "", marker, USAGE / logs / f"{self.plan.marker(address)}.tsv", work, needs)

    def _resampled(self) -> Work:
        draws = self.plan.params.analyze.resamples * (1 + len(self.plan.variants))
        return Work(0, 0, 1e-6 * draws)
