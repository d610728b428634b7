"""What one piece of code mentions, told to a `Mentions`: names, attributes, calls and what they pass."""

from __future__ import annotations

import ast
import re
from typing import Protocol

from tests.reachability.definitions import Class, Module

_PATH = re.compile(r"(?<![\w./])(?:milepost\.)?([A-Za-z_][\w.]*):([A-Za-z_]\w*)")
UNKNOWN = float("inf")


def paths_in(text: str) -> list[tuple[str, str]]:
    """(module, name) of each `package.module:Name` in a text."""
    return _PATH.findall(text)


class Mentions(Protocol):
    """Who is told. A callable is named `module:name` where that is known, else by its last name."""

    modules: dict[str, Module]

    def name(self, module: str, name: str) -> None:
        """`name` of a module of ours is mentioned; the name may be a module, too."""

    def path(self, module: str, name: str) -> None:
        """A text names `package.module:Name`: a library or a config makes or calls it."""

    def attribute(self, name: str) -> None:
        """An attribute of this name is read, of a value whose type is not known."""

    def member(self, found: Class, name: str) -> bool:
        """A member of a class or its relatives is read; False if they define none of this name."""

    def called(self, name: str, positional: float, keywords: frozenset[str | None]) -> None:
        """A callable is called with so many positional arguments and these keywords; None is a `**`."""

    def handed_on(self, name: str) -> None:
        """A callable is used as a value: who calls it, and how, is not known."""

    def stored(self, name: str) -> None:
        """An attribute of this name is assigned or replaced."""


