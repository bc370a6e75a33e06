"""Loading a checkpoint folder: the same way for the base model and for every variant."""

from __future__ import annotations

import importlib
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hemorrhage.models.stream import keep_freed, return_freed
from hemorrhage.models.weights import Weights, shares
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
    """The model of a checkpoint folder in evaluation mode, on the device ``device()``.

    ``base`` is the folder of the base model, which a variant's checkpoint shares weights with
    (hemorrhage.models.weights). Files are compared with the checksums of their manifests before.
    Its weights are cast to ``dtype``, a torch name, or stay in the dtype they lie in (``stored``). Reads safetensors of
    this machine only and never runs code that a checkpoint brings along. Weights in another form than a plain tensor
    (hemorrhage.models.formats.forms) become dense ones here, computed in float32; with ``as_stored`` the forms stay
    and dequantize when they compute. Quantized activations and caches are emulated
    (models.emulation.activations). Raises OSError where the folder holds no complete checkpoint, and ValueError where
    a file is damaged or ``base`` is missing or another one.

    With ``streamed`` the model computes in float32 with the weights of one block in memory at a time, read from the
    files when it is the block's turn (hemorrhage.models.walk.by_blocks). It stays on the processor. What ``size`` has
    no answer for is loaded whole.
    """
    from transformers import AutoConfig

    verify(folder)
    if base is not None and shares(folder):
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
        model = importlib.import_module(f"hemorrhage.models.formats.{bench['form']}").build(
            folder, config, dtype, as_stored, base
        )
    elif streamed or dtype == "stored" or quantization or bench or shares(folder):
        weights = Weights(folder, base)
        kind = "stored" if streamed else dtype
        model = _rebuild(weights, config, quantization, bench, kind, as_stored or streamed, streamed)
    else:
        model = _from_pretrained(folder, config, dtype)
    if streamed:
        from hemorrhage.models.walk import by_blocks

        by_blocks(model)
    else:
        model.to(device())
    return model.eval()


def size(folder: Path) -> int | None:
    """Bytes that the model of a checkpoint folder takes in float32; None where it can't be read block by block.

    That are the forms of a whole model, and mixtures of experts, which are put together from their checkpoint's parts.
    """
    from transformers import AutoConfig

    from hemorrhage.models.experts import LAYOUTS

    config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    if "form" in (getattr(config, "hemorrhage", None) or {}) or config.model_type in LAYOUTS:
        return None
    return 4 * sum(shape.numel() for shape in expected_shapes(config).values())


def load_tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    """The tokenizer of a checkpoint folder, exactly as its tokenizer.json says.

    The base step sees to it that every folder has that file. The data step reads the same file with the
    ``tokenizers`` library alone; going through AutoTokenizer here could rebuild it into something else.
    """
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast.from_pretrained(folder, local_files_only=True)


def device() -> str:
    """Where models run: what HEMORRHAGE_DEVICE says, else the GPU if there is one, else the CPU."""
    import torch

    return os.environ.get("HEMORRHAGE_DEVICE") or ("cuda" if torch.cuda.is_available() else "cpu")


def expected_shapes(config: Any) -> dict[str, torch.Size]:
    """Shape of every parameter of the architecture that ``config`` describes."""
    import torch
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    return {name: value.shape for name, value in model.named_parameters()}


def _from_pretrained(folder: Path | None, config: Any, dtype: str, **arguments: Any) -> PreTrainedModel:
    import torch
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING

    from hemorrhage.models.experts import unfuse

    # The class itself: the automatic one wants a folder also where the weights are given.
    kind: Any = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    model = kind.from_pretrained(
        folder,
        config=config,
        dtype="auto" if dtype == "stored" else getattr(torch, dtype),
        local_files_only=True,
        use_safetensors=True,
        **arguments,
    )
    unfuse(model)
    return model


def _rebuild(
    weights: Weights,
    config: Any,
    quantization: Any,
    bench: dict[str, Any],
    dtype: str,
    as_stored: bool,
    streamed: bool = False,
) -> PreTrainedModel:
    """A checkpoint that transformers can't read alone, or would compute with in another way.

    Its tensors are mapped one by one, so that one which is replaced leaves memory.
    """
    import torch

    from hemorrhage.models.emulation.install import install
    from hemorrhage.models.formats import forms
    from hemorrhage.models.formats.masked import MaskedLinear

    # Codes of integer weights can lie as a mask, too: those belong to their form.
    masked = {
        name for name in weights.names() if streamed and weights.masked(name) and weights.dtype(name).is_floating_point
    } & _linear_weights(config)
    tensors: dict[str, Tensor] = {name: weights.tensor(name) for name in weights.names() if name not in masked}
    if not isinstance(quantization, dict | None):
        quantization = quantization.to_dict()
    state, found = forms.read(tensors, quantization)
    for name in masked - set(bench.get("narrow", ())):
        form = MaskedLinear(weights, name, state.get(f"{name.removesuffix('.weight')}.bias"))
        found[name.removesuffix(".weight")] = form
    stored = config.dtype or next(value.dtype for value in tensors.values() if value.is_floating_point())
    wanted = stored if dtype == "stored" else getattr(torch, dtype)
    kept = {name: form for name, form in found.items() if as_stored or forms.keeps(form)}
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
    model = _from_pretrained(None, config, str(wanted).removeprefix("torch."), state_dict=state)
    for name, form in kept.items():
        forms.replace(model, name, form)
    for name, value in narrow.items():
        layer, _, kind = name.rpartition(".")
        module: Any = model.get_submodule(layer)
        setattr(module, kind, torch.nn.Parameter(value.to(wanted), requires_grad=False))
        if kind == "weight":
            module.out_features, module.in_features = value.shape
    install(model, quantization or {}, tensors)
    return model


def _linear_weights(config: Any) -> set[str]:
    """Names of the weights of the decoder blocks' linear layers in the architecture that ``config`` describes."""
    import torch
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    inside = {module for block in model.get_decoder().layers for module in block.modules()}
    return {
        f"{name}.weight"
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and module in inside
    }
