"""Loading a checkpoint folder: the same way for the base model and for every variant."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hemorrhage.models.architecture import architecture, skeleton
from hemorrhage.models.blocks import blocks
from hemorrhage.models.formats.config import BenchStorage, QuantizationConfig
from hemorrhage.models.layout import to_memory
from hemorrhage.models.refused import RefusedError
from hemorrhage.models.stream import is_real, keep_freed, return_freed
from hemorrhage.models.weights import Weights, shares_weights
from hemorrhage.runtime.artifact import verify

if TYPE_CHECKING:
    import torch
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

    from hemorrhage.models.formats.storage import FormattedLinear

LARGE = 2**32
"""Bytes in float32 of a model with which memory is saved at the price of some speed."""


def load(
    folder: Path, dtype: str = "float32", as_stored: bool = False, base: Path | None = None, streamed: bool = False
) -> PreTrainedModel:
    """Return the model of a checkpoint folder in evaluation mode, on the device ``device()``.

    ``base`` is the folder of the base model, which a variant's checkpoint shares weights with
    (hemorrhage.models.weights). Files are compared with the checksums of their manifests before.
    Its weights are cast to ``dtype``, a torch name, or stay in the dtype they lie in (``stored``). Reads safetensors of
    this machine only and never runs code that a checkpoint brings along. Weights with a storage format
    (hemorrhage.models.formats.storage) become dense ones here, computed in float32; with ``as_stored`` they keep it
    and are dequantized when they compute. Quantized activations and caches are emulated
    (models.emulation.activations). Raises OSError where the folder holds no complete checkpoint, and ValueError where
    a file is damaged or ``base`` is missing or another one.

    With ``streamed`` the model computes in float32 with the weights of one block in memory at a time, read from the
    files when it is the block's turn (models.blockwise.stream_blocks). It stays on the processor. What ``size`` has no
    answer for is loaded whole.
    """
    from transformers import AutoConfig

    verify(folder)
    if base is not None and shares_weights(folder):
        verify(base)
    config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    quantization = _as_dict(vars(config).pop("quantization_config", None))
    storage = BenchStorage.of_model(config)
    streamed = streamed and size(folder) is not None
    if (streamed or dtype == "stored") and (size(folder) or 0) > LARGE:
        return_freed()
    else:
        keep_freed()
    if storage.model_format is not None:
        from hemorrhage.models.formats.reader import module_of

        model: Any = module_of(storage.model_format).build(folder, config, dtype, as_stored, base)
        _widen_computed(model)
    elif streamed or dtype == "stored" or quantization or getattr(config, "hemorrhage", None) or shares_weights(folder):
        wanted = "stored" if streamed else dtype
        model = _rebuild(Weights(folder, base), config, quantization, wanted, as_stored or streamed, streamed)
    else:
        model = _from_pretrained(folder, config, dtype)
    if streamed:
        from hemorrhage.models.blockwise import stream_blocks

        stream_blocks(model)
    else:
        model.to(device())
    loaded: PreTrainedModel = model.eval()
    return loaded


def _as_dict(quantization: Any) -> QuantizationConfig | None:
    """Return config.json's quantization_config as it is on disk; transformers makes objects of some."""
    if hasattr(quantization, "to_dict"):
        quantization = quantization.to_dict()
    entry: QuantizationConfig | None = quantization
    return entry


def size(folder: Path) -> int | None:
    """Return the bytes of a checkpoint folder's model in float32; None where it can't be read block by block.

    None are storage formats of a whole model, and mixtures of experts, which are made of their checkpoint's tensors.
    """
    from transformers import AutoConfig

    from hemorrhage.models.experts import is_fused

    config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    model = skeleton(config)
    if BenchStorage.of_model(config).model_format is not None or is_fused(model):
        return None
    return 4 * sum(value.numel() for value in model.parameters())


def load_tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    """Return a checkpoint folder's tokenizer as its tokenizer.json says, but for what cuts, pads and ends texts.

    The base step sees to it that every folder has that file. The data step reads the same file with the
    ``tokenizers`` library alone; going through AutoTokenizer here could rebuild it into something else.
    """
    from transformers import PreTrainedTokenizerFast

    from hemorrhage.models.tokenizer import only_begin

    tokenizer: PreTrainedTokenizerFast = PreTrainedTokenizerFast.from_pretrained(folder, local_files_only=True)
    only_begin(tokenizer.backend_tokenizer)
    return tokenizer


