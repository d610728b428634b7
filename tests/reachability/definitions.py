"""What our code defines, read from its syntax: modules, functions, classes and their members, parameters."""

from __future__ import annotations

import ast
import builtins
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

Kind = Literal["function", "class", "constant", "method", "field", "attribute"]
Function = ast.FunctionDef | ast.AsyncFunctionDef
INERT_BASES = {"BaseModel", "Struct", "Protocol", "NamedTuple", "Generic", "Enum", "StrEnum", "IntEnum", "TypedDict"}
"""Bases of others that call no method of ours by name; exceptions are such, too."""
REGISTERING = {"command", "field_validator", "model_validator", "field_serializer"}
"""Decorators that hand a function to a library, which calls it."""
LIBRARY_MEMBERS = {"model_config"}
"""Members that a library reads."""


@dataclass(frozen=True, eq=False)
class Definition:
    """A function, class, constant or member; what it consists of is followed once it is reached."""

    kind: Kind
    name: str
    line: int
    nodes: tuple[ast.AST, ...]
    registered: bool = False


@dataclass(eq=False)
class Class:
    """A class, its members by name, and its relatives in our code."""

    module: Module
    definition: Definition
    base_names: list[str]
    members: dict[str, Definition] = field(default_factory=dict)
    is_foreign: bool = False
    """A library's class is among its bases: the library may call any public member."""
    bases: list[Class] = field(default_factory=list)
    children: list[Class] = field(default_factory=list)
    wanted: set[str] = field(default_factory=set)
    """Members that were mentioned before the class was reached."""

    @property
    def key(self) -> str:
        """`module:name`."""
        return f"{self.module.name}:{self.definition.name}"

    def ancestors(self) -> Iterator[Class]:
        """Its bases of ours, and theirs."""
        for base in self.bases:
            yield base
            yield from base.ancestors()

    def family(self) -> list[Class]:
        """Itself, its ancestors and its descendants: where a member that it mentions may be defined."""
        found, seeds = [self, *self.ancestors()], [self]
        while seeds:
            seeds = [child for seed in seeds for child in seed.children]
            found += seeds
        return found


@dataclass(eq=False)
class Module:
    """One file."""

    name: str
    """`cluster.cli`, without the `milepost.` of its import name."""
    path: Path
    definitions: dict[str, Definition] = field(default_factory=dict)
    classes: dict[str, Class] = field(default_factory=dict)
    statements: list[ast.stmt] = field(default_factory=list)
    """What runs when it is imported, definitions aside."""
    aliases: dict[str, tuple[str, str | None]] = field(default_factory=dict)
    """Imported name -> (module of ours, name in it or None)."""
    foreign: set[str] = field(default_factory=set)
    """Imported names of others."""
    is_dynamic: bool = False
    """It calls `getattr` with a computed name: its strings may be names of attributes."""


def read_modules(root: Path, folders: tuple[str, ...]) -> dict[str, Module]:
    """The modules below `root/folder`, by name."""
    paths = [path for folder in folders for path in sorted((root / folder).rglob("*.py"))]
    modules = [_module(path, ".".join(path.relative_to(root).with_suffix("").parts), folders) for path in paths]
    return {module.name: module for module in modules}


def parameters(function: Function, *, is_member: bool) -> Iterator[tuple[str, float, int]]:
    """(name, position, line) of each parameter with a default; the position of a keyword-only one is infinite."""
    arguments = function.args
    named = [*arguments.posonlyargs, *arguments.args]
    static = any(isinstance(d, ast.Name) and d.id == "staticmethod" for d in function.decorator_list)
    skipped = 1 if is_member and not static else 0
    first = len(named) - len(arguments.defaults)
    for place, argument in enumerate(named):
        if place >= first:
            yield argument.arg, place - skipped, argument.lineno
    for argument, default in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True):
        if default is not None:
            yield argument.arg, float("inf"), argument.lineno


