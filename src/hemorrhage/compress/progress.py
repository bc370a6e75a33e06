"""Blocks whose alteration is finished, kept next to the output until that is whole: a killed job resumes after them.

``<out>.resume/<block>.safetensors`` holds what the block is made of by then: its parameters and the tensors of its
forms, by the names they have in the model; its metadata key ``schemes`` is a JSON object {layer: group of
compressed-tensors' configuration}. The address of the output names settings, code and inputs, so that nothing else can
ever lie there.

Once it is on disk, a block's tensors are those of the file, mapped into memory: the kernel takes their pages back when
it needs them, which is why a model that is altered may be larger than memory. Blocks of a job that takes seconds and of
a model that is small are not written at all.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from hemorrhage.models.blocks import blocks
from hemorrhage.models.stream import TensorFile
from hemorrhage.runtime.artifact import resuming, whole

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import PreTrainedModel

    from hemorrhage.calibrate.reader import Statistics
    from hemorrhage.models.formats.config import QuantizationScheme

T = TypeVar("T")

SECONDS = 30.0
"""Work that may be lost."""

BYTES = 2**28
"""Finished tensors that may stay in memory only."""


class Progress:
    """The finished blocks of one output, in ``folder``."""

    def __init__(self, folder: Path) -> None:
        """``folder`` need not be there."""
        self.folder = folder
        self._waiting: list[int] = []
        self._bytes = 0
        self._saved = time.monotonic()

    def done(self, index: int) -> bool:
        """Return whether a block was finished by a job before."""
        return self._file(index).is_file()

    def restore(self, model: PreTrainedModel, index: int) -> None:
        """Make a block of ``model`` what it was when it was finished."""
        from safetensors import safe_open

        from hemorrhage.models.emulation import install
        from hemorrhage.models.formats import reader, storage

        with safe_open(self._file(index), framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
            schemes: dict[str, QuantizationScheme] = json.loads(file.metadata()["schemes"])
        groups: dict[str, QuantizationScheme] = {
            name: {**scheme, "targets": [name]} for name, scheme in schemes.items()
        }
        plain, packed = reader.read(tensors, {"config_groups": groups})
        for name, form in packed.items():
            if name in schemes:
                form.scheme = schemes[name]
            layer: Any = model.get_submodule(name)
            form.bias = layer.bias
            storage.replace(model, name, form)
            install.round_inputs(name, form)
        for name, value in plain.items():
            path, _, parameter = name.rpartition(".")
            getattr(model.get_submodule(path), parameter).data = value

    def finish(self, model: PreTrainedModel, index: int) -> None:
        """Say that a block is finished; it is written where that was long ago, or much waits to be."""
        self._waiting.append(index)
        self._bytes += sum(value.nbytes for value in _tensors(model, index)[0].values())
        if time.monotonic() - self._saved < SECONDS and self._bytes < BYTES:
            return
        for each in self._waiting:
            self._write(model, each)
        self._waiting, self._bytes, self._saved = [], 0, time.monotonic()

    def _write(self, model: PreTrainedModel, index: int) -> None:
        tensors, schemes = _tensors(model, index)
        shapes, dtypes = ({name: getattr(value, of) for name, value in tensors.items()} for of in ("shape", "dtype"))
        metadata = {"schemes": json.dumps(schemes)}
        with whole(self._file(index)) as scratch, TensorFile(scratch, shapes, dtypes, metadata) as file:
            file.write(tensors.values())
        del tensors
        self.restore(model, index)

    def _file(self, index: int) -> Path:
        return self.folder / f"{index}.safetensors"


@contextlib.contextmanager
def keep_progress(out: Path) -> Iterator[Progress]:
    """Keep finished blocks next to ``out`` inside the context; remove them afterwards, unless killed or out of disk."""
    with resuming(out) as folder:
        yield Progress(folder)


def remaining(
    model: PreTrainedModel, items: Mapping[str, T], progress: Progress | None, statistics: Statistics | None = None
) -> Iterator[tuple[str, T]]:
    """Return ``items`` by linear layer, block by block, without the blocks that a job before has finished.

    A block is finished when the item after its last is requested. For the others see ``runs``.
    """
    for run in runs(model, items, 1, progress, statistics):
        yield from run.items()


def runs(
    model: PreTrainedModel,
    items: Mapping[str, T],
    at_once: int,
    progress: Progress | None,
    statistics: Statistics | None = None,
) -> Iterator[dict[str, T]]:
    """Return ``items`` by linear layer, ``at_once`` blocks after the other, without those that a job has finished.

    Those are restored where it is their turn, after ``statistics`` have seen them as they were. Blocks are finished
    when the next are requested. ``progress`` is None where nothing is resumed.
    """
    block_of = {name: index for index, inside in enumerate(_inside(model)) for name in inside}
    order = sorted(items, key=block_of.__getitem__)
    run: dict[str, T] = {}
    indices: list[int] = []
    for index, names in itertools.groupby(order, key=block_of.__getitem__):
        if progress is not None and progress.done(index):
            if statistics is not None:
                statistics.see(index)
            progress.restore(model, index)
            continue
        run |= {name: items[name] for name in names}
        indices.append(index)
        if len(indices) == at_once:
            yield run
            _finish(model, indices, progress)
            run, indices = {}, []
    if indices:
        yield run
        _finish(model, indices, progress)


def _finish(model: PreTrainedModel, indices: list[int], progress: Progress | None) -> None:
    if progress is not None:
        for index in indices:
            progress.finish(model, index)


def _inside(model: PreTrainedModel) -> list[list[str]]:
    """Return the names of the modules in each block."""
    names = {module: name for name, module in model.named_modules()}
    return [[names[module] for module in block.modules()] for block in blocks(model)]


def _tensors(model: PreTrainedModel, index: int) -> tuple[dict[str, Tensor], dict[str, QuantizationScheme]]:
    """Return the tensors of a block, by name, and the schemes of its packed layers."""
    from hemorrhage.models.formats.storage import formatted_layers

    block: nn.Module = blocks(model)[index]
    prefix = next(name for name, module in model.named_modules() if module is block)
    packed = formatted_layers(block)
    inside = tuple(f"{name}." for name in packed)
    tensors = {
        f"{prefix}.{name}": value
        for name, value in block.state_dict().items()
        if not name.startswith(inside) or name.endswith(".bias")
    }
    for name, form in packed.items():
        tensors |= {f"{prefix}.{name}.{suffix}": value for suffix, value in form.stored().items()}
    schemes = {f"{prefix}.{name}": form.scheme for name, form in packed.items() if form.scheme is not None}
    return tensors, schemes
