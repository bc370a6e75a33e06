"""A checkpoint's tokenizer as the bench uses it: nothing is cut, nothing padded, nothing added after a text.

What tokenizer.json puts in front of a text stays, and is the one source for the token that windows begin with;
config.json's ``bos_token_id`` is not read.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerBase


def only_begin(tokenizer: Tokenizer) -> None:
    """Switch off what a tokenizer was saved with: truncation, padding, special tokens after a text."""
    from tokenizers import Tokenizer as Library

    tokenizer.no_truncation()
    tokenizer.no_padding()
    if tokenizer.post_processor is None:
        return
    before = json.loads(tokenizer.post_processor.__getstate__())
    after = without_end(before)
    if after != before:
        # Through a tokenizer without tokens: the library makes a post-processor from JSON only within a tokenizer.
        bare = {"version": "1.0", "model": {"type": "WordLevel", "vocab": {}, "unk_token": ""}, "post_processor": after}
        tokenizer.post_processor = Library.from_str(json.dumps(bare)).post_processor


def without_end(processor: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return a post-processor of tokenizer.json that adds no special token after a text, and before one the same."""
    processor_type = processor["type"]
    if processor_type == "Sequence":
        return {**processor, "processors": [without_end(each) for each in processor["processors"]]}
    if processor_type == "TemplateProcessing":
        return {**processor, "single": _until_text(processor["single"]), "pair": _until_text(processor["pair"])}
    if processor_type in ("BertProcessing", "RobertaProcessing"):
        token, number = processor["cls"]
        begins = {"SpecialToken": {"id": token, "type_id": 0}}
        texts = [{"Sequence": {"id": name, "type_id": 0}} for name in ("A", "B")]
        special = {token: {"id": token, "ids": [number], "tokens": [token]}}
        return {
            "type": "TemplateProcessing",
            "single": [begins, texts[0]],
            "pair": [begins, *texts],
            "special_tokens": special,
        }
    return processor


def _until_text(template: Sequence[Mapping[str, Any]]) -> Sequence[Mapping[str, Any]]:
    """Return a template up to its last text."""
    texts = [position for position, piece in enumerate(template) if "Sequence" in piece]
    return template[: texts[-1] + 1]


def leading(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Return the special tokens that the tokenizer puts in front of a text by default."""
    special: list[int]
    special, plain = (tokenizer("a", add_special_tokens=adds)["input_ids"] for adds in (True, False))
    return special[: len(special) - len(plain)]
