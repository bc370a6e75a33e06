"""What counts in the digest of a program, on small packages; tests/runtime/test_address.py has the package itself."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from textwrap import dedent

import pytest

from hemorrhage.runtime.digest import Sources

Package = dict[str, str]
MAIN = "from hemorrhage.tools import half\n\ndef main():\n    return half(4)\n"
TOOLS = "def half(x):\n    return x / 2\n"


@pytest.fixture
def digest(tmp_path: Path) -> Callable[..., str]:
    """Digest of ``hemorrhage.main`` in a package of these modules; keywords are files, ``_in_`` stands for a slash."""
    count = 0

    def of(**files: str) -> str:
        nonlocal count
        count += 1
        root = tmp_path / str(count)
        for name, text in {"__init__": "", "main": MAIN, "tools": TOOLS, **files}.items():
            file = root / f"{name.replace('_in_', '/')}.py"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(dedent(text))
        return Sources(root).program("hemorrhage.main")

    return of


def cases(text: str) -> dict[str, tuple[str, str]]:
    """``== name``, a module before, ``--``, the module after, for each case."""
    found = {}
    for case in text.split("== ")[1:]:
        name, _, modules = case.partition("\n")
        before, _, after = modules.partition("--\n")
        found[name] = before, after
    return found


SAME = cases(
    """
== comment, docstring, layout
def half(x):
    return x / 2
--
'''Words.'''
def half(x):  # words
    '''Words.'''
    "more"
    return (x
            / 2)
== unused function
def half(x):
    return x / 2
--
def half(x):
    return x / 2
def third(x):
    return x / 3
== unused constant and import
def half(x):
    return x / 2
--
from pathlib import Path
HERE = Path()
def half(x):
    return x / 2
== annotations
def half(x):
    y = x / 2
    return y
--
from os import PathLike
def half(x: PathLike) -> 'float':
    z: int
    y: float = x / 2
    return y
== annotation of a constant
TWO = 2
def half(x):
    return x / TWO
--
TWO: int = 2
def half(x):
    return x / TWO
== words of an error
def half(x):
    if x < 0:
        raise ValueError(f'{x} is negative')
    return x / 2
--
def half(x):
    if x < 0:
        raise ValueError('no negative number, please')
    return x / 2
== words of an assertion
def half(x):
    assert x, 'zero'
    return x / 2
--
def half(x):
    assert x, f'not {x}'
    return x / 2
== log line
import logging
log = logging.getLogger(__name__)
def half(x):
    log.info('half of %s', x)
    return x / 2
--
def half(x):
    return x / 2
== words of a log line that computes
def half(x):
    log.info('half of %s', next(x))
    return x / 2
--
def half(x):
    log.info('the half is of %s', next(x))
    return x / 2
== help of the command line
import argparse
def half(x):
    p = argparse.ArgumentParser(prog='a', description=__doc__)
    p.add_argument('x', help='the number')
    return p.parse_args(x)
--
import argparse
def half(x):
    p = argparse.ArgumentParser(description='halves')
    p.add_argument('x', metavar='X')
    return p.parse_args(x)
== order of imports
import os
import re
from json import dumps, loads
def half(x):
    return os, re, dumps, loads
--
import re
from json import loads, dumps
import os
def half(x):
    return os, re, dumps, loads
== order of definitions
def half(x):
    return x / two()
def two():
    return 2
--
def two():
    return 2
def half(x):
    return x / two()
== what a type checker alone sees
def half(x):
    return x / 2
--
from typing import TYPE_CHECKING
if TYPE_CHECKING:
    from hemorrhage.main import main
def half(x):
    return x / 2
== own path in a string
def half(x):
    return load(f'hemorrhage.tools.{x}')
--
def half(x):
    return load(f'hemorrhage.main.{x}')
"""
)


@pytest.mark.parametrize("name", SAME)
def test_what_only_a_person_reads_does_not_count(digest: Callable[..., str], name: str) -> None:
    before, after = SAME[name]
    assert digest(tools=before) == digest(tools=after)


MOVED = cases(
    """
== what it computes
def half(x):
    return x / 2
--
def half(x):
    return x / 3
