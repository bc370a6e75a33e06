"""Chat templates and conversations of the tests, and a tiny model that has a template."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + "
    "'\\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
"""As SmolLM2 and Qwen 2 have it."""

TINY = (
    "{{ bos_token }}{% for message in messages %}{{ message['role'] }}: {{ message['content'] | trim }}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}{{ '\\n' }}{% endfor %}"
)
"""Of the special tokens that the tiny model has."""

QUESTIONS = ("Where is my ball?", "Who is the red bird?", "What did the cat see in the garden?", "Why is Tom sad?")
ANSWERS = (
    "The ball is under the big tree. Lily put it there when she went home to eat with her mom.",
    "The red bird is a friend of the little girl. It sings a song every day and likes to play.",
    "The cat saw a small mouse. The mouse ran away, and the cat was happy to run after it in the sun.",
    "Tom is sad because he lost his toy. His mom said that they can look for it together.",
)


def conversation(number: int, turns: int = 1, **fields: object) -> dict[str, object]:
    """Return a record with ``turns`` questions and answers."""
    messages = []
    for turn in range(number, number + turns):
        messages.append({"role": "user", "content": f"{QUESTIONS[turn % 4]} I ask it {number} times."})
        messages.append({"role": "assistant", "content": f"{ANSWERS[turn % 4]} It is day {number}."})
    return {"messages": messages, **fields}


def write_jsonl(file: Path, records: Sequence[Mapping[str, object]]) -> Path:
    """Write records, a line each."""
    file.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return file


def with_template(tiny: Path, folder: Path, template: str = TINY) -> Path:
    """Copy a model's folder to ``folder`` with a chat template of its own."""
    shutil.copytree(tiny, folder)
    (folder / "chat_template.jinja").write_text(template, encoding="utf-8")
    settings: dict[str, Any] = json.loads((folder / "tokenizer_config.json").read_text())
    settings |= {"bos_token": "<s>", "eos_token": "</s>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder
