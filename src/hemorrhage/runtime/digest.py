"""Digests of programs: their definitions, and what they refer to.

The digest of a program is made of the top-level definitions that its entry module can reach, each with the digests of
what it refers to. Where a definition stands does not count, and neither does what only a person reads: comments,
docstrings, annotations of functions, the words of errors, log lines and command-line help. So a module may be moved or
renamed, and a message reworded, without an output losing its address. What this analysis is unsure about counts:

- Statements of a module that define no plain name are its *effects*. They count in every program that loads the module.
- A name counts wherever it is loaded, also where a local variable of that name hides the definition.
- A module that is used other than by ``module.name`` counts whole; so does one that looks into its own names
  (``globals()``).
- A module whose whole name stands as a string where modules are imported by name counts whole as soon as anything of
  it counts. Where a name is put together at run time, the plan names the module as a program of its own.
- A program that reads annotations at run time counts with all annotations of what it reaches, and one that reads
  docstrings or the names of modules with the whole text of all its modules.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import json
import re
import sys
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, TypeGuard

PACKAGE = "hemorrhage"

PURE = (
    *("cache", "lru_cache", "wraps", "cached_property", "contextmanager", "asynccontextmanager", "total_ordering"),
    *("dataclass", "property", "staticmethod", "classmethod", "overload", "abstractmethod", "setter", "deleter"),
    *("inference_mode", "no_grad"),
)
"""Decorators that neither register what they decorate nor read its annotations."""

UNANNOTATED = (*PURE, "model_validator", "field_validator")
"""Decorators that do not read annotations."""

LOGGERS = ("log", "logger", "logging", "warnings")
MESSAGES = ("debug", "info", "warning", "warn", "error", "exception", "critical", "log")
"""Calls ``LOGGERS.MESSAGES(...)`` only say something to a person."""

HARMLESS = ("len", "str", "repr", "int", "float", "round", "abs", "join", "format", "getLogger")
"""Calls in the arguments of a message that change nothing."""

COMMAND_LINE = ("ArgumentParser", "add_argument", "add_parser", "add_subparsers", "add_argument_group")
HELP = ("help", "description", "epilog", "prog", "usage", "metavar", "title")
"""Keywords of COMMAND_LINE that a person reads."""

TEXTS = ("__doc__", "getdoc", "__module__", "__subclasses__")
ANNOTATIONS = ("get_type_hints", "get_annotations", "__annotations__", "annotation", "return_annotation")
"""Names and attributes by which a program reads what does not count otherwise: its own texts, annotations alone."""

CONDITIONAL = (ast.Try, ast.TryStar, ast.For, ast.AsyncFor, ast.While, ast.With, ast.AsyncWith, ast.Match)
"""Statements whose blocks may run or not."""

PATH = re.compile(rf"\b{PACKAGE}(?:\.\w+)+")


class Definition(NamedTuple):
    """A top-level definition of a module; its name is EFFECTS, MAIN or WHOLE for what is none."""

    module: str
    name: str


EFFECTS, MAIN, WHOLE = "<effects>", "<main>", "<whole>"
"""Statements that define no name; ``if __name__ == "__main__"``; everything."""

Target = Definition | str
"""Referent of a name: something of this package, or a description of what another package has."""


class Member(NamedTuple):
    """Binding of ``from module import name``, before it is resolved."""

    module: str
    name: str


@dataclass
class Fragment:
    """A statement: its text, what its names stand for, the modules that it imports when it runs."""

    text: str = ""
    names: dict[str, list[Target]] = field(default_factory=dict)
    loads: set[str] = field(default_factory=set)
    annotations: list[ast.expr] = field(default_factory=list)
    reads_texts: bool = False
    reads_annotations: bool = False


class Import(NamedTuple):
    """An import within a statement; one that is ``hidden`` only a type checker sees."""

    statement: ast.Import | ast.ImportFrom
    hidden: bool


class Class(NamedTuple):
    """A class: whether it hears of its subclasses, and the names of its bases."""

    hears: bool
    bases: set[str]


@dataclass
class Module:
    """A module as written: what defines its names, what it imports, and what it does when it is imported."""

    name: str
    tree: ast.Module
    definitions: dict[str, list[ast.stmt]] = field(default_factory=lambda: defaultdict(list))
    imports: dict[str, list[Member | str]] = field(default_factory=lambda: defaultdict(list))
    effects: list[ast.stmt] = field(default_factory=list)
    main: list[ast.stmt] = field(default_factory=list)
    bound: set[str] = field(default_factory=set)
    loads: set[str] = field(default_factory=set)
    classes: dict[str, Class] = field(default_factory=dict)
    inner: dict[int, list[Import]] = field(default_factory=dict)
    unused: set[str] = field(default_factory=set)
    fragments: dict[int, Fragment] = field(default_factory=dict)

    def statements(self, name: str) -> list[ast.stmt]:
        """Return the statements of a definition."""
        return {EFFECTS: self.effects, MAIN: self.main}.get(name) or self.definitions.get(name, [])

    def define(self, names: Iterable[str], statement: ast.stmt) -> None:
        """Add a statement that defines names and does nothing else."""
        for name in names:
            self.definitions[name].append(statement)
        if isinstance(statement, ast.ClassDef):
            self.classes[statement.name] = _class(statement)


class Sources:
    """The modules under a folder, which is this package, and the digests of programs among them."""

    def __init__(self, root: Path) -> None:
        self.texts = _texts(root)
        self._labels: dict[Target, str] = {}
        self.module = functools.cache(self._module)
        self.whole = functools.cache(lambda name: _digest(ast.unparse(ast.parse(self._text(name)))))

    def program(self, module: str) -> str:
        """Digest everything that the module ``module`` reaches. Raises ValueError where that is not decidable."""
        reached, loaded = self._closure(module)
        if any(fragment.reads_annotations for each in reached for fragment in self._fragments(each)):
            reached, loaded = self._closure(module, annotated=True)
        self._label(reached)
        fragments = [fragment for each in reached for fragment in self._fragments(each)]
        parts: list[Any] = [sorted({self._labels[each] for each in reached})]
        if any(fragment.reads_annotations for fragment in fragments):
            parts.append(sorted(ast.unparse(each) for fragment in fragments for each in fragment.annotations))
        if any(fragment.reads_texts for fragment in fragments):
            parts.append(sorted((name, self.whole(name)) for name in loaded))
        return _digest(parts)

    def reads_texts(self, module: str) -> bool:
        """Tell whether the program reads what does not count otherwise: all the text of its modules counts."""
        return any(fragment.reads_texts for each in self._closure(module)[0] for fragment in self._fragments(each))

    def modules_of(self, module: str) -> set[str]:
        """Name the modules that are loaded when everything runs that the module ``module`` reaches."""
        return self._closure(module)[1]

    # Which definitions a program has.

    def _closure(self, entry: str, annotated: bool = False) -> tuple[set[Definition], set[str]]:
        of_entry = self.module(entry)
        waiting = [Definition(entry, name) for name in (*of_entry.definitions, EFFECTS, MAIN)]
        reached: set[Definition] = set()
        loaded: set[str] = set()
        while waiting:
            each = waiting.pop()
            if each in reached:
                continue
            reached.add(each)
            for name in self._loading(each, loaded):
                loaded.add(name)
                waiting.append(Definition(name, EFFECTS))
                waiting += self._registered(name)
            if each.name != EFFECTS and each.module in self._named:
                waiting.append(Definition(each.module, WHOLE))
            references = self._references(each) + (self._annotations(each) if annotated else [])
            waiting += [target for target in references if isinstance(target, Definition)]
        return reached, loaded

    def _loading(self, each: Definition, loaded: Collection[str]) -> set[str]:
        """Name the modules that are loaded with a definition, without those that are already."""
        waiting = {each.module, *(name for fragment in self._fragments(each) for name in fragment.loads)}
        loading: set[str] = set()
        while waiting:
            name = waiting.pop()
            if name not in loading and name not in loaded:
                loading.add(name)
                waiting |= self.module(name).loads | set(filter(self.has, _parents(name)))
        return loading

    def _registered(self, module: str) -> list[Definition]:
        """List the classes that another class of this package hears of when they are defined."""
        return [each for name in self.module(module).classes if self._is_heard(each := Definition(module, name), set())]

    def _is_heard(self, each: Definition, seen: set[Definition]) -> bool:
        """Tell whether a class, or one of those that it is made of, hears of those made of it."""
        seen.add(each)
        module = self.module(each.module)
        if each.name == WHOLE:
            others: list[Target] = [Definition(each.module, name) for name in module.classes]
        elif each.name not in module.classes:
            return False
        elif module.classes[each.name].hears:
            return True
        else:
            others = [target for name in module.classes[each.name].bases for target in self.bound(module, name)]
        return any(
            self._is_heard(other, seen) for other in others if isinstance(other, Definition) and other not in seen
        )

    @functools.cached_property
    def _named(self) -> set[str]:
        """Modules whose names stand as strings in modules that import by name at run time."""
        strings_held: set[str] = set()
        for text in self.texts.values():
            if "import_module" in text or "__import__" in text:
                nodes = list(ast.walk(ast.parse(text)))
                documentation = {id(node.value) for node in nodes if isinstance(node, ast.Expr)}
                strings = (node for node in nodes if isinstance(node, ast.Constant) and id(node) not in documentation)
                strings_held |= {node.value for node in strings if isinstance(node.value, str)}
        return strings_held & self.texts.keys()

    # The digest of a definition with all that it refers to.

    def _label(self, reached: Collection[Definition]) -> None:
        """Digest what is reached, components first: what refers to one another is digested together."""
        for component in _components(sorted(reached), self._references, self._labels):
            inside = {each: _digest(self._content_of(each, {})) for each in component}
            # Distinguished by their neighbours, and by the neighbours of those, until no more are distinguished.
            distinct = 0
            while distinct < len(set(inside.values())) or distinct == 0:
                distinct = len(set(inside.values()))
                inside = {each: _digest(self._content_of(each, inside)) for each in component}
            self._labels |= inside

    def _content_of(self, each: Target, inside: dict[Target, str]) -> Any:
        if isinstance(each, str):
            return each
        return [
            [
                fragment.text,
                sorted((name, self._labels_of(targets, inside)) for name, targets in fragment.names.items()),
            ]
            for fragment in self._fragments(each)
        ]

    def _labels_of(self, targets: list[Target], inside: dict[Target, str]) -> list[str]:
        return [self._labels.get(each) or inside.get(each, "") for each in targets]

    def _references(self, each: Target) -> list[Target]:
        if isinstance(each, str):
            return []
        return [
            target for fragment in self._fragments(each) for targets in fragment.names.values() for target in targets
        ]

    def _annotations(self, each: Definition) -> list[Target]:
        """List what the annotations of a definition refer to that are not in its text."""
        nodes = [node for fragment in self._fragments(each) for each in fragment.annotations for node in ast.walk(each)]
        names = {node.id for node in nodes if isinstance(node, ast.Name)}
        strings = (node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str))
        names |= {name for text in strings for name in re.findall(r"\w+", text)}
        return [target for name in names for target in self.bound(self.module(each.module), name)]

    def _fragments(self, each: Definition) -> list[Fragment]:
        module = self.module(each.module)
        if each.name == WHOLE:
            return [
                Fragment("whole", {name: [Definition(each.module, name)] for name in (*module.definitions, EFFECTS)})
            ]
        fragments = []
        for statement in module.statements(each.name):
            if id(statement) not in module.fragments:
                module.fragments[id(statement)] = _Reader(self, module, statement).read()
            fragments.append(module.fragments[id(statement)])
        if each.name == EFFECTS and (unused := self._unused(module)):
            fragments.append(Fragment("", unused))
        return [each for each in fragments if each.text or each.names or each.annotations]

    def _unused(self, module: Module) -> dict[str, list[Target]]:
        """List what a module imports of other packages and does not use: it may be imported for its effect."""
        unused: dict[str, list[Target]] = {}
        for name in module.unused:
            if others := [each for each in module.imports[name] if isinstance(each, str)]:
                unused[name] = sorted(others)
        return unused

    # What a name stands for.

    def bound(self, module: Module, name: str, local: Iterable[Member | str] = ()) -> list[Target]:
        """List all that a name may stand for in a module; ``local`` are imports within the statement."""
        targets = self._imported([*module.imports.get(name, ()), *local])
        if name in module.definitions:
            targets.append(Definition(module.name, name))
        if name in module.bound:
            targets.append(Definition(module.name, EFFECTS))
        return targets

    def _imported(self, imports: Iterable[Member | str]) -> list[Target]:
        """List what imports of one name bind it to, in their order."""
        targets: list[Target] = sorted(each for each in imports if isinstance(each, str))
        for each in imports:
            if isinstance(each, Member):
                targets += self.member(each.module, each.name) if each.name else [Definition(each.module, WHOLE)]
        return list(dict.fromkeys(targets))

    def member(self, module: str, name: str, seen: tuple[Member, ...] = ()) -> list[Target]:
        """Resolve ``module.name`` through all modules that pass it on."""
        if not self.has(module):
            return [f"{module}.{name}"]
        source = self.module(module)
        targets: list[Target] = []
        for each in source.imports.get(name, ()):
            if isinstance(each, str):
                targets.append(each)
            elif not each.name:
                targets.append(Definition(each.module, WHOLE))
            elif each not in seen:
                targets += self.member(each.module, each.name, (*seen, each))
        if name in source.definitions:
            targets.append(Definition(module, name))
        if name in source.bound:
            targets.append(Definition(module, EFFECTS))
        if self.has(f"{module}.{name}"):
            targets.append(Definition(f"{module}.{name}", WHOLE))
        return list(dict.fromkeys(targets)) or [Definition(module, WHOLE)]

    # Files.

    @functools.cached_property
    def version(self) -> str:
        """Digest of all texts, comments included, and of the Python that reads them."""
        return _digest([sys.version, self.texts])

    def has(self, module: str) -> bool:
        """Tell whether there is a module of this name."""
        return module in self.texts

    def _text(self, module: str) -> str:
        if module not in self.texts:
            raise ValueError(f"{module} is not a module of {PACKAGE}")
        return self.texts[module]

    def _module(self, name: str) -> Module:
        module = Module(name, ast.parse(self._text(name)))
        used: set[str] = set()
        for statement in module.tree.body:
            self._place(module, statement, used)
        module.unused = set(module.imports) - used
        return module

    def _place(self, module: Module, statement: ast.stmt, used: set[str]) -> None:
        """Put a top-level statement where it belongs: definitions, imports, effects; add the names in it to ``used``.

        That happens before anything is read: reading a statement takes out of it what does not count.
        """
        if isinstance(statement, ast.Import | ast.ImportFrom):
            self.read_import(module.name, statement, module.imports, module.loads)
            return
        imports = module.inner[id(statement)] = _survey(statement, used)
        if (runs := _at_run_time(statement)) is not None:
            for each in imports:
                self._read_hidden(module, each)
            for inner in runs:
                self._place(module, inner, used)
        elif _is_main(statement):
            module.main += statement.body
            for inner in statement.body:
                module.inner[id(inner)] = _survey(inner, used)
        elif names := _defined(statement, module):
            module.define(names, statement)
        elif not _is_documentation(statement):
            for each in imports:
                self.read_import(module.name, each.statement, module.imports, set() if each.hidden else module.loads)
            module.bound |= _bound_in(statement)
            module.effects.append(statement)

    def _read_hidden(self, module: Module, each: Import) -> None:
        if each.hidden:
            self.read_import(module.name, each.statement, module.imports, set())

    def read_import(
        self, module: str, statement: ast.stmt, names: dict[str, list[Member | str]], loads: set[str]
    ) -> None:
        """Add what an import binds to ``names``, and the modules of this package that it loads to ``loads``."""
        if isinstance(statement, ast.Import):
            for alias in statement.names:
                first = alias.name.split(".")[0]
                if first == PACKAGE:
                    names[alias.asname or first].append(Member(alias.name if alias.asname else first, ""))
                    loads |= {alias.name} if self.has(alias.name) else set()
                else:
                    names[alias.asname or first].append(alias.name)
        elif isinstance(statement, ast.ImportFrom) and statement.module != "__future__":
            source = statement.module or ""
            if statement.level:
                raise ValueError(f"{module}: relative imports hide what an address depends on; write {PACKAGE}.…")
            if any(alias.name == "*" for alias in statement.names):
                raise ValueError(f"{module}: star imports hide what an address depends on; name what is imported")
            for alias in statement.names:
                bound, whole = alias.asname or alias.name, f"{source}.{alias.name}"
                if source.split(".")[0] != PACKAGE:
                    names[bound].append(whole)
                    continue
                loads |= {name for name in (source, whole) if self.has(name)}
                if self.has(whole) and not self._binds(source, alias.name):
                    names[bound].append(Member(whole, ""))
                else:
                    names[bound].append(Member(source, alias.name))

    def _binds(self, package: str, name: str) -> bool:
        """Tell whether a package's source __init__ binds a name, which a module of that name comes after."""
        source = self.module(package)
        return name in source.definitions or name in source.imports or name in source.bound


class _Reader(ast.NodeTransformer):
    """Reads a statement: takes out what does not count, and notes what its names stand for."""

    visitors: ClassVar[dict[type[ast.AST], Any]] = {}

    def __init__(self, sources: Sources, module: Module, statement: ast.stmt) -> None:
        self.sources, self.module, self.statement = sources, module, statement
        self.fragment = Fragment()
        self.local: dict[str, list[Member | str]] = defaultdict(list)
        self.tokens: dict[str, str] = {}
        self.scope = "module"
        self.nested = 0
        self.known: dict[str, list[Target]] = {}

    def read(self) -> Fragment:
        """Return the statement without what does not count."""
        for each in self.module.inner[id(self.statement)]:
            loads = set() if each.hidden else self.fragment.loads
            self.sources.read_import(self.module.name, each.statement, self.local, loads)
        done = self.visit(self.statement)
        lines = done if isinstance(done, list) else [done] if done else []
        self.fragment.text = "\n".join(ast.unparse(each) for each in lines)
        for name, imports in self.local.items():
            # What a function imports of another package, it may import for its effect.
            others: list[Target] = sorted(each for each in imports if isinstance(each, str))
            if others and name not in self.fragment.names:
                self.fragment.names[name] = others
        return self.fragment

    # What a name stands for.

    def _targets(self, name: str) -> list[Target]:
        if name not in self.known:
            self.known[name] = self.sources.bound(self.module, name, self.local.get(name, ()))
        return self.known[name]

    def _modules(self, node: ast.expr) -> list[str]:
        """Name the modules of this package that an expression may be."""
        if isinstance(node, ast.Name):
            return [each.module for each in self._targets(node.id) if _is_module(each)]
        if isinstance(node, ast.Attribute):
            members = ((module, self.sources.member(module, node.attr)) for module in self._modules(node.value))
            # What a module does not have is taken for the module itself.
            return [
                each.module
                for module, targets in members
                for each in targets
                if _is_module(each) and each.module != module
            ]
        return []

    def _token(self, node: ast.expr, attribute: str | None) -> ast.expr:
        """Replace a module in the text by a token without its name, and note what is used of it."""
        modules, text = self._modules(node), ast.unparse(node)
        token = self.tokens.setdefault(text, f"<module {len(self.tokens)}>")
        if attribute is None:
            self._note(token, [Definition(module, WHOLE) for module in modules])
        else:
            self._note(
                f"{token}.{attribute}",
                [each for module in modules for each in self.sources.member(module, attribute)],
            )
        if isinstance(node, ast.Name):
            # What else the name may be.
            self._note(token, [each for each in self._targets(node.id) if not _is_module(each)])
        return ast.Name(token, ast.Load())

    def _note(self, name: str, targets: list[Target]) -> None:
        if targets:
            noted = self.fragment.names.setdefault(name, [])
            noted += [each for each in targets if each not in noted]

    def visit_Name(self, node: ast.Name) -> ast.expr:
        if node.id == "__name__":
            self.fragment.reads_texts = True
            self._note("<own module>", [Definition(self.module.name, WHOLE)])
        self._read(node.id)
        if isinstance(node.ctx, ast.Store) and self.scope != "module":
            return node
        if isinstance(node.ctx, ast.Load) and self._modules(node):
            return self._token(node, None)
        self._note(node.id, self._targets(node.id))
        return node

    def visit_Attribute(self, node: ast.Attribute) -> ast.expr:
        self._read(node.attr)
        if not self._modules(_first(node)):
            return self.generic_visit(node)  # type: ignore[return-value]
        if self._modules(node):
            return self._token(node, None)
        if self._modules(node.value):
            if node.attr == "__name__":
                self.fragment.reads_texts = True
            return ast.Attribute(self._token(node.value, node.attr), node.attr, node.ctx)
        return self.generic_visit(node)  # type: ignore[return-value]

    def _read(self, name: str) -> None:
        self.fragment.reads_texts |= name in TEXTS
        self.fragment.reads_annotations |= name in ANNOTATIONS

    def visit_Global(self, node: ast.Global) -> ast.stmt:
        for name in node.names:
            self._note(name, self._targets(name))
        return node

    # What does not count.

    def visit_Import(self, node: ast.Import) -> ast.stmt | None:
        return self._import(node)

    def visit_ImportFrom(self, node: ast.ImportFrom) -> ast.stmt | None:
        return self._import(node)

    def _import(self, node: ast.Import | ast.ImportFrom) -> ast.stmt | None:
        # Which of several imports happens, a condition around them says: those stay in the text.
        source = node.module if isinstance(node, ast.ImportFrom) else node.names[0].name
        return node if self.nested and (source or "").split(".")[0] != PACKAGE else None

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        return self._function(node)

    def visit_AsyncFunctionDef(self, node: ast.AsyncFunctionDef) -> ast.AST:
        return self._function(node)

    def _function(self, node: ast.FunctionDef | ast.AsyncFunctionDef) -> ast.AST:
        if all(_decorator(each) in UNANNOTATED for each in node.decorator_list):
            of = node.args
            arguments = (*of.posonlyargs, *of.args, *of.kwonlyargs, of.vararg, of.kwarg)
            annotations = [each.annotation for each in arguments if each is not None] + [node.returns]
            self.fragment.annotations += [each for each in annotations if each is not None]
            node.returns = None
            for each in arguments:
                if each is not None:
                    each.annotation = None
        return self._scope(node, "function")

    def visit_ClassDef(self, node: ast.ClassDef) -> ast.AST:
        return self._scope(node, "class")

    def _scope(self, node: ast.stmt, scope: str) -> ast.AST:
        before = self.scope, self.nested
        self.scope, self.nested = scope, 0
        self.generic_visit(node)
        self.scope, self.nested = before
        return node

    def visit(self, node: ast.AST) -> Any:
        """As in the base class, which takes twice the time."""
        node_type = type(node)
        if node_type not in self.visitors:
            default = _Reader._compound if issubclass(node_type, CONDITIONAL) else _Reader.generic_visit
            self.visitors[node_type] = getattr(_Reader, f"visit_{node_type.__name__}", default)
        return self.visitors[node_type](self, node)

    def generic_visit(self, node: ast.AST) -> ast.AST:
        """As in the base class; a block that loses all its statements gets one that does nothing."""
        content = vars(node)
        for name in node._fields:
            old = content.get(name)
            if isinstance(old, list):
                new: list[Any] = []
                for each in old:
                    done = self.visit(each) if isinstance(each, ast.AST) else each
                    if isinstance(done, list):
                        new += done
                    elif done is not None:
                        new.append(done)
                content[name] = [ast.Pass()] if name == "body" and not new else new
            elif isinstance(old, ast.AST) and old._fields:
                content[name] = self.visit(old)
        return node

    def _compound(self, node: ast.AST) -> ast.AST:
        self.nested += 1
        self.generic_visit(node)
        self.nested -= 1
        return node

    def visit_AnnAssign(self, node: ast.AnnAssign) -> ast.AST | None:
        if self.scope == "class":
            for each in ast.walk(node.annotation):
                if isinstance(each, ast.Constant) and isinstance(each.value, str):
                    for name in re.findall(r"\w+", each.value):
                        self._note(name, self._targets(name))
            return self.generic_visit(node)
        self.fragment.annotations.append(node.annotation)
        if node.value is None:
            return None
        return self.generic_visit(ast.copy_location(ast.Assign([node.target], node.value), node))

    def visit_If(self, node: ast.If) -> ast.AST | list[ast.AST]:
        runs = _at_run_time(node)
        if runs is None:
            return self._compound(node)
        lines: list[ast.AST] = []
        for each in runs:
            done = self.visit(each)
            lines += done if isinstance(done, list) else [done] if done else []
        return lines

    def visit_Expr(self, node: ast.Expr) -> ast.AST | None:
        if _is_documentation(node):
            return None
        if isinstance(node.value, ast.Call) and _is_message(node.value):
            if all(
                _called(each) in HARMLESS for each in ast.walk(node.value) if each is not node.value and _acts(each)
            ):
                return None
            node = _Wordless(all_of_it=True).visit(node)
        return self.generic_visit(node)

    def visit_Raise(self, node: ast.Raise) -> ast.AST:
        return self.generic_visit(_Wordless().visit(node))

    def visit_Assert(self, node: ast.Assert) -> ast.AST:
        if node.msg is not None:
            node.msg = _Wordless(all_of_it=True).visit(node.msg)
            if isinstance(node.msg, ast.Constant):
                node.msg = None
        return self.generic_visit(node)

    def visit_Call(self, node: ast.Call) -> ast.AST:
        called = _called(node)
        if called in COMMAND_LINE:
            node.keywords = [each for each in node.keywords if each.arg not in HELP]
        if called == "getLogger":
            # The name of the module names its logger.
            node.args = [each for each in node.args if not (isinstance(each, ast.Name) and each.id == "__name__")]
        bare = isinstance(node.func, ast.Name)
        inspects = bare and (
            called == "globals"
            or (called in ("vars", "dir") and not node.args)
            or (called == "locals" and self.scope == "module")
            or (called in ("eval", "exec") and len(node.args) + len(node.keywords) < 2)
        )
        if inspects:
            self._note("<own module>", [Definition(self.module.name, WHOLE)])
        return self.generic_visit(node)

    def visit_Constant(self, node: ast.Constant) -> ast.Constant:
        if isinstance(node.value, str) and PACKAGE in node.value:
            node.value = PATH.sub(self._placeless, node.value)
        return node

    def _placeless(self, path: re.Match[str]) -> str:
        """Return a dotted path in a string without the module that it begins with."""
        words = path[0].split(".")
        for end in range(len(words), 1, -1):
            if self.sources.has(".".join(words[:end])):
                return ".".join(["<module>", *words[end:]])
        return path[0]


class _Wordless(ast.NodeTransformer):
    """Takes the words out of a message. A string without a blank may be data, and stays unless all is a message."""

    def __init__(self, all_of_it: bool = False) -> None:
        self.all_of_it = all_of_it

    def visit_Constant(self, node: ast.Constant) -> ast.Constant:
        if isinstance(node.value, str) and (self.all_of_it or " " in node.value):
            node.value = ""
        return node

    def visit_JoinedStr(self, node: ast.JoinedStr) -> ast.expr:
        if not self.all_of_it:
            return ast.Constant("")
        # What it calls stays.
        acting = [self.generic_visit(each) for each in ast.walk(node) if _acts(each)]
        return ast.Tuple(acting, ast.Load()) if acting else ast.Constant("")  # type: ignore[arg-type]


def _texts(root: Path) -> dict[str, str]:
    """Read the texts of all modules under a folder, by their names."""
    texts = {}
    for file in sorted(root.rglob("*.py")):
        words = file.relative_to(root).with_suffix("").parts
        name = ".".join([PACKAGE, *(words[:-1] if words[-1] == "__init__" else words)])
        # Python takes a package before a module of the same name.
        if name not in texts or words[-1] == "__init__":
            texts[name] = file.read_text(encoding="utf-8")
    return texts


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()


