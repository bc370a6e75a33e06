"""Putting the residual stream in another basis: who writes to it, which norms read it, what reads these; by trying.

Layers are made to give a constant vector, and who gets it is looked at. With all layers silent that could write, a norm
that reads the stream gets what entered the block. A layer that reads this norm gets what the norm gives. A layer writes
if what it gives, and nothing else, is added to what leaves the block. In the end the block is turned: in the other
basis it has to compute what it did. Whatever else a family does (a norm behind what is written, numbers added to the
embeddings) shows here, and is refused.
"""

from __future__ import annotations

import contextlib
import copy
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from hemorrhage.models.blocks import blocks, decoder
from hemorrhage.models.hadamard import MeanKept, factors, rotation
from hemorrhage.models.head import head_of, stored_name
from hemorrhage.models.refused import RefusedError
from hemorrhage.runtime.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import PreTrainedModel

    from hemorrhage.models.blockwise import BlockArguments

TOKENS = 6
CLOSE = 1e-3
"""Of the largest number: float32 in another basis differs by 1e-5 of it, what does not turn with the stream by more."""

SEED = 5


class Basis(Protocol):
    """An orthogonal matrix Q."""

    def rotate(self, x: Tensor) -> Tensor:
        """Return ``x Q`` of rows float32 [..., n]."""


@dataclass(frozen=True)
class Norm:
    """A norm of the stream, which gives ``x̂ · gain + shift``.

    ``subtracts_mean``: x̂ has no mean (a layer norm). ``offset``: what is added to the weight (Gemma's 1). Without
    weight or bias the gain is one and the shift None.
    """

    module: Any
    width: int
    subtracts_mean: bool
    offset: float

    @property
    def gain(self) -> Tensor:
        """What x̂ is multiplied with: float32 [n]."""
        weight = getattr(self.module, "weight", None)
        return torch.ones(self.width) if weight is None else weight.detach().float().clone() + self.offset

    @property
    def shift(self) -> Tensor | None:
        """What is added then: float32 [n]; None where that is nothing."""
        bias = getattr(self.module, "bias", None)
        return None if bias is None or not bias.detach().any() else bias.detach().float().clone()

    @property
    def epsilon(self) -> float:
        """What is added to the mean square, measured: to four digits."""
        twin = copy.deepcopy(self).to_float()
        twin.make_plain()
        x = 1e-3 * torch.randn(self.width, generator=torch.Generator().manual_seed(SEED))
        x -= x.mean()
        before, after = x.double().square().mean().item(), twin.module(x).double().square().mean().item()
        return float(f"{max(before / after - before, 0.0):.4g}")

    def to_float(self) -> Norm:
        """Make the module float32."""
        self.module.float()
        return self

    def make_plain(self, shift: Tensor | None = None) -> None:
        """Make the gain one and the shift ``shift`` [n], or nothing."""
        if getattr(self.module, "weight", None) is not None:
            self.module.weight.data.fill_(1 - self.offset)
        if getattr(self.module, "bias", None) is not None:
            self.module.bias.data.copy_(torch.zeros(self.width) if shift is None else shift)


@dataclass(frozen=True)
class Stage:
    """A state of the stream inside a block: who reads it, and who writes between it and the next.

    ``reads``: norm, or None for the stream itself -> the layers that read it, all names in the block. ``writers``:
    layers, by the block's own names; ``gives`` the factor with which each is added.
    """

    reads: Mapping[str | None, tuple[str, ...]]
    writers: tuple[str, ...]
    gives: Mapping[str, float]


@dataclass(frozen=True)
class Stream:
    """Names in the model of all that has to do with its residual stream, and the stages of each block.

    ``readers``: layer -> its norm, or None where it reads the stream itself; ``writers``: layers and embeddings;
    ``last``: the norm before the head, None where there is none; ``scale``: the factor of the embeddings, None where
    what enters the first block is not in proportion to them.
    """

    width: int
    norms: Mapping[str, Norm]
    readers: Mapping[str, str | None]
    writers: tuple[str, ...]
    stages: tuple[tuple[Stage, ...], ...]
    last: str | None
    scale: float | None

    @property
    def keeps_mean(self) -> bool:
        """Whether a basis has to leave the mean of the stream's features, which some norm subtracts, as it is."""
        return any(norm.subtracts_mean for norm in self.norms.values())

    @property
    def is_centred(self) -> bool:
        """Whether nothing reads the mean of the stream's features: all that reads it are norms that subtract it."""
        return None not in self.readers.values() and all(norm.subtracts_mean for norm in self.norms.values())

    def readers_of(self, norm: str) -> list[str]:
        """Return the layers that read a norm."""
        return [name for name, of in self.readers.items() if of == norm]


