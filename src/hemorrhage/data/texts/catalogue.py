"""The corpora of data.source ``mirror`` and ``hub``.

Only the plan's side imports this module; the step imports it at run time. The address of a text holds its own
entry (see ``identity`` of hemorrhage.data.texts.repositories), so that a new line here invalidates nothing.
"""

from __future__ import annotations

from hemorrhage.data.texts.entry import Entry

CATALOGUE = {
    # Rows are lines; "\n\n".join(rows) is the text that papers report WikiText-2 perplexity on. Articles
    # are joined back from the rows between headings, so that the whole text is the same character for
    # character. Calibration on the validation split: mirrors often lack the train split.
    "wikitext2": Entry(
        "Salesforce/wikitext", "wikitext-2-raw-v1", "validation", "test", "{text}", heading=r" = [^=].* = \n"
    ),
    # Mikolov's preparation; joined as by GPTQ (ptb-new), SparseGPT and Wanda.
    "ptb": Entry("ptb-text-only/ptb_text_only", "penn_treebank", "train", "test", "{sentence}", join=" "),
    # Joined as by GPTQ, SparseGPT and Wanda. Mirrors hold a slice as one split; of the hub, the first
    # shard of the validation split is read.
    "c4": Entry(
        "allenai/c4",
        "en.slice",
        "train",
        "train",
        "{text}",
        join=" ",
        hub_files="en/c4-validation.00000-of-00008.json.gz",
        hub_rows=2200,
    ),
    "mbpp": Entry("google-research-datasets/mbpp", "full", "train", "test", '"""\n{text}\n"""\n{code}'),
    "gsm8k": Entry("openai/gsm8k", "main", "train", "test", "Question: {question}\nAnswer: {answer}"),
    # The human texts of the decoding studies (arXiv 2210.15097, 2402.06925).
    "wikinews": Entry("continuation", "wikinews", "test", "test", "{text}", on_hub=False),
}
"""Corpus -> where it lies. Licences are the data sets' own; PTB may not be redistributed."""