def _components(roots: Iterable[Target], references: Any, done: Collection[Target]) -> Iterator[list[Target]]:
    """Yield the strongly connected components, each after those it refers to (Tarjan 1972); without what is done."""
    index: dict[Target, int] = {}
    low: dict[Target, int] = {}
    stack: list[Target] = []
    waiting: set[Target] = set()
    for root in roots:
        if root in index or root in done:
            continue
        path: list[tuple[Target, Iterator[Target]]] = []
        pending: Target | None = root
        while pending is not None or path:
            if pending is not None:
                index[pending] = low[pending] = len(index)
                stack.append(pending)
                waiting.add(pending)
                path.append((pending, iter(references(pending))))
                pending = None
            node, others = path[-1]
            for other in others:
                if other not in index and other not in done:
                    pending = other
                    break
                low[node] = min(low[node], index[other] if other in waiting else low[node])
            if pending is not None:
                continue
            path.pop()
            if path:
                low[path[-1][0]] = min(low[path[-1][0]], low[node])
            if low[node] == index[node]:
                component = stack[stack.index(node) :]
                del stack[len(stack) - len(component) :]
                waiting.difference_update(component)
                yield component


def _parents(module: str) -> list[str]:
    """Name the packages that a module is in: they are loaded before it."""
    words = module.split(".")
    return [".".join(words[:depth]) for depth in range(1, len(words))]


