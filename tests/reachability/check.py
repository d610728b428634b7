"""Which code nobody reaches: `python -m tests.reachability.check` names it, and exits with 1 if there is any.

Entry points are the command line and the vLLM plug-in (`pyproject.toml`), the `package.module:Name` paths in configs,
those in the TOML blocks of README and docs, what their code blocks import, and the examples. From there names are
followed to a fix point, through the worked examples in docstrings of what is reached; what the templates of pages read
counts as read. Tests, benchmarks and the Makefile do not count. vulture is no replacement: it takes a use in dead code
for a use, and does not look at parameters that no caller sets.

Attributes are resolved by name, without types: a method counts as reached if any reached code mentions a method of that
name. So what is reported is dead, and not all that is dead is reported. A field counts as used where it is read; a
parameter or field with a default, where it is set.
"""

from __future__ import annotations

import ast
import doctest
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import jinja2

from tests.reachability.definitions import Class, Definition, Module, parameters, read_imports, read_modules
from tests.reachability.names import Names, paths_in

ROOT = Path(__file__).parent.parent.parent
FOLDERS = ("cluster", "learner", "actors", "envs", "reward", "examples")
_ATIF = {
    "Media": "media_type duration_sec",
    "Metrics": "cost_usd prompt_token_ids",
    "Agent": "tool_definitions",
    "FinalMetrics": "total_prompt_tokens total_completion_tokens total_cached_tokens total_cost_usd total_steps",
    "Document": "schema_version",
}
"""Fields of the trajectory format that have no part in credit: a document that holds them is not refused for it."""
EXCEPTIONS: dict[str, str] = {
    f"unread field cluster.workbench.atif.{name}.{field}": "the format has it"
    for name, fields in _ATIF.items()
    for field in fields.split()
} | {"unset field cluster.workbench.atif_groups._Verified.rewards": "Harbor writes it"}
"""Finding -> why it stays; `tests/test_reachability.py` refuses one that is none any more."""
_PYTHON = re.compile(r"```python\n(.*?)```", re.DOTALL)
_TOML = re.compile(r"```toml\n(.*?)```", re.DOTALL)


