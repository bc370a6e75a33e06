"""The training loop: AdamW, clipped gradients, a schedule, and a state from which a killed job continues."""

from __future__ import annotations

import contextlib
import ctypes
import logging
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hemorrhage.train.objectives import Objective
from hemorrhage.train.schedule import rate
from hemorrhage.train.spec import Training
from hemorrhage.train.state import Curve, State

if TYPE_CHECKING:
    from torch.optim import AdamW
    from transformers import PreTrainedModel

MEASUREMENTS = 10
"""Times that the held-out loss is measured along a training."""

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4
"""Parameters of glibc's mallopt."""

LOG_SECONDS = 20.0

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Trained:
    """What a training leaves besides the model; ``tokens_per_second``: since the job's last start."""

    curve: Curve
    tokens_per_second: float


def train(
    model: PreTrainedModel,
    objective: Objective,
    spec: Training,
    resume: Path,
    keep: Callable[[int], None] = lambda _tokens: None,
) -> Trained:
    """Train ``model`` for ``objective``; return its curve. ``resume``: folder of the state of a job that was killed.

    ``keep`` is called with each of ``spec["keep"]`` after the step at which so many tokens have been read. On one
    machine the same arguments give the same bits, killed in between or not.
    """
    optimizer = adamw(model, spec)
    state = State(resume, model, optimizer)
    curve = state.restore()
    if curve:
        log.info("continues after step %d of %d", len(curve), objective.steps)
    measured = {math.ceil(number * objective.steps / MEASUREMENTS) for number in range(1, MEASUREMENTS + 1)}
    model.train()
    began = said = time.monotonic()
    first = len(curve)
    with deterministic():
        for step in range(first, objective.steps):
            loss, norm = _update(model, optimizer, objective, spec, step)
            heldout = math.nan
            if step + 1 in measured:
                # What the last step did is seen here alone.
                heldout = _finite(objective.heldout(model), "held-out loss", step)
            curve.append((loss, heldout, norm))
            for tokens in spec["keep"]:
                if objective.tokens(step) < tokens <= objective.tokens(step + 1):
                    keep(tokens)
            state.save(curve)
            if time.monotonic() - said > LOG_SECONDS or step + 1 == objective.steps:
                said = time.monotonic()
                log.info("step %d of %d: loss %.4f, held out %.4f", step + 1, objective.steps, loss, heldout)
    seconds = time.monotonic() - began
    return Trained(curve, (objective.tokens(objective.steps) - objective.tokens(first)) / max(seconds, 1e-9))


def _update(
    model: PreTrainedModel, optimizer: AdamW, objective: Objective, spec: Training, step: int
) -> tuple[float, float]:
    """Take a step; return the loss before it and the norm of its gradients before they are cut."""
    import torch

    chosen = spec["optimizer"]
    for group in optimizer.param_groups:
        group["lr"] = rate(step, objective.steps, chosen["learning_rate"], spec["schedule"])
    optimizer.zero_grad()
    loss = objective.backward(model, step)
    _finite(loss, "loss", step)
    norm = float(torch.nn.utils.clip_grad_norm_(model.parameters(), chosen["clip"]))
    optimizer.step()
    return loss, norm


def _finite(value: float, name: str, step: int) -> float:
    """Return a loss. Raises FloatingPointError where the training has diverged."""
    if not math.isfinite(value):
        raise FloatingPointError(f"the {name} of step {step + 1} is {value}: the training has diverged")
    return value


def adamw(model: PreTrainedModel, spec: Training) -> AdamW:
    """Make AdamW for the parameters that learn. Gains and biases, which are vectors, do not decay."""
    from torch.optim import AdamW

    chosen = spec["optimizer"]
    learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [each for each in learning if each.ndim >= 2], "weight_decay": chosen["weight_decay"]},
        {"params": [each for each in learning if each.ndim < 2], "weight_decay": 0.0},
    ]
    beta1, beta2 = chosen["betas"]
    return AdamW(
        [group for group in groups if group["params"]],
        lr=chosen["learning_rate"],
        betas=(beta1, beta2),
        eps=chosen["epsilon"],
        fused=True,
    )


@contextlib.contextmanager
def deterministic() -> Iterator[None]:
    """Let torch choose only what gives the same bits each time, inside the context."""
    import torch

    filling: Any = torch.utils.deterministic
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    filled = filling.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True)
    # What is read is written before.
    filling.fill_uninitialized_memory = False
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
        filling.fill_uninitialized_memory = filled


def keep_freed_memory() -> None:
    """Let the process keep what it frees: a step frees and takes the same large tensors, and each page anew is slow."""
    with contextlib.suppress(OSError, AttributeError):
        libc = ctypes.CDLL("libc.so.6")
        for parameter, value in ((M_MMAP_MAX, 0), (M_TRIM_THRESHOLD, 2**31 - 1), (M_TOP_PAD, 2**26)):
            libc.mallopt(parameter, value)