def read_imports(module: Module, tree: ast.AST, folders: tuple[str, ...]) -> None:
    """Sort the imports of `tree` into ours and others'."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            module.foreign |= {alias.asname or alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            source = (node.module or "").removeprefix("milepost.")
            for alias in node.names:
                if source.partition(".")[0] in folders or source == "milepost":
                    module.aliases[alias.asname or alias.name] = (source, alias.name)
                else:
                    module.foreign.add(alias.asname or alias.name)


def _module(path: Path, name: str, folders: tuple[str, ...]) -> Module:
    module = Module(name, path)
    tree = ast.parse(path.read_text(encoding="utf-8"))
    read_imports(module, tree, folders)
    module.is_dynamic = any(
        isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and node.func.id == "getattr"
        and not isinstance(node.args[1], ast.Constant)
        for node in ast.walk(tree)
    )
    for statement in _flat(tree.body):
        _define(module, statement)
    return module


def _flat(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    for statement in body:
        if isinstance(statement, ast.If | ast.Try | ast.With) and not _is_main(statement):
            yield from _flat(statement.body)
            yield from _flat(getattr(statement, "orelse", []))
        else:
            yield statement


def _is_main(statement: ast.stmt) -> bool:
    return isinstance(statement, ast.If) and "__name__" in ast.unparse(statement.test)


def _define(module: Module, statement: ast.stmt) -> None:
    if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef):
        module.definitions[statement.name] = _definition("function", statement.name, statement)
    elif isinstance(statement, ast.ClassDef):
        found = _class(module, statement)
        module.classes[statement.name] = found
        module.definitions[statement.name] = found.definition
    elif names := _assigned(statement):
        for name in names:
            module.definitions[name] = _definition("constant", name, statement)
    elif not isinstance(statement, ast.Import | ast.ImportFrom):
        module.statements.append(statement)


def _assigned(statement: ast.stmt) -> list[str]:
    if isinstance(statement, ast.Assign):
        targets = [node for target in statement.targets for node in ast.walk(target)]
        return [node.id for node in targets if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)]
    is_named = isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name)
    return [statement.target.id] if is_named else []  # type: ignore[attr-defined]


def _definition(kind: Kind, name: str, node: ast.stmt) -> Definition:
    decorators = [d.func if isinstance(d, ast.Call) else d for d in getattr(node, "decorator_list", [])]
    called = {d.attr if isinstance(d, ast.Attribute) else ast.unparse(d) for d in decorators}
    return Definition(kind, name, node.lineno, (node,), bool(called & REGISTERING))


def _class(module: Module, node: ast.ClassDef) -> Class:
    names = [ast.unparse(base.value if isinstance(base, ast.Subscript) else base) for base in node.bases]
    members: dict[str, Definition] = {}
    own = [*node.decorator_list, *node.bases, *(keyword.value for keyword in node.keywords)]
    for statement in node.body:
        if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef):
            members.setdefault(statement.name, _definition("method", statement.name, statement))
        elif fields := _assigned(statement):
            members |= {name: _definition("field", name, statement) for name in fields if name not in LIBRARY_MEMBERS}
            own.append(statement)  # type: ignore[arg-type]  # annotations and defaults are evaluated with the class
        else:
            own.append(statement)  # type: ignore[arg-type]
    for inner in ast.walk(node):
        if isinstance(inner, ast.Attribute) and isinstance(inner.ctx, ast.Store) and ast.unparse(inner.value) == "self":
            members.setdefault(inner.attr, Definition("attribute", inner.attr, inner.lineno, ()))
    found = Class(module, Definition("class", node.name, node.lineno, tuple(own)), names, members)
    found.is_foreign = any(_is_foreign(module, name) for name in names)
    return found


def _is_foreign(module: Module, base: str) -> bool:
    name = base.rpartition(".")[2]
    return base.partition(".")[0] in module.foreign and name not in INERT_BASES and not hasattr(builtins, name)