== local name
def half(x):
    y = x / 2
    return y
--
def half(x):
    z = x / 2
    return z
== constant
TWO = 2
def half(x):
    return x / TWO
--
TWO = 3
def half(x):
    return x / TWO
== tuple of constants
ONE, TWO = 1, 2
def half(x):
    return x / TWO
--
ONE, TWO = 1, 3
def half(x):
    return x / TWO
== five steps away
def half(x):
    return a(x)
def a(x):
    return b(x)
def b(x):
    return c(x)
def c(x):
    return d(x)
def d(x):
    return x / TWO
TWO = 2
--
def half(x):
    return a(x)
def a(x):
    return b(x)
def b(x):
    return c(x)
def c(x):
    return d(x)
def d(x):
    return x / TWO
TWO = 3
== method of a class
class Two:
    def value(self):
        return 2
def half(x):
    return x / Two().value()
--
class Two:
    def value(self):
        return 3
def half(x):
    return x / Two().value()
== base class
class A:
    two = 2
class B(A):
    pass
def half(x):
    return x / B.two
--
class A:
    two = 3
class B(A):
    pass
def half(x):
    return x / B.two
== annotation in a class
class Two:
    value: int = 2
def half(x):
    return x / Two().value
--
class Two:
    value: float = 2
def half(x):
    return x / Two().value
== type named in a class
class A:
    two = 2
class Two:
    value: 'A | None'
def half(x):
    return Two
--
class A:
    two = 3
class Two:
    value: 'A | None'
def half(x):
    return Two
== annotation that a decorator reads
import functools
@functools.singledispatch
def half(x: int):
    return x / 2
--
import functools
@functools.singledispatch
def half(x: float):
    return x / 2
== table of functions
def two():
    return 2
TABLE = {'two': two}
def half(x):
    return x / TABLE['two']()
--
def two():
    return 3
TABLE = {'two': two}
def half(x):
    return x / TABLE['two']()
== factory of a field
from pydantic import BaseModel, Field
def two():
    return 2
class A(BaseModel):
    value: float = Field(default_factory=two)
def half(x):
    return x / A().value
--
from pydantic import BaseModel, Field
def two():
    return 3
class A(BaseModel):
    value: float = Field(default_factory=two)
def half(x):
    return x / A().value
== default
def two():
    return 2
def half(x, by=two):
    return x / by()
--
def two():
    return 3
def half(x, by=two):
    return x / by()
== decorator
import functools
@functools.cache
def half(x):
    return x / 2
--
def half(x):
    return x / 2
== functions that call one another
def half(x):
    return x / 2 if x else other(x)
def other(x):
    return half(x) + 1
--
def half(x):
    return x / 2 if x else other(x)
def other(x):
    return half(x) + 2
== data in an error
def half(x):
    raise KeyError('two')
--
def half(x):
    raise KeyError('three')
== log line that computes
def half(x):
    log.info('half of %s', next(x))
    return x
--
def half(x):
    log.info('half of %s', x)
    return x
== how warnings are treated
import warnings
warnings.simplefilter('error')
def half(x):
    return x / 2
--
import warnings
warnings.simplefilter('ignore')
def half(x):
    return x / 2
== effect of a module
def half(x):
    return x / 2
--
import os
os.environ['TWO'] = '2'
def half(x):
    return x / 2
== effect of an import
def half(x):
    return x / 2
--
import readline  # noqa: F401
def half(x):
    return x / 2
== effect of an import in a function
def half(x):
    return x / 2
--
def half(x):
    import readline
    return x / 2
== changed later
TABLE = {}
def half(x):
    return TABLE[x]
--
TABLE = {}
TABLE[1] = 2
def half(x):
    return TABLE[x]
== defined on a condition
try:
    from fast import two
except ImportError:
    two = 2
def half(x):
    return x / two
--
try:
    from fast import two
except ImportError:
    two = 3
def half(x):
    return x / two
== which of two imports
import os
if os.name:
    import json as j
else:
    import pickle as j
def half(x):
    return j.dumps(x)
--
import os
if os.name:
    import pickle as j
else:
    import json as j
def half(x):
    return j.dumps(x)
