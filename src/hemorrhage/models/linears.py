"""The linear layers in the decoder blocks of a model."""

from __future__ import annotations

from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

from hemorrhage.models.blocks import blocks
from hemorrhage.models.refused import RefusedError
from hemorrhage.runtime.lazy import torch

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel


def linears_of(model: PreTrainedModel, missing_ok: bool = False) -> dict[str, nn.Linear]:
    """Return ``{name in the model: module}`` of every linear layer of the decoder blocks, in their order.

    Embeddings, the language-model head and routers are not among them: no method alters these; nor are the layers of
    ``uncalled_linears``.
    Raises ValueError where the blocks hold no linear layer, unless ``missing_ok``: all of them may have become packed.
    """
    from hemorrhage.models.experts import mixtures, router

    left_out = uncalled_linears(model)
    routing = {module for mixture in mixtures(model).values() for module in router(mixture).modules()}
    in_blocks = {
        child
        for block in blocks(model)
        for module in block.modules()
        for name, child in module.named_children()
        if isinstance(child, torch.nn.Linear) and (type(module), name) not in left_out and child not in routing
    }
    linears = {name: module for name, module in model.named_modules() if module in in_blocks}
    _refuse_shared(model, linears)
    if not linears and not missing_ok:
        raise ValueError(f"the decoder blocks of {type(model).__name__} hold no linear layers")
    return linears


def _refuse_shared(model: PreTrainedModel, linears: dict[str, nn.Linear]) -> None:
    """Raise RefusedError where two layers have one weight: altered for one block it would be for all."""
    owners: dict[int, str] = {}
    for name, linear in linears.items():
        first = owners.setdefault(id(linear.weight), name)
        if first != name:
            raise RefusedError(
                f"blocks of {type(model).__name__} share weights ({first} is {name}); none can be altered alone"
            )


def uncalled_linears(model: PreTrainedModel) -> frozenset[tuple[type, str]]:
    """Type of a module and name in it of each linear layer that the module never calls when it computes.

    It reads their weights by itself, as Mamba's mixer does with ``dt_proj``: nobody sees their input, and a packed
    layer could not take their place. Observed once per model, on one block of each type and two tokens; a layer whose
    module is not called either, such as an expert's, is not among them.
    """
    if model not in _UNCALLED:
        _UNCALLED[model] = _observe(model)
    return _UNCALLED[model]


_UNCALLED: WeakKeyDictionary[PreTrainedModel, frozenset[tuple[type, str]]] = WeakKeyDictionary()


def _observe(model: PreTrainedModel) -> frozenset[tuple[type, str]]:
    from hemorrhage.models.blockwise import embed, in_float32, run_block

    of_type: dict[tuple[tuple[str, type], ...], int] = {}
    for index, block in enumerate(blocks(model)):
        of_type.setdefault(tuple((name, type(module)) for name, module in block.named_modules()), index)
    called = set()
    with torch.no_grad():
        tokens = torch.zeros(1, 2, dtype=torch.long, device=model.device)
        (states,), arguments = embed(model, (tokens,))
        for index in of_type.values():
            block = blocks(model)[index]
            hooks = [
                module.register_forward_pre_hook(lambda module, _: called.add(module)) for module in block.modules()
            ]
            try:
                with in_float32(block):
                    run_block(block, states, arguments[index])
            finally:
                for hook in hooks:
                    hook.remove()
    return frozenset(
        (type(module), name)
        for module in called
        for name, child in module.named_children()
        if isinstance(child, torch.nn.Linear) and child not in called
    )