def device() -> str:
    """Return where models run: what HEMORRHAGE_DEVICE says, else the GPU if there is one, else the CPU."""
    import torch

    return os.environ.get("HEMORRHAGE_DEVICE") or ("cuda" if torch.cuda.is_available() else "cpu")


def expected_shapes(config: Any) -> dict[str, torch.Size]:
    """Return the shape of every parameter of the architecture of ``config``, by the names it has in memory."""
    from hemorrhage.models.experts import unfuse

    model = skeleton(config)
    unfuse(model)
    return {name: value.shape for name, value in model.named_parameters()}


def _from_pretrained(folder: Path | None, config: Any, dtype: str, **arguments: Any) -> PreTrainedModel:
    import torch

    from hemorrhage.models.experts import unfuse

    # The class itself: the automatic one wants a folder also where the weights are given.
    model: PreTrainedModel = architecture(config).from_pretrained(
        folder,
        config=config,
        dtype="auto" if dtype == "stored" else getattr(torch, dtype),
        local_files_only=True,
        use_safetensors=True,
        **arguments,
    )
    unfuse(model)
    _widen_computed(model)
    return model


def _widen_computed(model: PreTrainedModel) -> None:
    """Buffers that are computed and not stored, such as Gemma's scale of the embedding, in float32.

    A model that is loaded in 16 bits computes them in 16 bits, and would never give the numbers that it gives in 32; a
    model that was made without numbers has none.
    """
    import torch

    stored = set(model.state_dict())
    in_16_bits = [
        name
        for name, value in model.named_buffers()
        if value.is_meta
        or (name not in stored and value.is_floating_point() and value.dtype in (torch.bfloat16, torch.float16))
    ]
    if not in_16_bits:
        return
    twin = skeleton(model.config)
    for value in twin.parameters():
        vars(value)["_is_hf_initialized"] = True
    for name in in_16_bits:
        module, _, buffer = name.rpartition(".")
        blank = torch.empty_like(twin.get_buffer(name), device="cpu")
        twin.get_submodule(module)._buffers[buffer] = blank.fill_(math.nan) if blank.is_floating_point() else blank
    # A wrapper does not know the buffers of its text tower: each model in it computes its own.
    twin.initialize_weights()
    for name in in_16_bits:
        module, _, buffer = name.rpartition(".")
        if twin.get_buffer(name).isnan().any():
            raise RefusedError(f"{name} of a {type(model).__name__} is computed, and not when weights are initialised")
        before = model.get_buffer(name)
        where = "cpu" if before.is_meta else before.device
        model.get_submodule(module)._buffers[buffer] = twin.get_buffer(name).to(where)


def _rebuild(
    weights: Weights,
    config: Any,
    quantization: QuantizationConfig | None,
    dtype: str,
    as_stored: bool,
    streamed: bool = False,
) -> PreTrainedModel:
    """Return a checkpoint that transformers can't read alone, or would compute with in another way.

    Its tensors are mapped one by one, so that one which is replaced leaves memory.
    """
    import torch

    from hemorrhage.models.emulation.install import install
    from hemorrhage.models.formats import reader

    pruned_width = BenchStorage.of_model(config).pruned_width
    masked = _masked_linears(weights, config) - set(pruned_width) if streamed else set()
    tensors: dict[str, Tensor] = {name: weights.tensor(name) for name in weights.names() if name not in masked}
    state, layers = reader.read(tensors, quantization)
    layers |= _masked_layers(weights, masked, state)
    stored = config.dtype or next(value.dtype for value in tensors.values() if is_real(value.dtype))
    wanted = stored if dtype == "stored" else getattr(torch, dtype)
    model = assemble(state, layers, config, wanted, as_stored, pruned_width)
    if dtype == "stored":
        _widen_stored(model, tensors)
    install(model, quantization or {}, tensors, layers)
    return model