== what another package's name stands for
from json import dumps as write
def half(x):
    return write(x)
--
from pickle import dumps as write
def half(x):
    return write(x)
== registering decorator
ALL = []
def half(x):
    return ALL
--
ALL = []
def half(x):
    return ALL
@ALL.append
def two():
    return 2
== registered class
class A:
    ALL = []
    def __init_subclass__(cls):
        A.ALL.append(cls)
def half(x):
    return A.ALL
--
class A:
    ALL = []
    def __init_subclass__(cls):
        A.ALL.append(cls)
def half(x):
    return A.ALL
class B(A):
    pass
== own names
def half(x):
    return globals()[x]
--
def half(x):
    return globals()[x]
def two():
    return 2
== own module
import sys
def half(x):
    return sys.modules[__name__]
--
import sys
def half(x):
    return sys.modules[__name__]
def two():
    return 2
== annotations that are read
from typing import get_type_hints
def two(x: int):
    pass
def half(x):
    return get_type_hints(two)
--
from typing import get_type_hints
def two(x: str):
    pass
def half(x):
    return get_type_hints(two)
== docstring that is read
def half(x):
    'Two.'
    return half.__doc__
--
def half(x):
    'Three.'
    return half.__doc__
== string that is no path
def half(x):
    return 'hemorrhage.parquet'
--
def half(x):
    return 'hemorrhage.csv'
"""
)


@pytest.mark.parametrize("name", MOVED)
def test_what_may_change_a_result_counts(digest: Callable[..., str], name: str) -> None:
    before, after = MOVED[name]
    assert digest(tools=before) != digest(tools=after)


RENAMED: dict[str, tuple[Package, Package]] = {
    "from module import name": (
        {},
        {"tools": "", "other": TOOLS, "main": MAIN.replace("tools", "other")},
    ),
    "from package import module": (
        {
            "kit_in___init__": "",
            "kit_in_tools": TOOLS,
            "main": "from hemorrhage.kit import tools\n\ndef main():\n    return tools.half(4)\n",
        },
        {"other": TOOLS, "main": "from hemorrhage import other\n\ndef main():\n    return other.half(4)\n"},
    ),
    "import module": (
        {
            "kit_in___init__": "",
            "kit_in_tools": TOOLS,
            "main": "import hemorrhage.kit.tools\n\ndef main():\n    return hemorrhage.kit.tools.half(4)\n",
        },
        {"main": "import hemorrhage.tools as t\n\ndef main():\n    return t.half(4)\n"},
    ),
    "passed on": (
        {},
        {"other": TOOLS, "tools": "from hemorrhage.other import half\n\n__all__ = ['half']\n"},
    ),
    "in a function": (
        {},
        {"main": "def main():\n    from hemorrhage.tools import half\n\n    return half(4)\n"},
    ),
    "taken apart": (
        {"tools": "def half(x):\n    return x / two()\n\ndef two():\n    return 2\n"},
        {
            "tools": "from hemorrhage.numbers import two\n\ndef half(x):\n    return x / two()\n",
            "numbers": "def two():\n    return 2\n",
        },
    ),
    "whole module": (
        {"main": "from hemorrhage import tools\n\ndef main():\n    return vars(tools)\n"},
        {"other": TOOLS, "main": "from hemorrhage import other\n\ndef main():\n    return vars(other)\n"},
    ),
}


@pytest.mark.parametrize("name", RENAMED)
def test_where_a_definition_stands_does_not_count(digest: Callable[..., str], name: str) -> None:
    before, after = RENAMED[name]
    assert digest(**before) == digest(**after)


TWO_MODULES = {"a": "def read():\n    return 1\n", "b": "def read():\n    return 2\n"}


SWAPPED = """
== names
from hemorrhage.{0} import read
from hemorrhage.{1} import read as other
def main():
    return read(), other()
== modules
from hemorrhage import {0} as x, {1} as y
def main():
    return x.read(), y.read()
== whole paths
import hemorrhage.a, hemorrhage.b
def main():
    return hemorrhage.{0}.read() / hemorrhage.{1}.read()
== in functions
def f():
    from hemorrhage.{0} import read
    return read()
