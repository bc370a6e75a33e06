"""The model that a recipe describes: transformers' config of its type, and the model with random weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from hemorrhage.runtime.step import InputError
from hemorrhage.train.tokenizer import END, PAD, SPECIAL

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedConfig, PreTrainedModel

IDS = {"bos_token_id": SPECIAL.index(END), "eos_token_id": SPECIAL.index(END), "pad_token_id": SPECIAL.index(PAD)}


def configure(architecture: Mapping[str, Any], vocabulary: int, length: int) -> PreTrainedConfig:
    """Make the config of ``architecture``: ``model_type``, and keys of its config that are not its defaults.

    The context is ``length`` unless the architecture says otherwise. Raises InputError where transformers does not know
    the type or a key.
    """
    from huggingface_hub.errors import StrictDataclassError
    from transformers import AutoConfig

    written = dict(architecture)
    model_type = written.pop("model_type")
    try:
        default = AutoConfig.for_model(model_type)
    except (ValueError, KeyError):
        raise InputError(f"recipes: architecture.model_type: transformers has no {model_type!r}") from None
    unknown = [key for key in written if not hasattr(default, key)]
    if unknown:
        raise InputError(f"recipes: architecture.{unknown[0]}: no key of a config of the type {model_type}")
    if "max_position_embeddings" not in written and hasattr(default, "max_position_embeddings"):
        written["max_position_embeddings"] = length
    try:
        return AutoConfig.for_model(model_type, **{**written, **IDS, "vocab_size": vocabulary})
    except (ValueError, TypeError, StrictDataclassError) as error:
        raise InputError(f"recipes: architecture: {' '.join(str(error.__cause__ or error).split())}") from None


def create(config: PreTrainedConfig, seed: int) -> PreTrainedModel:
    """Make the model of a config with the random weights of a seed, in float32.

    Raises InputError where its keys do not fit each other, or it is no causal language model.
    """
    import torch
    from transformers import AutoModelForCausalLM

    torch.manual_seed(seed)
    try:
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    except (ValueError, RuntimeError, ZeroDivisionError) as error:
        raise InputError(f"recipes: architecture: {' '.join(str(error).split())}") from None
    return model


def weights_outside_embedding(model: PreTrainedModel) -> int:
    """Count the parameters without the token embedding, and without an output embedding of its own."""
    total = sum(parameter.numel() for parameter in model.parameters())
    return total - sum({id(table): table.numel() for table in _tables(model)}.values())


def operations(model: PreTrainedModel, tokens: int) -> float:
    """Count the floating-point operations of a training: six for each token and weight that it is multiplied with.

    That is C = 6 N D (arXiv 2001.08361) with the output embedding in N; attention's own products are left out.
    """
    return 6.0 * tokens * (weights_outside_embedding(model) + _tables(model)[1].numel())


def _tables(model: PreTrainedModel) -> tuple[Tensor, Tensor]:
    """Return the weights of the token embedding and of the output embedding; they may be one."""
    embedding: Any = model.get_input_embeddings()
    head: Any = model.get_output_embeddings()
    return embedding.weight, head.weight
