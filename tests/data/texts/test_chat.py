"""Conversations as the template writes them, and where the assistant's words are."""

from __future__ import annotations

from pathlib import Path

import pytest

from hemorrhage.data.texts.chat import Chat
from hemorrhage.data.texts.records import Message
from hemorrhage.runtime.step import InputError
from tests.chats import CHATML, TINY, with_template

TALK: tuple[Message, ...] = (
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "yes"},
    {"role": "assistant", "content": " yes "},
    {"role": "user", "content": "yes"},
    {"role": "assistant", "content": "no"},
)

GENERATION = (
    "{% for message in messages %}{{ message['role'] }}: {% if message['role'] == 'assistant' %}{% generation %}"
    "{{ message['content'] + '</s>' }}{% endgeneration %}{% else %}{{ message['content'] }}{% endif %}|{% endfor %}"
)

LAST_ANSWER_THINKS = (
    "{% for message in messages %}<|{{ message['role'] }}|>{% if message['role'] == 'assistant' and loop.last %}"
    "<think></think>{% endif %}{{ message['content'] }}<|end|>{% endfor %}"
)
"""As Qwen 3 does: a conversation that ends earlier is no beginning of one that goes on."""

NO_THOUGHTS = "{% for message in messages %}{{ message['content'].split('</think>')[-1] }}|{% endfor %}"


def chat(template: str) -> Chat:
    return Chat(template, {"bos_token": "<s>", "eos_token": "</s>"}, ["<|im_end|>", "</s>", "<s>", "<|end|>"])


def scored(template: str, messages: tuple[Message, ...] = TALK) -> list[str]:
    rendered = chat(template).render_scored(messages, ())
    return [rendered.text[begin:end] for begin, end in rendered.spans]


@pytest.mark.parametrize(
    ("template", "answers"),
    [
        (CHATML, [" yes <|im_end|>", "no<|im_end|>"]),
        (TINY, ["yes</s>", "no</s>"]),
        (GENERATION, [" yes </s>", "no</s>"]),
        (LAST_ANSWER_THINKS, [" yes <|end|>", "no<|end|>"]),
    ],
    ids=["chatml", "trimmed", "generation", "changing"],
)
def test_the_assistants_words_are_its_contents_and_what_ends_them(template: str, answers: list[str]) -> None:
    assert scored(template) == answers
    assert scored(template, TALK[:2]) == []


def test_the_words_are_where_transformers_says_they_are() -> None:
    marked = CHATML.replace(
        "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}",
        "{{ '<|im_start|>' + message['role'] + '\\n' }}{% if message['role'] == 'assistant' %}{% generation %}"
        "{{ message['content'] + '<|im_end|>' }}{% endgeneration %}{% else %}{{ message['content'] + '<|im_end|>' }}"
        "{% endif %}{{ '\\n' }}",
    )
    assert marked != CHATML
    ours, theirs = chat(CHATML).render_scored(TALK, ()), chat(marked).render_scored(TALK, ())
    assert ours == theirs


def test_thoughts_that_a_template_leaves_out_are_refused_where_they_are() -> None:
    assert scored(NO_THOUGHTS) == [" yes ", "no"]
    thinking = (*TALK[:4], {"role": "assistant", "content": "hm</think>no"})
    with pytest.raises(InputError, match=r"^the chat template rewrites what the assistant says \("):
        chat(NO_THOUGHTS).render_scored(thinking, ())
    assert chat(NO_THOUGHTS).render(thinking, ()).endswith("|no|")


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{{ raise_exception('Roles') }}", "the chat template raises TemplateError: Roles"),
        ("{{ messages[9]['content'] }}", "the chat template raises UndefinedError: "),
        ("{{ messages[0]['content'] + 1 }}", "the chat template raises TypeError: "),
        ("\n{% for %}", "the base model's chat template is broken in its line 2: "),
        ("{{ ''.__class__.__mro__[1].__subclasses__() }}", "the chat template raises SecurityError: "),
        ("{{ messages.clear() }}", "the chat template raises SecurityError: "),
    ],
)  # fmt: skip
def test_what_a_template_raises_is_one_line(template: str, message: str) -> None:
    with pytest.raises(InputError) as caught:
        chat(template).render(TALK, ())
    assert str(caught.value).startswith(message)


def test_a_text_is_the_same_on_every_day() -> None:
    assert chat("{{ strftime_now('%d %b %Y') }}").render(TALK, ()) == "26 Jul 2024"


def test_calls_of_tools_are_scored_by_a_template_that_marks_them_alone() -> None:
    calls = ({"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "f"}}]},)
    with pytest.raises(InputError, match=r"^calls of tools are the assistant's words only by a chat template with"):
        chat(CHATML).render_scored(calls, ())
    assert scored(GENERATION, calls) == ["</s>"]
    assert "f" in chat("{{ tools | tojson }}").render(calls, ({"name": "f"},))


def test_the_template_is_that_of_the_base(tiny: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"^the base model has no chat template"):
        Chat.of(tiny)
    read = Chat.of(with_template(tiny, tmp_path / "base"))
    assert read.template == TINY
    assert read.render(TALK[1:2], ()) == "<s>user: yes\n"
    assert {"<s>", "</s>"} <= set(read.specials)
