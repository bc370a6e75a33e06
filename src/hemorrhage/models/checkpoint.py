"""Loading a checkpoint folder: the same way for the base model and for every variant."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerFast


def load(folder: Path, dtype: str = "float32") -> PreTrainedModel:
    """The model of a checkpoint folder in evaluation mode, its weights cast to ``dtype`` (a torch name).

    Reads safetensors of this machine only and never runs code that a checkpoint brings along. A checkpoint
    packed by compressed-tensors is dequantized here once: code times scale, computed in ``dtype``, after
    which every linear layer is a plain dense one. The model lies on the device ``device()``. Raises OSError
    where the folder holds no complete checkpoint.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    if getattr(config, "quantization_config", None):
        config.quantization_config["dequantize"] = True
    model = AutoModelForCausalLM.from_pretrained(
        folder,
        config=config,
        dtype=getattr(torch, dtype),
        local_files_only=True,
        use_safetensors=True,
        trust_remote_code=False,
    )
    for module in model.modules():
        if hasattr(module, "quantization_scheme"):
            _make_dense(module)
    model.to(device())  # type: ignore[arg-type]  # transformers' decorator hides the signature
    return model.eval()


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


def _make_dense(module: torch.nn.Module) -> None:
    # compressed-tensors leaves its scales as parameters and a forward that checks for fake quantization
    # at every call; both go, so that what remains costs and saves like any other linear layer.
    del module.quantization_scheme
    if "forward" in vars(module):
        del module.forward
    for name in [
        name for name, _ in module.named_parameters(recurse=False) if name not in ("weight", "bias")
    ]:
        delattr(module, name)