def assemble(
    state: dict[str, Tensor],
    layers: Mapping[str, FormattedLinear],
    config: Any,
    dtype: torch.dtype,
    as_stored: bool,
    pruned_width: Sequence[str] = (),
) -> PreTrainedModel:
    """Return the model of plain tensors ``state``, which is changed, and of ``layers`` that have a storage format.

    Names are the bench's. Layers keep their format with ``as_stored``, embedding and head beside their dense weight;
    ``pruned_width`` names tensors that are smaller than ``config`` says, and biases that it has none of.
    """
    import torch

    from hemorrhage.models.formats.storage import replace, store_vocabulary, vocabulary_modules

    formatted = {name: layer for name, layer in layers.items() if as_stored or layer.keep}
    for name, layer in layers.items():
        shape = (layer.out_features, layer.in_features)
        # A layer that keeps its format has no dense weight; transformers wants to see one, which costs no memory.
        state[f"{name}.weight"] = (
            torch.zeros((), dtype=dtype).expand(shape) if name in formatted else layer.dense().to(dtype)
        )
        if layer.bias is not None:
            state[f"{name}.bias"] = layer.bias.data
    pruned = {name: state.pop(name) for name in pruned_width}
    if pruned:
        # transformers takes no other shapes than config.json's: it loads zeros instead, and no bias that it has not.
        shapes = expected_shapes(config)
        state |= {
            name: torch.zeros((), dtype=value.dtype).expand(shapes[name])
            for name, value in pruned.items()
            if name in shapes
        }
    state = to_memory(state, config.get_text_config(decoder=True).model_type)
    model = _from_pretrained(None, config, str(dtype).removeprefix("torch."), state_dict=state)
    vocabulary = vocabulary_modules(model)
    for name, layer in formatted.items():
        if name in vocabulary:
            store_vocabulary(model, name, layer)
        else:
            replace(model, name, layer)
    for name, value in pruned.items():
        _set_pruned(model, name, value.to(dtype))
    return model


def _widen_stored(model: PreTrainedModel, tensors: Mapping[str, Tensor]) -> None:
    """Put the few tensors that lie in float32 among those of 16 bits into ``model`` as they lie, such as routers'."""
    import torch

    wide = {name: value for name, value in tensors.items() if value.dtype == torch.float32}
    if 2 * sum(value.numel() for value in wide.values()) > sum(value.numel() for value in tensors.values()):
        return
    for name, value in (*model.named_parameters(), *model.named_buffers()):
        if name in wide and value.dtype != torch.float32 and value.shape == wide[name].shape:
            value.data = wide[name].clone().to(value.device)


def _set_pruned(model: PreTrainedModel, name: str, value: Tensor) -> None:
    """Make ``value`` the parameter ``name`` of ``model``, of pruned width."""
    import torch

    path, _, parameter = name.rpartition(".")
    module: Any = model.get_submodule(path)
    setattr(module, parameter, torch.nn.Parameter(value, requires_grad=False))
    if parameter == "weight":
        module.out_features, module.in_features = value.shape


def _masked_linears(weights: Weights, config: Any) -> set[str]:
    """Return the names of the linear layers' weights that are stored as a mask."""
    masked = {name for name in weights.names() if weights.masked(name)} & _linear_weights(config)
    # Codes of a storage format have masks, too, where most of them are zero.
    return {name for name in masked if is_real(weights.dtype(name))}


def _masked_layers(weights: Weights, names: set[str], state: dict[str, Tensor]) -> dict[str, FormattedLinear]:
    """Return the layers whose weights are made of their masks whenever they compute; ``state`` has their biases."""
    from hemorrhage.models.formats.masked import MaskedLinear

    layers = {name: name.removesuffix(".weight") for name in names}
    return {layer: MaskedLinear(weights, name, state.get(f"{layer}.bias")) for name, layer in layers.items()}


def _linear_weights(config: Any) -> set[str]:
    """Return the names of the weights of the blocks' linear layers in the architecture of ``config``."""
    import torch

    model = skeleton(config)
    in_blocks = {module for block in blocks(model) for module in block.modules()}
    return {
        f"{name}.weight"
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and module in in_blocks
    }