class Names(ast.NodeVisitor):
    """Walks one node of a module; `owner` is the class it lies in."""

    def __init__(self, mentions: Mentions, module: Module, owner: Class | None, node: ast.AST) -> None:
        self._mentions, self._module, self._owner, self._node = mentions, module, owner, node
        self._is_annotation = False
        self._locals: set[str] = set()
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            inner = list(ast.walk(node))
            self._locals = {n.arg for n in inner if isinstance(n, ast.arg)}
            self._locals |= {n.id for n in inner if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}

    def follow(self) -> None:
        """Tell all of it."""
        self._reference(self._node)

    def visit_Name(self, node: ast.Name) -> None:
        if isinstance(node.ctx, ast.Load):
            self._name(node.id)
            if not self._is_annotation and node.id not in self._locals:
                self._mentions.handed_on(self._key(node))

    def visit_Attribute(self, node: ast.Attribute) -> None:
        self._attribute(node)
        if isinstance(node.ctx, ast.Load) and not self._is_annotation:
            self._mentions.handed_on(self._key(node))

    def visit_Call(self, node: ast.Call) -> None:
        names = self._callees(node.func)
        keywords = frozenset(keyword.arg for keyword in node.keywords)
        positional = UNKNOWN if any(isinstance(a, ast.Starred) for a in node.args) else len(node.args)
        for name in names:
            self._mentions.called(name, positional, keywords)
        if {"replace", "fields"} & set(names):
            self._whole(node)
        self._reference(node.func)
        for place, argument in enumerate(node.args):
            name = self._named(argument)
            if name is None or "remote" in names:
                self.visit(argument)
            else:  # partial(f, a), to_thread(f, a), map(f, xs): what follows may be passed on
                self._reference(argument)
                self._mentions.called(name, positional - place - 1, keywords)
        for keyword in node.keywords:
            self.visit(keyword.value)

    def visit_Constant(self, node: ast.Constant) -> None:
        if isinstance(node.value, str):
            for module, name in paths_in(node.value):
                self._mentions.path(module, name)
            if self._module.is_dynamic and node.value.isidentifier():
                self._mentions.attribute(node.value)

    def visit_MatchClass(self, node: ast.MatchClass) -> None:
        for name in node.kwd_attrs:
            self._mentions.attribute(name)
        self.generic_visit(node)

    def visit_arg(self, node: ast.arg) -> None:
        self._annotation(node.annotation)

    def visit_FunctionDef(self, node: ast.FunctionDef | ast.AsyncFunctionDef) -> None:
        self._annotation(node.returns)
        for part in (*node.decorator_list, node.args, *node.body):
            self.visit(part)

    visit_AsyncFunctionDef = visit_FunctionDef

    def visit_AnnAssign(self, node: ast.AnnAssign) -> None:
        self._annotation(node.annotation)
        for part in (node.target, node.value):
            if part is not None:
                self.visit(part)

    def _annotation(self, node: ast.expr | None) -> None:
        if node is not None:
            before, self._is_annotation = self._is_annotation, True
            self.visit(node)
            self._is_annotation = before

    def _reference(self, node: ast.AST) -> None:
        """Follow a name without calling it a value that is handed on."""
        if isinstance(node, ast.Name):
            self._name(node.id)
        elif isinstance(node, ast.Attribute):
            self._attribute(node)
        else:
            self.visit(node)

    def _name(self, name: str) -> None:
        if name in self._locals:
            return
        if name in self._module.definitions:
            self._mentions.name(self._module.name, name)
        elif name in self._module.aliases:
            self._mentions.name(*self._module.aliases[name])
        elif self._owner is not None:
            self._mentions.member(self._owner, name)

    def _attribute(self, node: ast.Attribute) -> None:
        base = node.value
        if not isinstance(node.ctx, ast.Load):
            self._mentions.stored(node.attr)
        elif isinstance(base, ast.Name) and base.id in self._module.aliases and base.id not in self._locals:
            self._mentions.name(".".join(self._module.aliases[base.id]), node.attr)
            self._mentions.attribute(node.attr)
        elif self._is_foreign(base):
            return
        elif not (self._is_self(base) and self._owner and self._mentions.member(self._owner, node.attr)):
            self._mentions.attribute(node.attr)
        self._reference(base)

    def _is_foreign(self, node: ast.expr) -> bool:
        while isinstance(node, ast.Attribute):
            node = node.value
        return isinstance(node, ast.Name) and node.id in self._module.foreign and node.id not in self._locals

    def _is_self(self, node: ast.expr) -> bool:
        is_super = isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "super"
        return is_super or (isinstance(node, ast.Name) and node.id in ("self", "cls"))

    def _key(self, node: ast.Name | ast.Attribute) -> str:
        """What `called` and `handed_on` call it: `module:name` where that is known, else the last name."""
        if isinstance(node, ast.Name):
            if node.id in self._locals or node.id not in self._module.definitions | self._module.aliases:
                return node.id
            return ":".join(self._module.aliases.get(node.id, (self._module.name, node.id)))
        base = node.value
        if not isinstance(base, ast.Name) or base.id not in self._module.aliases or base.id in self._locals:
            return node.attr
        home = ".".join(self._module.aliases[base.id])
        return f"{home}:{node.attr}" if home in self._mentions.modules else node.attr

    def _named(self, node: ast.expr) -> str | None:
        """The name of an argument that may be a callable of ours."""
        if isinstance(node, ast.Name) and node.id not in self._locals:
            return self._key(node)
        if isinstance(node, ast.Attribute) and not self._is_foreign(node):
            return self._key(node)
        is_text = isinstance(node, ast.Constant) and isinstance(node.value, str) and self._module.is_dynamic
        if is_text:
            self.visit(node)
        return node.value if is_text else None

    def _callees(self, func: ast.expr) -> list[str]:
        if isinstance(func, ast.Attribute) and func.attr == "remote":  # a call of a Ray actor
            return [*self._callees(func.value), "remote"]
        if isinstance(func, ast.Attribute) and func.attr == "__init__" and self._owner and self._is_self(func.value):
            return [base.key for base in self._owner.family()]
        is_own_type = isinstance(func, ast.Name) and func.id == "cls"
        is_own_type |= isinstance(func, ast.Call) and isinstance(func.func, ast.Name) and func.func.id == "type"
        if is_own_type and self._owner:
            return [relative.key for relative in self._owner.family()]
        return [self._key(func)] if isinstance(func, ast.Name | ast.Attribute) else []

    def _whole(self, node: ast.Call) -> None:
        """`replace(x, name=...)` stores a field; `fields(C)` and `fields(self)` read all of them."""
        for keyword in node.keywords:
            self._mentions.stored(keyword.arg or "")
        if len(node.args) == 1 and isinstance(node.args[0], ast.Name):
            name = node.args[0].id
            found = self._owner if name == "self" else self._module.classes.get(name)
            for field in found.members if found is not None else ():
                self._mentions.member(found, field)  # type: ignore[arg-type]
