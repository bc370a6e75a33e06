"""Steps of a training, kept next to the output until that is whole: a killed job resumes after them.

``<out>.resume/training.safetensors`` holds, by the parameters' indices, their values and the optimizer's state of
each, and the state of a generator where one is drawn from in every step; its metadata has the losses so far. What the
learning rate and the batches were follows from their number.
"""

from __future__ import annotations

import itertools
import json
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field
from tqdm import tqdm

from hemorrhage.compress.method import Settings, Wording
from hemorrhage.compress.progress import SECONDS, Progress
from hemorrhage.runtime.artifact import whole
from hemorrhage.runtime.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

FILE = "training.safetensors"

WARM_UP = 0.1
"""Share of the steps over which the learning rate rises."""

CLIP = 1.0
"""Norm that gradients are clipped to."""


class TrainedSettings(Settings):
    """The budget of a training: steps on ``batch`` windows each, and the highest learning rate."""

    words: ClassVar[Mapping[str, Wording]] = {
        "steps": "{} steps",
        "learning_rate": "learning rate {}",
        "batch": "batches of {}",
    }
    always_named: ClassVar[tuple[str, ...]] = ("steps",)

    steps: Annotated[int, Field(ge=1, strict=True)] = 200
    learning_rate: Annotated[float, Field(gt=0, lt=1)] = 2e-5
    batch: Annotated[int, Field(ge=1, strict=True)] = 4

    @property
    def statistics(self) -> tuple[str, ...]:
        """The calibration windows."""
        return ("tokens",)

    @property
    def trained_windows(self) -> int:
        """Windows of all steps."""
        return self.steps * self.batch


class Training:
    """A training of so many ``steps`` by ``optimizer`` and ``schedule``; ``losses``: one for each finished step."""

    def __init__(
        self,
        parameters: Sequence[Tensor],
        optimizer: torch.optim.Optimizer,
        schedule: torch.optim.lr_scheduler.LambdaLR,
        steps: int,
        current: Progress | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        """Put everything where a job before left it; ``generator`` is one that every step draws from.

        ``current`` is None where nothing is kept.
        """
        self._parameters = parameters
        self._optimizer = optimizer
        self._steps = steps
        self._generator = generator
        self._saved = time.monotonic()
        self.losses: list[float] = []
        self._file = current.folder / FILE if current else None
        if self._file and self._file.is_file():
            self._restore(schedule)

    def remaining(self, drawn: Iterator[Tensor], name: str) -> Iterator[Tensor]:
        """Yield the batches of the steps that are not finished; ``name`` labels the progress bar."""
        done = len(self.losses)
        with tqdm(total=self._steps, initial=done, desc=name, unit="step", mininterval=5, leave=False) as progress:
            for batch in itertools.islice(drawn, done, self._steps):
                yield batch
                progress.set_postfix(loss=f"{self.losses[-1]:.3f}", refresh=False)
                progress.update()

    def finish(self, loss: float) -> None:
        """Say that a step is finished; it is written where the last one written was long ago.

        Raises ValueError where ``loss`` is not finite.
        """
        self.losses.append(loss)
        if not math.isfinite(loss):
            raise ValueError(f"the loss is {loss} at step {len(self.losses)} of {self._steps}")
        if self._file is None or time.monotonic() - self._saved < SECONDS:
            return
        from safetensors.torch import save_file

        tensors = {f"{index}": parameter.detach().contiguous() for index, parameter in enumerate(self._parameters)}
        for index, parameter in enumerate(self._parameters):
            tensors |= {f"{index}.{key}": value for key, value in self._optimizer.state.get(parameter, {}).items()}
        if self._generator is not None:
            tensors["generator"] = self._generator.get_state()
        with whole(self._file) as scratch:
            save_file(tensors, scratch, {"losses": json.dumps(self.losses)})
        self._saved = time.monotonic()

    def _restore(self, schedule: torch.optim.lr_scheduler.LambdaLR) -> None:
        from safetensors import safe_open

        with safe_open(self._file, framework="pt") as file:
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118 - not a dict
            self.losses = json.loads(file.metadata()["losses"])
        if self._generator is not None:
            self._generator.set_state(tensors.pop("generator"))
        for name, value in tensors.items():
            index, _, key = name.partition(".")
            parameter = self._parameters[int(index)]
            if key:
                # The optimizer counts its steps on the processor.
                self._optimizer.state[parameter][key] = value if key == "step" else value.to(parameter.device)
            else:
                parameter.data.copy_(value)
        schedule.last_epoch = len(self.losses)
        rates = zip(self._optimizer.param_groups, schedule.base_lrs, schedule.lr_lambdas, strict=True)
        for group, highest, share in rates:
            group["lr"] = highest * share(len(self.losses))


def rate(step: int, steps: int) -> float:
    """Return the share of the highest learning rate at ``step`` of ``steps``: a linear warm-up, then a cosine to 0."""
    warm = math.ceil(WARM_UP * steps)
    if step < warm:
        return (step + 1) / warm
    return 0.5 * (1 + math.cos(math.pi * (step - warm) / max(steps - warm, 1)))


def batches(windows: Tensor, size: int, seed: int) -> Iterator[Tensor]:
    """Return endless batches of ``windows``: all of them in random order, then all in another."""
    generator = torch.Generator().manual_seed(seed)
    left = torch.empty(0, dtype=torch.long)
    while True:
        while len(left) < size:
            left = torch.cat([left, torch.randperm(len(windows), generator=generator)])
        yield windows[left[:size]]
        left = left[size:]


def stored_dtypes(model: PreTrainedModel) -> dict[str, torch.dtype]:
    """Return the dtypes of all parameters and buffers of ``model``, by name."""
    return {name: value.dtype for name, value in (*model.named_parameters(), *model.named_buffers())}


def restore_dtypes(model: PreTrainedModel, dtypes: Mapping[str, torch.dtype]) -> None:
    """Put all parameters and buffers of ``model`` into the dtypes that they had."""
    for name, value in (*model.named_parameters(), *model.named_buffers()):
        value.data = value.data.to(dtypes[name])
