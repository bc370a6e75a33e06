"""Questions of a user's file: read, and checked completely, before any work.

A ``.jsonl`` has an object a line:

    {"prompt": "The capital of Peru is", "choices": ["Lima", "Quito"], "answer": 0}

``answer`` is the number of the right choice, counted from 0, or its text. What the model reads is prompt and choice in
a row. White space at the end of a prompt goes to its choices, and where neither side has any a space does, as in
lm-eval: tokenizers join a space with the word behind it. Other keys are not read.

Every problem is one line that names the file, the line and the key.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from hemorrhage.data.lines import objects_of, text_of
from hemorrhage.data.tasks.probes import Question
from hemorrhage.runtime.step import InputError

KEYS = "prompt, choices and answer"

MOST_CHOICES = 100
"""More are no choices but a vocabulary."""


def read_questions(file: Path) -> list[Question]:
    """Read all questions of a file, in its order. Raises InputError for the first that can't be asked."""
    lines = objects_of(file, "questions", KEYS)
    questions = [_question(f"{file}, line {line}", content) for line, content in lines]
    if not questions:
        raise InputError(f"{file}: it is empty: no question is in it")
    return questions


def _question(where: str, content: Mapping[str, object]) -> Question:
    for key in ("prompt", "choices", "answer"):
        if content.get(key) is None:
            raise InputError(f"{where}: {key}: missing; a question has {KEYS}")
    prompt = text_of(where, "prompt", content["prompt"])
    choices = content["choices"]
    if not isinstance(choices, list) or not 2 <= len(choices) <= MOST_CHOICES:
        raise InputError(f"{where}: choices: must be a list of 2 to {MOST_CHOICES} texts")
    texts = [text_of(where, f"choices.{number}", choice) for number, choice in enumerate(choices)]
    if len({text.strip() for text in texts}) < len(texts):
        raise InputError(f"{where}: choices: two are the same")
    answer = _answer(where, content["answer"], texts)
    return {"prompt": prompt.rstrip(), "choices": [_behind(prompt, text) for text in texts], "answer": answer}


def _answer(where: str, answer: object, choices: list[str]) -> int:
    if isinstance(answer, int) and not isinstance(answer, bool) and 0 <= answer < len(choices):
        return answer
    if isinstance(answer, str) and answer in choices:
        return choices.index(answer)
    raise InputError(
        f"{where}: answer: must be the number of a choice, 0 to {len(choices) - 1}, or the text of one "
        f"(got {str(answer)[:40]!r})"
    )


def _behind(prompt: str, choice: str) -> str:
    """Return a choice as it follows the prompt without the white space at its end."""
    between = prompt[len(prompt.rstrip()) :]
    return f"{between or ('' if choice[0].isspace() else ' ')}{choice}"
