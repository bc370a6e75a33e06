"""The words of the page: a definition each, which their first use in every section links to and shows on hover."""

from __future__ import annotations

import html as markup
import re
from collections.abc import Iterator
from dataclasses import dataclass

from hemorrhage.analyze.report.tags import in_texts

DEFINITIONS = {
    "KL": "Kullback-Leibler divergence KL(base ‖ variant) of the predictions of the next token, in "
    "nats: 0 where both predict the same. Its mean over tokens is the main measure of damage.",
    "KL p99": "The 99th percentile of the KL over tokens: the damage of the worst token in a hundred.",
    "perplexity": "The exponential of the mean negative log-likelihood of a text. The ratio is the variant's "
    "over the base's.",
    "flips": "The share of answers that change from right to wrong or back. Two changes that cancel leave "
    "accuracy as it is, and count as two flips.",
    "same top-1": "The share of tokens where the variant's most likely token is the base's.",
    "effective bits": "All that is stored, codes, scales, zero points, masks and what is not altered, over the "
    "number of parameters.",
    "W8A8": "Weights and activations of 8 bits; W4A16: weights of 4 bits, activations of 16.",
    "budget": "The most damage that may ship: analyze.budget in params.yaml. A variant is inside where the "
    "upper bounds lie below every limit.",
    "upper bound": "The largest damage that the data leave possible, at the stated confidence, for all variants "
    "together.",
    "screening": "A first look on few windows that says where the budget falls. It decides nothing.",
    "confirmation": "A measurement on text and items that the choice has not seen, which decides.",
    "noise floor": "What the base model differs from itself by, in other batches: smaller damage is not told "
    "from none.",
    "control": "A variant with the same cost whose idea was taken out, for instance by a shuffle of what it "
    "had measured.",
    "knee": "The place on a damage curve from which damage grows much faster than before.",
    "doubling point": "Where the perplexity is twice the base's.",
    "Pareto front": "The variants for which no other is both smaller and less damaged.",
    "q-value": "A p-value corrected for the number of variants that were tested: the expected share of false "
    "findings (Benjamini and Hochberg).",
    "calibration set": "The text that a method measures its statistics on, before it alters the weights.",
    "probe": "A task that the bench generates from templates.",
    "theoretical": "A gain that no engine can use today, by the table of engines.",
    "acceptance": "The chance that speculative decoding keeps a token that the variant drafts.",
}
"""Word of the page -> its definition, one or two plain sentences."""

WRITTEN = {"KL p99": r"KL p99|p99", "q-value": r"q-values?", "flips": r"[Ff]lips", "probe": r"[Pp]robes?(?: tasks?)?"}
"""Word -> the pattern of how texts write it, where an s and a capital are not all."""

CLOSED = ("a", "button", "code", "dfn", "label", "nav", "h1", "h2", "h3", "h4", "dt", "th", "header", "footer")
"""Elements whose text has no links to definitions."""


@dataclass(frozen=True)
class Entry:
    """A word of the glossary, the id of its place, and its definition."""

    word: str
    id: str
    definition: str


def entries() -> list[Entry]:
    """Return the glossary in alphabetical order."""
    return [Entry(word, _id(word), DEFINITIONS[word]) for word in sorted(DEFINITIONS, key=str.lower)]


def _id(word: str) -> str:
    return "term-" + re.sub(r"[^a-z0-9]+", "-", word.lower())


def definition(label: str) -> str:
    """Return the definition of the first word of the glossary in a label, or an empty text."""
    match = WORD.search(label)
    return DEFINITIONS[_word(match)] if match else ""


def _pattern(word: str) -> str:
    first = word[0]
    either = f"[{first.upper()}{first.lower()}]" if first.islower() else re.escape(first)
    return WRITTEN.get(word, f"{either}{re.escape(word[1:])}s?")


_NAMES = {f"w{index}": word for index, word in enumerate(sorted(DEFINITIONS, key=len, reverse=True))}
WORD = re.compile(
    r"(?<![\w-])(?:" + "|".join(f"(?P<{name}>{_pattern(word)})" for name, word in _NAMES.items()) + r")(?![\w-])"
)
"""A word of the glossary in a text, a longer one before one that it holds."""


def _word(match: re.Match[str]) -> str:
    return _NAMES[match.lastgroup or ""]


def link_words(html: str) -> str:
    """Link the first use of each word in each section of HTML to its definition, up to the first script."""
    seen: set[str] = set()

    def link(match: re.Match[str]) -> str:
        word = _word(match)
        if word in seen:
            return match[0]
        seen.add(word)
        title = markup.escape(DEFINITIONS[word])
        return f'<a class="term" href="#{_id(word)}" title="{title}">{match[0]}</a>'

    def pieces() -> Iterator[str]:
        for piece, is_text in in_texts(html, CLOSED):
            if piece.startswith("<section"):
                seen.clear()
            yield WORD.sub(link, piece) if is_text else piece

    return "".join(pieces())
