"""The model that a config.json describes: its class, its text tower, its modules without numbers."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

    from transformers import PreTrainedModel


def architecture(config: Any) -> Any:
    """Return the class of language models of ``config``; of a wrapper of a text tower the wrapper's.

    Raises ValueError where transformers has none.
    """
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING

    for mapping in (MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING):
        if type(config) in mapping:
            return mapping[type(config)]
    raise ValueError(f"transformers has no language model of the type {config.model_type}")


def text_entries(folder: Path) -> dict[str, Any]:
    """Return the text entries of a folder's config.json: ``entries``."""
    from transformers import AutoConfig

    return entries(AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False))


def entries(config: Any) -> dict[str, Any]:
    """Return the text entries of a configuration: of a wrapper its text tower's, but its own type.

    Settings have the names that transformers has for all families, ``hidden_size`` where GPT-2 says ``n_embd``.
    """
    text = config.get_text_config(decoder=True)
    renamed = {name: getattr(text, key) for name, key in text.attribute_map.items() if hasattr(text, key)}
    named: dict[str, Any] = text.to_dict() | renamed | {"model_type": config.model_type}
    return named


def skeleton(config: Any) -> PreTrainedModel:
    """Return the model that ``config`` describes, in float32, without numbers."""
    import torch

    with torch.device("meta"):
        model: PreTrainedModel = architecture(config)._from_config(copy.deepcopy(config), dtype=torch.float32)
    return model