def find_stream(model: PreTrainedModel) -> Stream:
    """Return what reads and writes the residual stream of ``model``, which stays as it is.

    Tried on one block of each structure; blocks of a structure are alike. Raises RefusedError where the stream can't be
    put in another basis.
    """
    from hemorrhage.models.blockwise import embed, in_float32

    _refuse_other_writers(model)
    names = {module: name for name, module in model.named_modules()}
    tokens = torch.arange(1, TOKENS + 1, device=model.device)[None]
    norms: dict[str, Norm] = {}
    readers: dict[str, str | None] = {}
    writers: list[str] = []
    of_blocks: list[tuple[Stage, ...]] = []
    with torch.no_grad():
        (states,), arguments = embed(model, (tokens,))
        width = states.shape[-1]
        tables, scale = _embeddings(model, width, tokens)
        writers += tables
        known: dict[Any, tuple[Stage, ...]] = {}
        for index, block in enumerate(blocks(model)):
            structure = tuple((name, type(module)) for name, module in block.named_modules())
            if structure not in known:
                with in_float32(block):
                    known[structure] = _Trial(block, names[block], arguments[index], width).stages()
            of_blocks.append(known[structure])
            prefix = names[block]
            for stage in known[structure]:
                for norm, layers in stage.reads.items():
                    if norm is not None:
                        kind = norm_of(block.get_submodule(norm), width)
                        assert kind is not None
                        norms[f"{prefix}.{norm}"] = kind
                    readers |= {f"{prefix}.{layer}": norm and f"{prefix}.{norm}" for layer in layers}
                writers += [f"{prefix}.{layer}" for layer in stage.writers]
        last, reader = _ending(model, width, tokens)
        if last is not None:
            module = model.get_submodule(last)
            norms[last] = norm_of(module, width) or _refuse(model, f"{last} is no norm that a basis can go through")
        readers[reader] = last
    return Stream(width, norms, readers, tuple(writers), tuple(of_blocks), last, scale)


def norm_of(module: Any, width: int) -> Norm | None:
    """Return what kind of norm of ``width`` features a module is, or None where it is none that turns with its input.

    Without its weight and bias it gives the same for twice the input, and for a turned input the turned output.
    """
    twin = copy.deepcopy(module).float()
    parameters = dict(twin.named_parameters())
    if parameters.keys() - {"weight", "bias"} or any(value.shape != (width,) for value in parameters.values()):
        return None
    generator = torch.Generator().manual_seed(SEED)
    x = 8 * torch.randn(4, width, generator=generator)
    actual = twin(x)
    for value in parameters.values():
        value.data.zero_()
    offset = 0.0
    if "weight" in parameters:
        silent = twin(x)
        twin.weight.data.fill_(1)
        plain = twin(x)
        offset = 0.0 if _close(silent, torch.zeros_like(x)) else 1.0
        if offset and not _close(2 * silent, plain):
            return None
        twin.weight.data.fill_(1 - offset)
    plain = twin(x)
    if not _close(twin(4 * x), plain):
        return None
    any_basis = rotation(SEED, *factors(width)[:2], from_hadamard=factors(width)[2])
    bases: tuple[tuple[bool, Basis], ...] = ((False, any_basis), (True, MeanKept.of(any_basis)))
    for subtracts_mean, basis in bases:
        if _close(twin(basis.rotate(x)), basis.rotate(plain)):
            norm = Norm(module, width, subtracts_mean, offset)
            shift = norm.shift
            expected = plain * norm.gain
            return norm if _close(expected if shift is None else expected + shift, actual) else None
    return None