def _class(statement: ast.ClassDef) -> Class:
    hears = any(each.arg == "metaclass" for each in statement.keywords) or any(
        isinstance(each, ast.FunctionDef) and each.name == "__init_subclass__" for each in statement.body
    )
    return Class(hears, {each.id for base in statement.bases for each in ast.walk(base) if isinstance(each, ast.Name)})


def _is_module(target: Target) -> TypeGuard[Definition]:
    return isinstance(target, Definition) and target.name == WHOLE


def _survey(statement: ast.AST, used: set[str]) -> list[Import]:
    """List the imports within a statement, in their order; the names in it are added to ``used``."""
    imports = []
    waiting: list[tuple[Any, bool]] = [(statement, False)]
    while waiting:
        node, hidden = waiting.pop()
        node_type = type(node)
        if node_type is ast.Name:
            used.add(node.id)
            continue
        if node_type is ast.Import or node_type is ast.ImportFrom:
            imports.append(Import(node, hidden))
            continue
        runs = _at_run_time(node) if node_type is ast.If else None
        running = None if runs is None else set(map(id, runs))
        # ast.iter_child_nodes takes thrice the time, and this sees every node of the package.
        for content in vars(node).values():
            waiting.extend(
                (child, hidden or (running is not None and id(child) not in running))
                for child in (content if type(content) is list else (content,))
                if isinstance(child, ast.AST) and child._fields
            )
    return sorted(imports, key=lambda each: (each.statement.lineno, each.statement.col_offset))