class Reached:
    """The fix point: what is reached, and what reached code says about attributes and calls."""

    def __init__(self, modules: dict[str, Module]) -> None:
        self.definitions: set[Definition] = set()
        self.modules = modules
        self._attributes: set[str] = set()
        self._calls: dict[str, list[tuple[float, frozenset[str | None]]]] = {}
        self._handed_on: set[str] = set()
        self._stored: set[str] = set()
        self._open: dict[str, list[Class]] = {}
        """Name of a member -> the reached classes that have it."""
        self._entered: set[str] = set()
        self._queue: list[tuple[Module, Class | None, Definition]] = []
        for module in modules.values():
            for found in module.classes.values():
                found.bases = [base for name in found.base_names if (base := self._class(module, name)) is not None]
                for base in found.bases:
                    base.children.append(found)

    def code(self, tree: ast.AST) -> None:
        """A piece of code that lies in none of our files."""
        module = Module("", Path())
        read_imports(module, tree, FOLDERS)
        for source, name in module.aliases.values():
            self.name(source, name)
        Names(self, module, None, tree).follow()

    def enter(self, name: str) -> None:
        """Import a module of ours, and what it imports."""
        if name in self._entered or name not in self.modules:
            return
        self._entered.add(name)
        module = self.modules[name]
        for node in module.statements:
            Names(self, module, None, node).follow()
        for source, inner in module.aliases.values():
            self.enter(f"{source}.{inner}" if f"{source}.{inner}" in self.modules else source)
        for definition in module.definitions.values():
            if definition.registered:
                self._reach(module, None, definition)

    def settle(self) -> None:
        """Follow what was reached until nothing new is."""
        while self._queue:
            module, owner, definition = self._queue.pop()
            self.enter(module.name)
            if definition.kind == "class":
                owner = module.classes[definition.name]
                self._enter_class(owner)
            for node in definition.nodes:
                Names(self, module, owner, node).follow()
                for example in _examples(node):
                    Names(self, module, owner, example).follow()

    def path(self, module: str, name: str) -> None:
        self.name(module, name)
        self.handed_on(f"{module}:{name}")  # an environment's options come from a config

    def name(self, module: str, name: str) -> None:
        full = f"{module}.{name}".removeprefix("milepost.")
        if full in self.modules:
            self.enter(full)
        elif module in self.modules:
            home = self.modules[module]
            self.enter(module)
            if name in home.definitions:
                self._reach(home, None, home.definitions[name])
            elif name in home.aliases:
                self.name(*home.aliases[name])

    def attribute(self, name: str) -> None:
        if name not in self._attributes:
            self._attributes.add(name)
            for found in self._open.get(name, []):
                self._reach(found.module, found, found.members[name])

    def member(self, found: Class, name: str) -> bool:
        definers = [relative for relative in found.family() if name in relative.members]
        for definer in definers:
            definer.wanted.add(name)
            if definer.definition in self.definitions:
                self._reach(definer.module, definer, definer.members[name])
        return bool(definers)

    def called(self, name: str, positional: float, keywords: frozenset[str | None]) -> None:
        self._calls.setdefault(name, []).append((positional, keywords))

    def handed_on(self, name: str) -> None:
        self._handed_on.add(name)

    def stored(self, name: str) -> None:
        self._stored.add(name)

    def is_set(self, name: str, position: float, parameter: str) -> bool:
        """Whether a call of `name` passes the parameter, or that cannot be known."""
        calls = self._calls.get(name, [])
        return name in self._handed_on or any(n > position or {parameter, None} & keys for n, keys in calls)

    def is_field_set(self, found: Class, position: float, name: str) -> bool:
        """Whether the field is ever given another value than its default."""
        return name in self._stored or any(self.is_set(kin.key, position, name) for kin in found.family())

    def _class(self, module: Module, name: str) -> Class | None:
        if name in module.classes:
            return module.classes[name]
        source, inner = module.aliases.get(name, ("", ""))
        return self._class(self.modules[source], inner) if source in self.modules else None

    def _reach(self, module: Module, owner: Class | None, definition: Definition) -> None:
        if definition not in self.definitions:
            self.definitions.add(definition)
            self._queue.append((module, owner, definition))

    def _enter_class(self, found: Class) -> None:
        is_foreign = found.is_foreign or any(base.is_foreign for base in found.ancestors())
        for name, member in found.members.items():
            self._open.setdefault(name, []).append(found)
            is_implied = member.registered or name.startswith("__") or (is_foreign and not name.startswith("_"))
            if is_implied or name in self._attributes or name in found.wanted:
                self._reach(found.module, found, member)


def _examples(node: ast.AST) -> Iterator[ast.AST]:
    """The worked examples that a function shows its readers."""
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        for example in doctest.DocTestParser().get_examples(ast.get_docstring(node) or ""):
            yield ast.parse(example.source)


def reached(root: Path, modules: dict[str, Module]) -> Reached:
    """All that the entry points below `root` lead to."""
    found = Reached(modules)
    for name in modules:
        if name.startswith("examples."):
            found.enter(name)
    for module, name in paths_in((root / "pyproject.toml").read_text(encoding="utf-8")):
        found.name(module, name)
    configs = [path for folder in ("deploy", "examples") for path in sorted((root / folder).rglob("*.toml"))]
    for path in configs:
        for module, name in paths_in(path.read_text(encoding="utf-8")):
            found.path(module, name)
    for path in [*sorted(root.glob("*.md")), *sorted(root.glob("docs/*.md"))]:
        text = path.read_text(encoding="utf-8")
        for block in _PYTHON.findall(text):
            found.code(ast.parse(block))
        for module, name in paths_in("".join(_TOML.findall(text))):
            found.path(module, name)
    for path in sorted(root.glob("*/*/pages/*.html")):
        _read_by_template(path.read_text(encoding="utf-8"), found)
    found.settle()
    return found