def stream_basis(width: int, keeps_mean: bool, seed: int) -> Basis:
    """Return a random basis for a stream of ``width`` features: a Hadamard matrix with random signs where there is one.

    ``keeps_mean``: the vector of ones stays where it is, so that the mean of all features does.
    """
    left, right, from_hadamard = factors(width)
    if not from_hadamard:
        left, right = 1, width
    basis = rotation(seed, left, right, from_hadamard=from_hadamard)
    return MeanKept.of(basis) if keeps_mean else basis


def _refuse_other_writers(model: PreTrainedModel) -> None:
    if model.config.get_text_config(decoder=True) is not model.config:
        _refuse(model, "what it makes of images is written to the stream, too, and is not turned with it")


def _refuse(model: nn.Module, why: str) -> Any:
    raise RefusedError(f"the residual stream of {type(model).__name__} can't be turned: {why}")


def find_adders(model: PreTrainedModel, stream: Stream) -> list[tuple[str, ...]]:
    """Return for each stage of each block a module whose output is added to the stream, with the same factor always.

    It is one of the stage's writers, or a mixture of experts. Raises RefusedError where a stage has none.
    """
    from hemorrhage.models.blockwise import embed, in_float32

    names = {module: name for name, module in model.named_modules()}
    adders: list[tuple[str, ...]] = []
    known: dict[Any, tuple[str, ...]] = {}
    with torch.no_grad():
        _, arguments = embed(model, (torch.arange(1, TOKENS + 1, device=model.device)[None],))
        for index, block in enumerate(blocks(model)):
            structure = tuple((name, type(module)) for name, module in block.named_modules())
            if structure not in known:
                with in_float32(block):
                    trial = _Trial(block, names[block], arguments[index], stream.width)
                    known[structure] = tuple(trial.adder(stage) for stage in stream.stages[index])
            adders.append(known[structure])
    return adders