def _at_run_time(statement: ast.AST) -> list[ast.stmt] | None:
    """Return what runs of a condition on TYPE_CHECKING; None for another statement."""
    if not isinstance(statement, ast.If) or isinstance(statement.test, ast.Compare | ast.BoolOp | ast.Call):
        return None
    test = ast.unparse(statement.test)
    if test in ("TYPE_CHECKING", "typing.TYPE_CHECKING"):
        return statement.orelse
    return statement.body if test in ("not TYPE_CHECKING", "not typing.TYPE_CHECKING") else None


def _is_main(statement: ast.stmt) -> TypeGuard[ast.If]:
    """Tell whether a statement does something in the module that is run, and nothing in one that is imported."""
    if not isinstance(statement, ast.If) or statement.orelse:
        return False
    return ast.unparse(statement.test) == "__name__ == '__main__'"


def _is_documentation(statement: ast.stmt) -> bool:
    """Tell whether a statement is a bare string: it documents and computes nothing."""
    return (
        isinstance(statement, ast.Expr)
        and isinstance(statement.value, ast.Constant)
        and isinstance(statement.value.value, str)
    )


def _defined(statement: ast.stmt, module: Module) -> list[str]:
    """Name what a statement defines that does nothing else; empty for all others."""
    if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        names = [name.id for each in statement.decorator_list for name in ast.walk(each) if isinstance(name, ast.Name)]
        pure = all(_decorator(each) in PURE for each in statement.decorator_list)
        foreign = not any(isinstance(each, Member) for name in names for each in module.imports.get(name, ()))
        return [statement.name] if pure and foreign and not set(names) & set(module.definitions) else []
    if isinstance(statement, ast.Assign | ast.AnnAssign):
        targets = statement.targets if isinstance(statement, ast.Assign) else [statement.target]
        leaves = [each for target in targets for each in _leaves(target)]
        names = [each.id for each in leaves if isinstance(each, ast.Name)]
        if len(names) < len(leaves) or "_" in names:
            return []
        value = [] if statement.value is None else ast.walk(statement.value)
        return names + [each.target.id for each in value if isinstance(each, ast.NamedExpr)]
    alias = getattr(statement, "name", None) if type(statement).__name__ == "TypeAlias" else None
    return [alias.id] if isinstance(alias, ast.Name) else []


