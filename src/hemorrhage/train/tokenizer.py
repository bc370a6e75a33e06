"""The step of the tokenizer: byte-level BPE of the training text, and that text as its tokens.

python -m hemorrhage.train.tokenizer OUT --text DIR --spec '{"vocabulary": 4096}'

Models with the same vocabulary share it, so that their perplexities and their KL compare. ``tokens.safetensors`` has
``<part>/<split>``, int32 of shape (tokens,): documents one after the other, each ended by END.
"""

from __future__ import annotations

import argparse
import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict

from hemorrhage.runtime.artifact import write_manifest, writing
from hemorrhage.runtime.step import InputError, start

if TYPE_CHECKING:
    from tokenizers import Tokenizer

END, BEGIN_MESSAGE, END_MESSAGE, PAD = SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|pad|>")
"""Special tokens, by their ids from 0."""

SAMPLE = 24_000_000
"""Characters of the text that the merges are counted on, at most."""

BATCH = 256
"""Documents that are tokenized at once."""

log = logging.getLogger(__name__)


class Spec(TypedDict):
    """``vocabulary``: tokens, special ones and single bytes among them."""

    vocabulary: int


def main() -> None:
    """Command line; see the module's docstring."""
    start()
    parser = argparse.ArgumentParser(prog="python -m hemorrhage.train.tokenizer", description="make a tokenizer")
    parser.add_argument("out", type=Path)
    parser.add_argument("--text", type=Path, required=True, help="folder of the training text")
    parser.add_argument("--spec", type=json.loads, required=True, help="size of the vocabulary, as JSON")
    arguments = parser.parse_args()
    prepare(arguments.text, arguments.spec, arguments.out)


def prepare(text: Path, spec: Spec, out: Path) -> None:
    """Write the tokenizer and the tokens of a training text into ``out``."""
    import numpy as np
    import pandas as pd
    from safetensors.numpy import save_file

    table = pd.read_parquet(text / "documents.parquet")
    tokenizer = learn(table.loc[table["split"] == "train", "text"], spec["vocabulary"])
    tokens = {
        f"{part}/{split}": np.array(encode(tokenizer, list(rows["text"])), dtype=np.int32)
        for (part, split), rows in table.groupby(["part", "split"], sort=True)
    }
    characters = table["text"].str.len().groupby([table["part"], table["split"]]).sum()
    with writing(out) as folder:
        tokenizer.save(str(folder / "tokenizer.json"))
        save_file(tokens, folder / "tokens.safetensors")
        write_manifest(
            folder,
            vocabulary=tokenizer.get_vocab_size(),
            tokens={name: len(ids) for name, ids in tokens.items()},
            characters_per_token={
                name: float(characters[tuple(name.split("/"))] / len(ids)) for name, ids in tokens.items()
            },
        )


def learn(documents: Iterable[str], vocabulary: int) -> Tokenizer:
    """Learn a byte-level BPE of ``vocabulary`` tokens from the first SAMPLE characters of documents.

    Raises InputError where the documents have too few pairs for so many tokens.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[AddedToken(token, special=True, normalized=False) for token in SPECIAL],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_first(documents, SAMPLE), trainer)
    if tokenizer.get_vocab_size() != vocabulary:
        raise InputError(f"recipes: the text makes {tokenizer.get_vocab_size()} tokens, and vocabulary is {vocabulary}")
    return tokenizer


def _first(documents: Iterable[str], characters: int) -> Iterable[str]:
    for document in documents:
        if characters <= 0:
            return
        yield document[:characters]
        characters -= len(document)


def encode(tokenizer: Tokenizer, documents: Sequence[str]) -> list[int]:
    """Return the tokens of documents, END behind each."""
    end = SPECIAL.index(END)
    ids: list[int] = []
    for start_at in range(0, len(documents), BATCH):
        for encoding in tokenizer.encode_batch(documents[start_at : start_at + BATCH], add_special_tokens=False):
            ids += encoding.ids
            ids.append(end)
    return ids


def settings(context: int) -> Mapping[str, object]:
    """Return tokenizer_config.json of a model of ``context`` tokens."""
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": context,
        "clean_up_tokenization_spaces": False,
        "eos_token": END,
        "pad_token": PAD,
    }


if __name__ == "__main__":
    main()