class _Trial:
    """Runs of one block, in which some of its modules give constant vectors."""

    def __init__(self, block: nn.Module, name: str, arguments: BlockArguments, width: int) -> None:
        self.block, self.name, self.arguments, self.width = block, name, arguments, width
        generator = torch.Generator().manual_seed(SEED)
        self.entered = torch.randn(width, generator=generator)
        self.written = torch.randn(width, generator=generator)
        self.generator = generator
        self.modules = dict(block.named_modules())
        self.layers = {name: module for name, module in self.modules.items() if is_matrix(module)}
        self.candidates = {name: module for name, module in self.layers.items() if module.weight.shape[0] == width}
        self.norms = self._norms()

    def stages(self) -> tuple[Stage, ...]:
        """Return the stages of the block. Raises RefusedError where it does not turn with the stream."""
        silent = {name: torch.zeros(()) for name in self.candidates}
        after, inputs = self.run(silent)
        if not is_multiple(after, self.entered):
            self.refuse("the block does more to it than add what linear layers write")
        reading = [name for name in self.norms if is_multiple(inputs.get(name), self.entered)]
        readers, raw = self._readers(silent, reading)
        gives, seen = self._writers(silent, after, [*reading, *raw])
        stages = self._in_order(readers, raw, gives, seen, list(inputs))
        self._prove(stages)
        return stages

    def run(self, given: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """Run the block with one vector at all places; modules ``given`` give a constant.

        Returns what leaves it and the input of every module that got a tensor, in the order of the calls.
        """
        from hemorrhage.models.blockwise import run_block

        inputs: dict[str, Tensor] = {}
        with record_inputs(self.modules, inputs), constant_outputs(self.modules, given):
            after = run_block(self.block, self.entered.expand(1, TOKENS, -1).clone(), self.arguments)
        return after, inputs

    def adder(self, stage: Stage) -> str:
        """Return the module that adds what a stage writes, with one factor for all tokens."""
        from hemorrhage.models.blockwise import run_block

        silent = dict.fromkeys(self.candidates, torch.zeros(()))
        states = torch.randn(1, TOKENS, self.width, generator=self.generator)
        parents = [name.rpartition(".")[0] for name in stage.writers]
        # Of experts the module above their list.
        mixtures = [name.partition(".experts")[0] for name in parents if ".experts" in name]
        for name in dict.fromkeys([*stage.writers, *mixtures]):
            calls: list[Any] = []
            hook = self.modules[name].register_forward_hook(lambda _, __, output, calls=calls: calls.append(output))
            try:
                with constant_outputs(self.modules, {**silent, name: self.written}):
                    added = run_block(self.block, states, self.arguments) - states
            finally:
                hook.remove()
            factors = added[0] @ self.written / (self.written @ self.written)
            if len(calls) == 1 and is_multiple(added, self.written) and _close(factors, factors[:1].expand_as(factors)):
                return str(name)
        return str(self.refuse(f"no module adds what {stage.writers[0]} gives with one factor"))

    def refuse(self, why: str) -> Any:
        raise RefusedError(f"the residual stream of {type(self.block).__name__} ({self.name}) can't be turned: {why}")

    def _norms(self) -> list[str]:
        _, inputs = self.run({})
        return [
            name
            for name, x in inputs.items()
            if x.shape[-1] == self.width and _may_be_norm(self.modules[name]) and self._norm(name) is not None
        ]

    def _norm(self, name: str) -> Norm | None:
        return norm_of(self.modules[name], self.width)

    def _readers(self, silent: Mapping[str, Tensor], norms: Sequence[str]) -> tuple[dict[str, list[str]], list[str]]:
        """Return for each norm the layers that get what it gives, and those that get the stream itself."""
        given = {name: torch.randn(self.width, generator=self.generator) for name in norms}
        _, inputs = self.run({**silent, **given})
        readers: dict[str, list[str]] = {norm: [] for norm in norms}
        for group in alike(self.layers):
            for norm, vector in given.items():
                if any(is_multiple(inputs.get(name), vector) for name in group):
                    readers[norm] += group
        return readers, [name for name in self.layers if is_multiple(inputs.get(name), self.entered)]

    def _writers(
        self, silent: Mapping[str, Tensor], before: Tensor, reading: Sequence[str]
    ) -> tuple[dict[str, float], dict[str, frozenset[str]]]:
        """Return the layers that write with their factors, and for each of ``reading`` the writers that come before."""
        gives: dict[str, float] = {}
        seen: dict[str, frozenset[str]] = dict.fromkeys(reading, frozenset())
        for group in alike(self.candidates):
            after, inputs = self.run({**silent, **dict.fromkeys(group, self.written)})
            added = after - before
            if _close(added, torch.zeros_like(added)):
                continue
            if not is_multiple(added, self.written):
                behind = [name for name in self.norms if is_multiple(inputs.get(name), self.written)]
                between = f"{behind[0]} normalises" if behind else "something other than a factor alters"
                self.refuse(f"{between} what {group[0]} writes")
            factor = (added[0] @ self.written / (self.written @ self.written)).mean().item()
            gives |= dict.fromkeys(group, factor)
            for name in reading:
                if not is_multiple(inputs.get(name), self.entered):
                    seen[name] |= set(group)
        return gives, seen

    def _in_order(
        self,
        readers: Mapping[str, list[str]],
        raw: Sequence[str],
        gives: Mapping[str, float],
        seen: Mapping[str, frozenset[str]],
        order: Sequence[str],
    ) -> tuple[Stage, ...]:
        states = sorted(set(seen.values()), key=len)
        behind = [*states[1:], frozenset(gives)]
        if any(not before <= after for before, after in zip(states, behind, strict=True)):
            self.refuse("its layers read sums of some of what others write")
        stages = []
        for state, following in zip(states, behind, strict=True):
            here = [name for name in order if seen.get(name) == state]
            reads: dict[str | None, tuple[str, ...]] = {name: tuple(readers[name]) for name in here if name in readers}
            own = tuple(layer for group in alike(self.layers) if set(group) & set(here) & set(raw) for layer in group)
            if own:
                reads[None] = own
            writers = tuple(name for name in gives if name in following - state)
            stages.append(Stage(reads, writers, {name: gives[name] for name in writers}))
        return tuple(stages)

    def _prove(self, stages: Sequence[Stage]) -> None:
        """Raise RefusedError where the turned block does not compute what the block does."""
        from hemorrhage.models.blockwise import run_block

        norms = {
            name: norm
            for stage in stages
            for name in stage.reads
            if name is not None and (norm := norm_of(self.modules[name], self.width)) is not None
        }
        basis = stream_basis(self.width, any(norm.subtracts_mean for norm in norms.values()), SEED)
        states = torch.randn(1, TOKENS, self.width, generator=self.generator)
        expected = basis.rotate(run_block(self.block, states, self.arguments))
        twin = copy.deepcopy(self.block)
        for stage in stages:
            for name, layers in stage.reads.items():
                norm = None if name is None else Norm(twin.get_submodule(name), *_kind(norms[name]))
                _turn_readers([twin.get_submodule(layer) for layer in layers], norm, basis)
            for layer in stage.writers:
                module: Any = twin.get_submodule(layer)
                module.weight.data = basis.rotate(module.weight.data.T).T.contiguous()
                if getattr(module, "bias", None) is not None:
                    module.bias.data = basis.rotate(module.bias.data)
        if not _close(run_block(twin, basis.rotate(states), self.arguments), expected):
            self.refuse("the block does not compute in a turned stream what it did")


def _kind(norm: Norm) -> tuple[int, bool, float]:
    return norm.width, norm.subtracts_mean, norm.offset


def _turn_readers(readers: Iterable[Any], norm: Norm | None, basis: Basis) -> None:
    for reader in readers:
        weight = reader.weight.data if norm is None else reader.weight.data * norm.gain
        reader.weight.data = basis.rotate(weight)
    if norm is not None:
        shift = kept_shift(norm)
        norm.make_plain(None if shift is None else basis.rotate(shift))


def kept_shift(norm: Norm) -> Tensor | None:
    """Return what a norm of gain one adds instead of its shift, in the old basis: ``shift / gain``.

    Raises RefusedError where the gain is zero and the shift is not.
    """
    shift, gain = norm.shift, norm.gain
    if shift is None:
        return None
    if (shift[gain == 0] != 0).any():
        raise RefusedError(f"a {type(norm.module).__name__} adds numbers to features that its weight silences")
    return torch.where(gain == 0, 0.0, shift / gain)


def untie(model: PreTrainedModel) -> None:
    """Give the head a weight of its own where it has the embedding's, and say so in the configuration."""
    head = model.get_output_embeddings()
    embedding: Any = model.get_input_embeddings().weight
    if head.weight is embedding:
        head.weight = torch.nn.Parameter(embedding.detach().clone())
        model.config.tie_word_embeddings = False
        model.all_tied_weights_keys = {}


def _embeddings(model: PreTrainedModel, width: int, tokens: Tensor) -> tuple[list[str], float | None]:
    """Return the names of the layers outside of the blocks that write what enters the first block, and their factor."""
    from hemorrhage.models.blockwise import embed

    shell = _shell(model)
    tables = {
        name: module
        for name, module in shell.items()
        if is_matrix(module) and module.weight.shape[_side(module)] == width
    }
    silent = dict.fromkeys(tables, torch.zeros(()))
    with constant_outputs(shell, silent):
        (before,), _ = embed(model, (tokens,))
    if before.any():
        _refuse(model, "numbers that no layer holds are added to the embeddings, or a norm follows them")
    vector = torch.randn(width, generator=torch.Generator().manual_seed(SEED))
    writers = []
    scales = []
    for name in tables:
        factors = []
        for strength in (1, 8):
            with constant_outputs(shell, {**silent, name: strength * vector}):
                (after,), _ = embed(model, (tokens,))
            factors.append(after.flatten(0, -2) @ vector / (strength * vector @ vector))
        if not after.any():
            continue
        if not is_multiple(after, vector):
            _refuse(model, f"a norm or another layer alters what {name} writes")
        writers.append(name)
        scales.append(factors[0].mean().item() if _close(*factors) else None)
    return writers, scales[0]


def _ending(model: PreTrainedModel, width: int, tokens: Tensor) -> tuple[str | None, str]:
    """Return the norm that reads what leaves the last block, if any, and the layer that reads the norm."""
    from hemorrhage.models.blockwise import final_norm

    shell = _shell(model)
    generator = torch.Generator().manual_seed(SEED)
    left, normed = (torch.randn(width, generator=generator) for _ in range(2))
    states = left.expand(1, TOKENS, -1).clone()
    inputs: dict[str, Tensor] = {}
    with record_inputs(shell, inputs):
        hidden = final_norm(model, (tokens,), [states.clone()])[0]
    norms = [
        name
        for name, x in inputs.items()
        if is_multiple(x, left) and _may_be_norm(shell[name]) and norm_of(shell[name], width) is not None
    ]
    vector = left
    if norms:
        vector, inputs = normed, {}
        with record_inputs(shell, inputs), constant_outputs(shell, {norms[0]: normed}):
            hidden = final_norm(model, (tokens,), [states.clone()])[0]
    # A head that does more than multiply is refused.
    head_of(model)
    if hidden.shape[-1] == width and is_multiple(hidden, vector):
        return (norms[0] if norms else None), stored_name(model)
    projections = [
        name for name, module in shell.items() if is_matrix(module) and is_multiple(inputs.get(name), vector)
    ]
    if len(projections) != 1:
        _refuse(model, "what leaves the last block does not go to the head through a norm that turns with it")
    return (norms[0] if norms else None), projections[0]


def _shell(model: PreTrainedModel) -> dict[str, Any]:
    """Return the modules of the decoder that are in no block, by name in the model, without those with children."""
    inside = {module for block in blocks(model) for module in block.modules()}
    own = set(decoder(model).modules())
    return {
        name: module
        for name, module in model.named_modules()
        if module in own and module not in inside and not list(module.children())
    }


def _side(module: Any) -> int:
    """Return the dimension of a layer's weight that its output has: rows of an embedding are vectors."""
    return 1 if isinstance(module, torch.nn.Embedding) else 0


def is_matrix(module: Any) -> bool:
    """Return whether a module holds a matrix: linear layers, routers, embeddings."""
    weight = getattr(module, "weight", None)
    return isinstance(weight, torch.nn.Parameter) and weight.dim() == 2


def _may_be_norm(module: nn.Module) -> bool:
    return not list(module.children()) and all(value.dim() == 1 for value in module.parameters())


def alike(names: Iterable[str]) -> list[list[str]]:
    """Group names that differ in a number only: layers of several experts."""
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(re.sub(r"\.\d+\.", ".#.", name), []).append(name)
    return list(groups.values())


def is_multiple(x: Tensor | None, vector: Tensor) -> bool:
    """Return whether all rows of ``x`` [..., n] are multiples of ``vector`` [n], and not all of them zero."""
    if x is None or x.shape[-1] != len(vector) or not x.is_floating_point():
        return False
    rows = x.flatten(0, -2).float()
    factors = rows @ vector / (vector @ vector)
    return bool(factors.any()) and _close(rows, factors[:, None] * vector)


def _close(actual: Tensor, expected: Tensor) -> bool:
    largest = max(expected.abs().max().item(), actual.abs().max().item(), 1e-30)
    if not expected.any():
        return largest < 1e-6
    return bool((actual - expected).abs().max() <= CLOSE * largest)


@contextlib.contextmanager
def record_inputs(modules: Mapping[str, nn.Module], inputs: dict[str, Tensor]) -> Iterator[None]:
    """Put the first tensor that each module gets into ``inputs`` inside, in the order of the calls."""

    def note(name: str) -> Any:
        def hook(_: nn.Module, arguments: tuple[Any, ...], named: Mapping[str, Any]) -> None:
            tensors = [value for value in (*arguments, *named.values()) if isinstance(value, torch.Tensor)]
            if tensors and tensors[0].is_floating_point() and name not in inputs:
                inputs[name] = tensors[0].detach().clone()

        return hook

    hooks = [module.register_forward_pre_hook(note(name), with_kwargs=True) for name, module in modules.items()]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


@contextlib.contextmanager
def constant_outputs(modules: Mapping[str, nn.Module], given: Mapping[str, Tensor]) -> Iterator[None]:
    """Make each of ``given`` give its vector [n], or number, at every place inside."""

    def give(vector: Tensor) -> Any:
        def hook(_: nn.Module, __: Any, output: Any) -> Any:
            first = output[0] if isinstance(output, tuple) else output
            constant = vector.to(first.device, first.dtype).expand_as(first).clone()
            return (constant, *output[1:]) if isinstance(output, tuple) else constant

        return hook

    hooks = [modules[name].register_forward_hook(give(vector)) for name, vector in given.items()]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