def _leaves(target: ast.expr) -> list[ast.expr]:
    if isinstance(target, ast.Tuple | ast.List):
        return [each for element in target.elts for each in _leaves(element)]
    return _leaves(target.value) if isinstance(target, ast.Starred) else [target]


def _bound_in(statement: ast.AST) -> set[str]:
    """Name what a statement binds, except by imports."""
    if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return {statement.name}
    if isinstance(statement, ast.Name):
        return set() if isinstance(statement.ctx, ast.Load) else {statement.id}
    name = statement.name if isinstance(statement, ast.ExceptHandler | ast.MatchAs | ast.MatchStar) else None
    return {name} - {None} | {each for child in ast.iter_child_nodes(statement) for each in _bound_in(child)}  # type: ignore[return-value]


def _decorator(node: ast.expr) -> str:
    return _called(node) if isinstance(node, ast.Call) else _last(node)


def _called(node: ast.AST) -> str:
    """Return the last word of what is called; empty where it is not a name."""
    return _last(node.func) if isinstance(node, ast.Call) else ""


def _last(node: ast.expr) -> str:
    return node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""


def _first(node: ast.expr) -> ast.expr:
    """Return the first name of ``a.b.c``."""
    while isinstance(node, ast.Attribute):
        node = node.value
    return node


def _acts(node: ast.AST) -> bool:
    """Tell whether an expression may change something."""
    return isinstance(node, ast.Call | ast.NamedExpr | ast.Await | ast.Yield | ast.YieldFrom)


def _is_message(call: ast.Call) -> bool:
    function = call.func
    return (
        isinstance(function, ast.Attribute)
        and function.attr in MESSAGES
        and isinstance(function.value, ast.Name)
        and function.value.id in LOGGERS
    )
