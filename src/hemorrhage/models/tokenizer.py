"""A checkpoint's tokenizer as the bench uses it: nothing is cut, nothing padded, nothing put behind a text.

What tokenizer.json puts in front of a text stays, and is the one source for the token that windows begin with;
config.json's ``bos_token_id`` is not asked.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerBase


def only_begin(tokenizer: Tokenizer) -> None:
    """Switch off what a tokenizer was saved with beside its tokens: cutting, padding, special tokens behind a text."""
    from tokenizers import Tokenizer as Library

    tokenizer.no_truncation()
    tokenizer.no_padding()
    if tokenizer.post_processor is None:
        return
    before = json.loads(tokenizer.post_processor.__getstate__())
    after = without_end(before)
    if after != before:
        # Through a tokenizer without tokens: the library makes a part from JSON only within a whole.
        bare = {"version": "1.0", "model": {"type": "WordLevel", "vocab": {}, "unk_token": ""}, "post_processor": after}
        tokenizer.post_processor = Library.from_str(json.dumps(bare)).post_processor


def without_end(processor: Mapping[str, Any]) -> dict[str, Any]:
    """Return a post-processor of tokenizer.json that adds no special token after a text, and before one the same."""
    kind = processor["type"]
    if kind == "Sequence":
        return {**processor, "processors": [without_end(each) for each in processor["processors"]]}
    if kind == "TemplateProcessing":
        return {**processor, "single": _until_text(processor["single"]), "pair": _until_text(processor["pair"])}
    if kind in ("BertProcessing", "RobertaProcessing"):
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
    return dict(processor)


def _until_text(template: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return a template up to its last text."""
    texts = [place for place, piece in enumerate(template) if "Sequence" in piece]
    return template[: texts[-1] + 1]


def leading(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Return the special tokens that the tokenizer puts in front of a text by default."""
    whole, plain = (tokenizer("a", add_special_tokens=special)["input_ids"] for special in (True, False))
    return whole[: len(whole) - len(plain)]
