"""Loading a checkpoint folder: the same way for the base model and for every variant."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hemorrhage.models.architecture import architecture, skeleton
from hemorrhage.models.blocks import blocks
from hemorrhage.models.layout import to_memory
from hemorrhage.models.stream import keep_freed, return_freed
from hemorrhage.models.weights import Weights, shares_weights
from hemorrhage.runtime.artifact import verify

if TYPE_CHECKING:
    import torch
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

LARGE = 2**32
"""Bytes in float32 of a model with which memory is saved at the price of some speed."""


def load(
    folder: Path, dtype: str = "float32", as_stored: bool = False, base: Path | None = None, streamed: bool = False
) -> PreTrainedModel:
    """Return the model of a checkpoint folder in evaluation mode, on the device ``device()``.

    ``base`` is the folder of the base model, which a variant's checkpoint shares weights with
    (hemorrhage.models.weights). Files are compared with the checksums of their manifests before.
    Its weights are cast to ``dtype``, a torch name, or stay in the dtype they lie in (``stored``). Reads safetensors of
    this machine only and never runs code that a checkpoint brings along. Weights in another form than a plain tensor
    (hemorrhage.models.formats.storage) become dense ones here, computed in float32; with ``as_stored`` the forms stay
    and dequantize when they compute. Quantized activations and caches are emulated
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
    quantization = vars(config).pop("quantization_config", None)
    bench = getattr(config, "hemorrhage", None) or {}
    streamed = streamed and size(folder) is not None
    if (streamed or dtype == "stored") and (size(folder) or 0) > LARGE:
        return_freed()
    else:
        keep_freed()
    if "form" in bench:
        from hemorrhage.models.formats.reader import module_of

        model = module_of(bench["form"]).build(folder, config, dtype, as_stored, base)
    elif streamed or dtype == "stored" or quantization or bench or shares_weights(folder):
        weights = Weights(folder, base)
        kind = "stored" if streamed else dtype
        model = _rebuild(weights, config, quantization, bench, kind, as_stored or streamed, streamed)
    else:
        model = _from_pretrained(folder, config, dtype)
    if streamed:
        from hemorrhage.models.blockwise import stream_blocks

        stream_blocks(model)
    else:
        model.to(device())
    return model.eval()


def size(folder: Path) -> int | None:
    """Return the bytes of a checkpoint folder's model in float32; None where it can't be read block by block.

    That are the forms of a whole model, and mixtures of experts, which are put together from their checkpoint's parts.
    """
    from transformers import AutoConfig

    from hemorrhage.models.experts import is_fused

    config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    model = skeleton(config)
    if "form" in (getattr(config, "hemorrhage", None) or {}) or is_fused(model):
        return None
    return 4 * sum(value.numel() for value in model.parameters())


def load_tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    """Return a checkpoint folder's tokenizer as its tokenizer.json says, but for what cuts, pads and ends texts.

    The base step sees to it that every folder has that file. The data step reads the same file with the
    ``tokenizers`` library alone; going through AutoTokenizer here could rebuild it into something else.
    """
    from transformers import PreTrainedTokenizerFast

    from hemorrhage.models.tokenizer import only_begin

    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder, local_files_only=True)
    only_begin(tokenizer.backend_tokenizer)
    return tokenizer


def device() -> str:
    """Where models run: what HEMORRHAGE_DEVICE says, else the GPU if there is one, else the CPU."""
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
    model = architecture(config).from_pretrained(
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

    A model that is loaded in 16 bits computes them in 16 bits, and would never give the numbers that it gives in 32.
    """
    import torch

    stored = set(model.state_dict())
    narrow = [
        name
        for name, value in model.named_buffers()
        if name not in stored and value.is_floating_point() and value.dtype in (torch.bfloat16, torch.float16)
    ]
    if not narrow:
        return
    twin = skeleton(model.config)
    for value in twin.parameters():
        vars(value)["_is_hf_initialized"] = True
    for name in narrow:
        owner, _, own = name.rpartition(".")
        buffers: dict[str, Any] = twin.get_submodule(owner)._buffers
        buffers[own] = torch.empty_like(buffers[own], device="cpu")
    with torch.no_grad():
        for module in twin.modules():
            twin._init_weights(module)
    for name in narrow:
        owner, _, own = name.rpartition(".")
        there: dict[str, Any] = model.get_submodule(owner)._buffers
        made: Any = twin.get_submodule(owner)._buffers[own]
        there[own] = made.to(there[own].device)


def _rebuild(
    weights: Weights,
    config: Any,
    quantization: Any,
    bench: dict[str, Any],
    dtype: str,
    as_stored: bool,
    streamed: bool = False,
) -> PreTrainedModel:
    """Return a checkpoint that transformers can't read alone, or would compute with in another way.

    Its tensors are mapped one by one, so that one which is replaced leaves memory.
    """
    import torch

    from hemorrhage.models.emulation.install import install
    from hemorrhage.models.formats import reader, storage
    from hemorrhage.models.formats.masked import MaskedLinear

    masked = {name for name in weights.names() if streamed and weights.masked(name)} & _linear_weights(config)
    # Codes of a form have masks, too, where most of them are zero.
    masked = {name for name in masked if weights.dtype(name).is_floating_point}
    tensors: dict[str, Tensor] = {name: weights.tensor(name) for name in weights.names() if name not in masked}
    if not isinstance(quantization, dict | None):
        quantization = quantization.to_dict()
    state, found = reader.read(tensors, quantization)
    for name in masked - set(bench.get("narrow", ())):
        form = MaskedLinear(weights, name, state.get(f"{name.removesuffix('.weight')}.bias"))
        found[name.removesuffix(".weight")] = form
    stored = config.dtype or next(value.dtype for value in tensors.values() if value.is_floating_point())
    wanted = stored if dtype == "stored" else getattr(torch, dtype)
    kept = {name: form for name, form in found.items() if as_stored or form.keep}
    for name, form in found.items():
        shape = (form.out_features, form.in_features)
        # A form that stays has no dense weight; transformers wants to see one, which costs no memory.
        state[f"{name}.weight"] = (
            torch.zeros((), dtype=wanted).expand(shape) if name in kept else form.dense().to(wanted)
        )
        if form.bias is not None:
            state[f"{name}.bias"] = form.bias.data
    narrow = {name: state[name] for name in bench.get("narrow", ())}
    if narrow:
        # transformers takes no other shapes than config.json's: zeros stand in while it loads.
        shapes = expected_shapes(config)
        state |= {name: torch.zeros((), dtype=value.dtype).expand(shapes[name]) for name, value in narrow.items()}
    state = to_memory(state, config.get_text_config(decoder=True).model_type)
    model = _from_pretrained(None, config, str(wanted).removeprefix("torch."), state_dict=state)
    for name, form in kept.items():
        storage.replace(model, name, form)
    for name, value in narrow.items():
        layer, _, kind = name.rpartition(".")
        module: Any = model.get_submodule(layer)
        setattr(module, kind, torch.nn.Parameter(value.to(wanted), requires_grad=False))
        if kind == "weight":
            module.out_features, module.in_features = value.shape
    install(model, quantization or {}, tensors)
    return model


def _linear_weights(config: Any) -> set[str]:
    """Return the names of the weights of the blocks' linear layers in the architecture of ``config``."""
    import torch

    model = skeleton(config)
    inside = {module for block in blocks(model) for module in block.modules()}
    return {
        f"{name}.weight"
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and module in inside
    }