def _read_by_template(text: str, found: Reached) -> None:
    """Attributes that a Jinja template reads, and methods that it calls."""
    tree = jinja2.Environment().parse(text)
    for node in tree.find_all(jinja2.nodes.Getattr):
        found.attribute(node.attr)
    for call in tree.find_all(jinja2.nodes.Call):
        if isinstance(call.node, jinja2.nodes.Getattr):
            found.called(call.node.attr, len(call.args), frozenset(keyword.key for keyword in call.kwargs))


def findings(root: Path, exceptions: Mapping[str, str] = {}) -> list[tuple[str, str]]:
    """(place, what) of all that nobody reaches: `cluster/cli.py:12`, `function cluster.cli.name`."""
    modules = read_modules(root, FOLDERS)
    found = reached(root, modules)
    lines = []
    for module in modules.values():
        place = module.path.relative_to(root)
        lines += [(f"{place}:{line}", f"{what} {module.name}.{name}") for what, name, line in _dead(module, found)]
    return [(place, what) for place, what in lines if what not in exceptions]


def _dead(module: Module, found: Reached) -> Iterator[tuple[str, str, int]]:
    """(kind, name, line) of what is dead in a module."""
    for name, definition in module.definitions.items():
        if name.startswith("__"):
            continue
        if definition not in found.definitions:
            yield definition.kind, name, definition.line
        elif definition.kind == "class":
            yield from _dead_members(module.classes[name], found)
        elif definition.kind == "function" and not definition.registered:
            yield from _unset(definition, name, [f"{module.name}:{name}"], found)


def _dead_members(found: Class, reach: Reached) -> Iterator[tuple[str, str, int]]:
    title = found.definition.name
    is_foreign = found.is_foreign or any(base.is_foreign for base in found.ancestors())
    for name, member in found.members.items():
        if member not in reach.definitions:
            yield "unread " * (member.kind != "method") + member.kind, f"{title}.{name}", member.line
        elif member.kind == "method" and not member.registered and (not is_foreign or name == "__init__"):
            makers = [relative.key for relative in found.family()]
            yield from _unset(member, f"{title}.{name}", makers if name == "__init__" else [name], reach)
    yield from _unset_fields(found, reach)


def _unset(definition: Definition, name: str, called: list[str], found: Reached) -> Iterator[tuple[str, str, int]]:
    """Parameters that no call of one of the names `called` passes."""
    (function,) = definition.nodes
    assert isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef)
    for parameter, position, line in parameters(function, is_member=definition.kind == "method"):
        if not any(found.is_set(other, position, parameter) for other in called):
            yield "unset parameter", f"{name}({parameter})", line


def _unset_fields(found: Class, reach: Reached) -> Iterator[tuple[str, str, int]]:
    """Fields of dataclasses and structs that always have their default; settings are set in files."""
    title = found.definition.name
    if not _is_record(found):
        return
    fields = [member for member in found.members.values() if member.kind == "field"]
    for place, member in enumerate(fields):
        (node,) = member.nodes
        is_default = isinstance(node, ast.AnnAssign) and node.value is not None and not _is_made(node)
        if is_default and not reach.is_field_set(found, place, member.name):
            yield "unset field", f"{title}.{member.name}", member.line


def _is_made(node: ast.AnnAssign) -> bool:
    """A constant of the class, or a container that is made with each instance and filled later."""
    return "ClassVar" in ast.unparse(node.annotation) or "default_factory" in ast.unparse(node.value or node)


def _is_record(found: Class) -> bool:
    decorators = [ast.unparse(node) for node in found.definition.nodes[:3] if isinstance(node, ast.expr)]
    is_struct = any(name.rpartition(".")[2] in ("Struct", "NamedTuple") for name in found.base_names)
    return is_struct or any(text.startswith("dataclass") for text in decorators)


def main() -> None:
    """Print each finding on a line of its own."""
    dead = findings(ROOT, EXCEPTIONS)
    for place, what in dead:
        print(f"{place}: nobody reaches {what}")
    sys.exit(1 if dead else 0)


if __name__ == "__main__":
    main()
