"""The short answer in a generated text, and whether it is the right one.

The generated text is read from its beginning, as an answer that follows the prompt directly:

- where the right choice is a number, its first number: digits with an optional sign, thousands commas and
  decimals. ``19``, ``19.`` and ``19.0`` are the same number, and so are ``1,900`` and ``1900``;
- else as many of its first words as the right choice has. Words are runs of letters and digits that
  apostrophes or hyphens may join; punctuation and case do not count.

A text without a number or without so many words has no answer, which is wrong.

A worked solution of GSM8K is read by lm-eval's two filters instead: the strict one takes the number behind ``####``,
the flexible one the last number of the text. Numbers are compared as lm-eval compares them, as text without commas,
dollar signs and a final full stop.
"""

from __future__ import annotations

import re
from decimal import Decimal

NUMBER = re.compile(r"(?<!\d)[-−]?(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?", re.ASCII)
STRICT = re.compile(r"#### (-?[0-9.,]+)")
FLEXIBLE = re.compile(r"(-?[$0-9.,]{2,})|(-?[0-9]+)")
IGNORED = re.compile(r",|\$")
WORD = re.compile(r"[^\W_]+(?:['’-][^\W_]+)*")


def extract(text: str, right: str) -> str:
    """Return the answer in ``text`` of the kind that ``right``, the right choice, is; empty when there is none."""
    if is_number(right):
        number = NUMBER.search(text)
        return number[0] if number else ""
    wanted = len(WORD.findall(right))
    words = WORD.findall(text)[:wanted]
    return " ".join(words) if words and len(words) == wanted else ""


def strict_number(solution: str) -> str:
    """Return what lm-eval's strict filter extracts: the number behind the first ``####``; empty when there is none."""
    marked = STRICT.search(solution)
    return marked[1] if marked else ""


def flexible_number(solution: str) -> str:
    """Return what lm-eval's flexible filter extracts: the last number; empty when there is none."""
    numbers = FLEXIBLE.findall(solution)
    return (numbers[-1][0] or numbers[-1][1]) if numbers else ""


def plain_number(text: str) -> str:
    """Return a number as lm-eval compares it: behind the last ``####``, without commas, dollars and a final dot."""
    return re.sub(r"\.$", "", IGNORED.sub("", text).rpartition("#### ")[2]).lower()


def is_right(answer: str, right: str) -> bool:
    """Return whether an extracted ``answer`` is the ``right`` choice: numbers by value, words without case."""
    if not answer:
        return False
    if is_number(right):
        return _value(answer) == _value(right.strip())
    return answer.casefold() == " ".join(WORD.findall(right)).casefold()


def is_number(text: str) -> bool:
    """Return whether ``text`` is a number and nothing else but spaces around it."""
    return NUMBER.fullmatch(text.strip()) is not None


def _value(number: str) -> Decimal:
    return Decimal(number.replace(",", "").replace("−", "-"))
