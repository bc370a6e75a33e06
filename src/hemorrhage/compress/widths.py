"""The widths that settings must divide, known from config.json before any work."""

from __future__ import annotations

from typing import Any


def input_widths(config: dict[str, Any]) -> dict[str, int]:
    """The widths of the inputs of a decoder block's linear layers, by what config.json calls them."""
    head = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    return {
        "hidden_size": config["hidden_size"],
        "attention width (num_attention_heads · head_dim)": config["num_attention_heads"] * head,
        "intermediate_size": config["intermediate_size"],
    }