def g():
    from hemorrhage.{1} import read
    return read()
== on a condition
def f(x):
    if x:
        from hemorrhage.{0} import read
    else:
        from hemorrhage.{1} import read
    return read()
== where one is missing
try:
    from hemorrhage.{0} import read
except ImportError:
    from hemorrhage.{1} import read
MAIN = read()
"""


@pytest.mark.parametrize("main", [case.partition("\n")[2] for case in SWAPPED.split("== ")[1:]])
def test_two_names_that_are_swapped_count(digest: Callable[..., str], main: str) -> None:
    assert digest(**TWO_MODULES, main=main.format("a", "b")) != digest(**TWO_MODULES, main=main.format("b", "a"))


def test_a_module_counts_whole_where_it_is_passed_on_or_found_by_its_name(digest: Callable[..., str]) -> None:
    more = TOOLS + "\ndef third(x):\n    return x / 3\n"
    passed = "from hemorrhage import tools\n\ndef main(run):\n    return run(tools)\n"
    assert digest(main=passed) != digest(main=passed, tools=more)
    found = MAIN + "\nFORMS = {'a': 'hemorrhage.tools'}\n\ndef form(a):\n    return importlib.import_module(FORMS[a])\n"
    assert digest(main=found) != digest(main=found, tools=more)
    renamed = {"main": found.replace("tools", "other"), "tools": "", "other": TOOLS}
    assert digest(main=found) == digest(**renamed)
    # Put together at run time: the plan names it.
    built = MAIN + "\ndef form(a):\n    return importlib.import_module(f'hemorrhage.{a}')\n"
    assert digest(main=built) == digest(main=built, tools=more)


def test_effects_count_in_every_program_that_loads_the_module(digest: Callable[..., str]) -> None:
    effect = "import os\nos.environ['A'] = 'b'\n"
    assert digest() != digest(__init__=effect)
    tools = "from hemorrhage.far import unused\n" + TOOLS
    assert digest(tools=tools, far="unused = 1\n") != digest(tools=tools, far="unused = 1\n" + effect)
    main = "def main():\n    import hemorrhage.far\n"
    assert digest(main=main, far="") != digest(main=main, far=effect)
    assert digest(far="") == digest(far=effect)


def test_what_a_module_does_when_it_is_run_counts_there_alone(digest: Callable[..., str]) -> None:
    run = "\nif __name__ == '__main__':\n    print(half(1))\n"
    assert digest() == digest(tools=TOOLS + run)
    assert digest() != digest(main=MAIN + run)


def test_a_stand_in_for_a_library_counts(digest: Callable[..., str]) -> None:
    lazy = """
        from typing import TYPE_CHECKING
        if TYPE_CHECKING:
            import torch
        else:
            class _Torch:
                a = {}
            torch = _Torch()
    """
    main = "from hemorrhage.lazy import torch\n\ndef main():\n    return torch.ones(1)\n"
    assert digest(main=main, lazy=lazy.format(1)) != digest(main=main, lazy=lazy.format(2))
    assert digest(main=main, lazy=lazy.format(1)) != digest(main="import torch\n" + main.partition("\n")[2])


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("from . import tools", "relative imports"),
        ("from hemorrhage.tools import *", "star imports"),
        ("from os import *", "star imports"),
    ],
)
def test_imports_that_hide_names_are_refused(digest: Callable[..., str], line: str, message: str) -> None:
    with pytest.raises(ValueError, match=f"hemorrhage.main: {message}"):
        digest(main=f"{line}\n")


def test_modules_are_those_that_are_loaded(tmp_path: Path) -> None:
    files = {"__init__": "", "main": MAIN, "tools": "from hemorrhage.a import one\n" + TOOLS, "a": "one = 1\n", "b": ""}
    for name, text in files.items():
        (tmp_path / f"{name}.py").write_text(text)
    sources = Sources(tmp_path)
    assert sources.modules_of("hemorrhage.main") == {
        "hemorrhage",
        *(f"hemorrhage.{name}" for name in ("main", "tools", "a")),
    }
    with pytest.raises(ValueError, match=r"hemorrhage\.c is not a module"):
        sources.program("hemorrhage.c")
