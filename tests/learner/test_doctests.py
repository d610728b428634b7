"""The worked examples in docstrings run, and every public function whose result is not obvious has one."""

import doctest
import importlib
import inspect
import pkgutil
from collections.abc import Iterator
from types import FunctionType, MethodType, ModuleType

import pytest

import milepost.learner.batch
import milepost.learner.credit
import milepost.learner.credit.strategies
import milepost.learner.loss

ROOMS = (milepost.learner.batch, milepost.learner.credit, milepost.learner.credit.strategies, milepost.learner.loss)
MODULES = [
    f"{room.__name__}.{found.name}"
    for room in ROOMS
    for found in pkgutil.iter_modules(room.__path__)
    if not found.ispkg
]
OBVIOUS = {
    "milepost.learner.batch.pack.MicroBatch.to",
    "milepost.learner.batch.tree.PrefixTree.to",
    "milepost.learner.credit.assignment.Strategy.assign",
    "milepost.learner.credit.filter.needs",
    "milepost.learner.credit.interchange.read",
    "milepost.learner.credit.modulators.needs",
    "milepost.learner.credit.readings.missing",
    "milepost.learner.credit.strategies.custom.Custom.assign",
    "milepost.learner.credit.strategies.registry.build",
    "milepost.learner.credit.strategies.registry.settings",
    "milepost.learner.credit.trial.require_fit",
}
"""What needs no example: it names an interface, forwards, or does to each line of a file what another one shows."""


def functions(module: ModuleType) -> Iterator[tuple[str, str]]:
    """Name and docstring of the public functions and methods that a module defines."""
    for name, thing in inspect.getmembers(module):
        if name.startswith("_") or getattr(thing, "__module__", None) != module.__name__:
            continue
        if isinstance(thing, FunctionType):
            yield f"{module.__name__}.{name}", inspect.getdoc(thing) or ""
        elif isinstance(thing, type):
            for method in vars(thing):
                if not method.startswith("_") and isinstance(getattr(thing, method), FunctionType | MethodType):
                    yield f"{module.__name__}.{name}.{method}", inspect.getdoc(getattr(thing, method)) or ""


def has_example(text: str) -> bool:
    return bool(doctest.DocTestParser().get_examples(text))


EXAMPLES = [name for name in MODULES if any(has_example(text) for _, text in functions(importlib.import_module(name)))]


@pytest.mark.parametrize("name", EXAMPLES)
def test_the_worked_examples_of_a_module_give_what_they_say(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    found = doctest.testmod(importlib.import_module(name), optionflags=doctest.FAIL_FAST)
    assert found.attempted > 0
    assert not found.failed, capsys.readouterr().out


def test_every_public_function_has_a_worked_example_or_is_named_as_obvious() -> None:
    all_of_them = [one for name in MODULES for one in functions(importlib.import_module(name))]
    assert {name for name, text in all_of_them if not has_example(text)} == OBVIOUS
    assert len(all_of_them) > 80
