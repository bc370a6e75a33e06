"""Conversations as text: the base model's own chat template, and where in it the assistant's words are.

The template runs in Jinja's sandbox, as transformers runs it. It is told the date ``TODAY``, so that a text is the same
on every day.

The assistant's words are what the template marks with ``{% generation %}``. Few templates do; of the others they are
the contents of the assistant's messages, each with the special token that ends it, which the model must say, too. To
find them the conversation is rendered once more with a mark in place of each content: what is between the marks is the
template's own. A conversation that the template rewrites, such as one whose thoughts it leaves out, is refused.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from hemorrhage.data.texts.records import Message
from hemorrhage.runtime.step import InputError

TODAY = datetime(2024, 7, 26)
"""The date that Llama's templates name where they are told none."""

GENERATION = re.compile(r"{%-?\s*generation\s*-?%}")

Span = tuple[int, int]
"""Begin and end of some characters of a text."""


@dataclass(frozen=True)
class Rendered:
    """A conversation as text; ``spans``: the assistant's words in it, in order."""

    text: str
    spans: Sequence[Span]


@dataclass(frozen=True)
class Chat:
    """A chat template; ``names``: the special tokens that it may use by name, ``specials``: the text of every one."""

    template: str
    names: Mapping[str, object]
    specials: Sequence[str]

    @classmethod
    def of(cls, base: Path) -> Chat:
        """Read the template of a base model's folder. Raises InputError where it has none."""
        from transformers import PreTrainedTokenizerFast

        tokenizer: Any = PreTrainedTokenizerFast.from_pretrained(base, local_files_only=True)
        try:
            template = str(tokenizer.get_chat_template())
        except ValueError:
            raise InputError("the base model has no chat template, so that messages are no text; give text") from None
        added = tokenizer.backend_tokenizer.get_added_tokens_decoder().values()
        return cls(template, tokenizer.special_tokens_map, [token.content for token in added if token.special])

    def render(self, messages: Sequence[Message], tools: Sequence[Mapping[str, object]]) -> str:
        """Return a conversation as text. Raises InputError where the template refuses it."""
        return self._render(messages, tools)[0]

    def render_scored(self, messages: Sequence[Message], tools: Sequence[Mapping[str, object]]) -> Rendered:
        """Return a conversation as text with the assistant's words marked.

        Raises InputError where the template refuses it, and where the words are not in the text as they were said.
        """
        text, marked = self._render(messages, tools)
        if GENERATION.search(self.template):
            return Rendered(text, marked)
        said = [message for message in messages if message["role"] == "assistant"]
        if any(message.get("tool_calls") for message in said):
            raise InputError("calls of tools are the assistant's words only by a chat template with {% generation %}")
        pieces = self._between(messages, tools, len(said))
        return Rendered(text, self._locate(text, pieces, [str(message["content"]) for message in said]))

    def _render(self, messages: Sequence[Message], tools: Sequence[Mapping[str, object]]) -> tuple[str, Sequence[Span]]:
        from jinja2.exceptions import TemplateSyntaxError
        from transformers.utils import chat_template_utils

        # The declared types are not those that it gives.
        render: Any = chat_template_utils.render_jinja_template
        marks = bool(GENERATION.search(self.template))
        try:
            texts, spans = render(
                conversations=[[dict(message) for message in messages]],
                tools=[dict(tool) for tool in tools] or None,
                chat_template=self.template,
                return_assistant_tokens_mask=marks,
                **{**self.names, "strftime_now": TODAY.strftime},
            )
        except TemplateSyntaxError as error:
            raise InputError(f"the base model's chat template is broken in its line {error.lineno}: {error}") from None
        except Exception as error:
            # A template is a program, and may end in any way.
            raise InputError(f"the chat template raises {type(error).__name__}: {error}") from None
        return texts[0], [(int(begin), int(end)) for begin, end in spans[0]] if marks else []

    def _between(self, messages: Sequence[Message], tools: Sequence[Mapping[str, object]], count: int) -> list[str]:
        """Return what the template writes before, between and after the assistant's contents."""
        # Of characters for private use, which no template trims.
        marks = [f"\ue000{number}\ue001" for number in range(count)]
        following = iter(marks)
        marked = [
            {**message, "content": next(following)} if message["role"] == "assistant" else message
            for message in messages
        ]
        rest, pieces = self._render(marked, tools)[0], []
        for number, mark in enumerate(marks, start=1):
            if rest.count(mark) != 1:
                raise InputError(f"the chat template writes answer {number} {rest.count(mark)} times")
            piece, _, rest = rest.partition(mark)
            pieces.append(piece)
        return [*pieces, rest]

    def _locate(self, text: str, pieces: Sequence[str], contents: Sequence[str]) -> list[Span]:
        spans, begin = [], 0
        for before, content, after in zip(pieces, contents, pieces[1:], strict=False):
            start = begin + len(before)
            # Templates keep what is around a content or trim it.
            forms = [content, content.strip(), content.lstrip(), content.rstrip()]
            written = next((form for form in forms if text.startswith(f"{form}{after}", start)), None)
            if written is None or text[begin:start] != before:
                raise InputError(
                    "the chat template rewrites what the assistant says (it may leave out thoughts), so that its words "
                    "are not known: use score: all, or a template with {% generation %}"
                )
            begin = start + len(written)
            spans.append((start, begin + self._end(after)))
        return spans

    def _end(self, after: str) -> int:
        """Count the characters up to the end of the special token that follows an answer; 0 where another text does."""
        space = len(after) - len(after.lstrip())
        ends = [len(special) for special in self.specials if after.startswith(special, space)]
        return space + max(ends) if ends else 0
