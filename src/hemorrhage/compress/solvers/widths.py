"""The widths that settings must divide, known from config.json before any work."""

from __future__ import annotations

from hemorrhage.compress.method import ConfigJson


def input_widths(config: ConfigJson) -> dict[str, int]:
    """Return the widths of the inputs of a decoder block's linear layers, by their names in config.json.

    A state-space model has no attention and, where config.json does not name the width of its mixer, ``expand`` of it.
    """
    hidden, heads = config["hidden_size"], config.get("num_attention_heads")
    widths = {"hidden_size": hidden}
    if heads:
        head = config.get("head_dim") or hidden // heads
        widths["attention width (num_attention_heads · head_dim)"] = heads * head
    if config.get("intermediate_size"):
        widths["intermediate_size"] = config["intermediate_size"]
    elif config.get("expand"):
        widths["mixer width (expand · hidden_size)"] = int(config["expand"] * hidden)
    return widths
