"""Resources that each rule asks for: threads, memory, time and GPU, from the cost model, with room for its error.

From the committed coefficients alone, so that a job asks for the same on every day; a job that was killed for what it
asked for asks for more the next time (``attempt``, with Snakemake's ``retries``).
"""

from __future__ import annotations

import math
import re

from hemorrhage.study.costs.jobs import ROWS, Workload
from hemorrhage.study.costs.model import Costs, read_coefficients
from hemorrhage.study.kinds import KINDS

UNKNOWN = {"threads": 2, "mem_mb": 16000, "minutes": 120}
"""The request where the model is not on this machine yet, so that its size is not known."""


BY_BLOCKS = ("rtn", "gptq", "awq", "magnitude", "wanda", "sparsegpt")
"""Methods that hold one block at a time: a peak of 2.1 GB was measured of GPTQ of 12.6 GB (docs/benchmarks.md)."""


class Requests:
    """The resources of a plan's jobs; ``gpu``: GPUs that a job which runs the model asks for."""

    def __init__(self, workload: Workload, costs: Costs, gpu: int = 0) -> None:
        self.workload, self.costs, self.gpus = workload, costs, gpu
        self.safety = read_coefficients()["safety"]

    def seconds(self, kind: str, name: str) -> float:
        """Return the predicted CPU seconds."""
        return self.costs.predict(self.workload.job(kind, name)).cpu_s

    def threads(self, kind: str, name: str) -> int:
        """Return the threads: one until a job takes ten minutes, then a power of two, at most 16; two of ``ROWS``."""
        if self.workload.shape is None:
            return UNKNOWN["threads"]
        if (kind, name) == ROWS:
            # Nothing else is left to run: what nothing waits for runs aside.
            return 2
        worth = 10 if kind in KINDS and KINDS[kind].is_awaited else 300
        return 1 << min(4, max(0, int(math.log2(max(self.seconds(kind, name) / worth, 1)))))

    def memory(self, kind: str, name: str) -> float:
        """Return the predicted memory in MB: what the plan says, and what rules ask for with room for its error.

        A model that takes more than ``evaluate.memory_gb`` in float32 is read block by block: then two blocks are in
        memory, one that computes and one that is read, the embedding and the head. Calibrating and some methods always
        do so, and hold second moments of a layer's inputs.
        """
        job = self.workload.job(kind, name)
        predicted = self.costs.predict(job).rss_mb
        shape, limit = self.workload.shape, 1e9 * self.workload.plan.params.evaluate.memory_gb
        if shape is None or kind not in KINDS or 4 * shape.parameters <= limit:
            return predicted
        block = shape.blocks / shape.number
        held = 4e-6 * (2 * block + 2 * shape.embedding)
        if KINDS[kind].by_blocks:
            return min(predicted, self.costs.started(kind) + held)
        if kind == "calibrations" or job.method.removesuffix(" sequential") in BY_BLOCKS:
            # The widest input is that of the MLP's last layer: of a block's weights three matrices have it.
            moments = 4e-6 * 3 * max(shape.width, block / (3 * shape.width)) ** 2
            return min(predicted, self.costs.started(kind) + held + moments)
        return predicted

    def mem_mb(self, kind: str, name: str, attempt: int = 1) -> int:
        """Return the memory in MB, twice as much for each attempt."""
        if self.workload.shape is None:
            return UNKNOWN["mem_mb"] << (attempt - 1)
        least = max(self.safety["memory"] * self.memory(kind, name), self.safety["least_mb"])
        return math.ceil(least / 100) * 100 << (attempt - 1)

    def minutes(self, kind: str, name: str, attempt: int = 1) -> int:
        """Return the wall-clock minutes, three times as many for each attempt."""
        if self.workload.shape is None:
            return UNKNOWN["minutes"] * int(3 ** (attempt - 1))
        wall = self.seconds(kind, name) / self.threads(kind, name)
        least = max(self.safety["time"] * wall / 60, self.safety["least_minutes"])
        return math.ceil(least) * int(3 ** (attempt - 1))

    def gpu(self, kind: str, name: str = "") -> int:
        """Return the number of GPUs: none for steps, and methods of the compress step, that stay on the CPU."""
        return self.gpus if self.workload.on_gpu(kind, name) else 0

    def names_pattern(self, kind: str, on_gpu: bool) -> str:
        """Make the regular expression of a kind's jobs that ask for a GPU, or for none."""
        names = [name for name in self.workload.plan.possible_names(kind) if bool(self.gpu(kind, name)) == on_gpu]
        return "|".join(map(re.escape, names)) or "(?!)"
