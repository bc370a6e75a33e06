"""The table of compression methods in docs/methods.md and the list in README.md, from what the methods say themselves.

    python -m hemorrhage.tools.methods

writes both between their markers. A test compares what is committed with what it would write.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from hemorrhage.compress.catalogue import method_of
from hemorrhage.compress.info import FAMILIES, Paper
from hemorrhage.compress.method import SHUFFLED, Method, Settings
from hemorrhage.models.engines import STORED, answer
from hemorrhage.study.registry import METHODS

BEGIN, END = "<!-- methods: begin (python -m hemorrhage.tools.methods) -->", "<!-- methods: end -->"


def methods() -> dict[str, list[Method]]:
    """Return the registry's methods by family, in the families' order."""
    known = [method_of(name) for name in METHODS]
    return {family: [method for method in known if method.family == family] for family in FAMILIES}


def table() -> str:
    """Return the table of all methods, a section for each family."""
    lines = []
    for family, members in methods().items():
        lines += [f"## {FAMILIES[family].title}", "", f"Family `{family}`.", ""]
        lines += ["| method | what it does | paper | axis | statistics | control | improves on | runs in |"]
        lines += ["|---|---|---|---|---|---|---|---|"]
        lines += [_row(method) for method in members]
        examples = [line for method in members for line in _params(method)]
        lines += ["", "```yaml", *examples, "```", ""] if examples else [""]
    return "\n".join(lines)


def short_list() -> str:
    """Return the methods by family, a line each."""
    return "\n".join(
        f"- {FAMILIES[family].title}: {', '.join(f'`{method.name}`' for method in members)}"
        for family, members in methods().items()
    )


def _row(method: Method) -> str:
    info = method.info
    cells = (
        f"`{method.name}`: {info.title}",
        info.summary,
        ", ".join(map(_paper, info.papers)) or "–",
        f"{method.settings.axis} (`{method.settings.severity_field}`)" if method.settings.severity_field else "–",
        ", ".join(_statistics(method)) or "none",
        f"`{SHUFFLED}`" if SHUFFLED in method.settings.model_fields else "–",
        ", ".join(dict.fromkeys(_plain(each.plain) for each in info.improves_on)) or "–",
        "; ".join(dict.fromkeys(answer(STORED[name]).names or "this bench" for name in info.storage))
        or "what reads it",
    )
    return f"| {' | '.join(cells)} |"


def _paper(paper: Paper) -> str:
    return f"[{paper.authors} {paper.arxiv}](https://arxiv.org/abs/{paper.arxiv})" if paper.arxiv else paper.authors


def _plain(method: str) -> str:
    return f"`{method}`" if method else "what it is on"


def _statistics(method: Method) -> Iterator[str]:
    yield from dict.fromkeys(name for settings in method.examples for name in settings.statistics)


def _params(method: Method) -> Iterator[str]:
    """Yield a line of params.yaml for each example."""
    for index, example in enumerate(method.info.examples):
        name = method.name if index == 0 else f"{method.name}_{index + 1}"
        content = {"method": method.name, **{key: _listed(method.settings, key, example[key]) for key in example}}
        yield f"{name}: {{{', '.join(f'{key}: {_yaml(value)}' for key, value in content.items())}}}"


def _listed(settings: type[Settings], key: str, value: object) -> object:
    """Return a setting as a sweep of one value where it moves a variant along its axis, or is a list itself."""
    return [value] if key == settings.severity_field or isinstance(value, tuple | list) else value


def _yaml(value: object) -> str:
    text = json.dumps(value)
    return value if isinstance(value, str) and value.replace("_", "").isalnum() else text


def replace_generated(text: str, content: str) -> str:
    """Return ``text`` with ``content`` between its markers. Raises ValueError where there are none."""
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"no {BEGIN} and {END}")
    return f"{before}{BEGIN}\n{content}\n{END}{after}"


def generated_files() -> dict[Path, str]:
    """Return each file with its generated part as it should be."""
    parts = {Path("docs/methods.md"): table(), Path("README.md"): short_list()}
    return {file: replace_generated(file.read_text(encoding="utf-8"), content) for file, content in parts.items()}


def main() -> None:
    """Write the files; see the module's docstring."""
    for file, text in generated_files().items():
        file.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
