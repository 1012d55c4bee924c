"""Functions by name: how a saved hypothesis refers to code without containing any."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Mapping
from types import FunctionType
from typing import Any

import networkx as nx

from causalmad.errors import HypothesisError

# Where functions are found by a name in a file. Elsewhere an import would run whatever a stranger's file names.
OWN = "causalmad.tasks."

Function = Callable[..., Any]


def name_of(function: Function, node: str, role: str) -> str:
    """``module:qualname`` of a function.

    Args:
        function: a function at the top level of a module.
        node: whose function it is, for the error.
        role: ``value`` or ``mechanism``.

    Raises:
        HypothesisError: for a lambda, a local function, a partial or a bound method, which no name leads back to.
    """
    module, name = getattr(function, "__module__", None), getattr(function, "__qualname__", None)
    if isinstance(module, str) and isinstance(name, str) and _found(sys.modules.get(module), name) is function:
        return f"{module}:{name}"
    kind = "a lambda" if name is not None and "<lambda>" in name else f"{name or type(function).__name__}"
    if name is not None and "<locals>" in name and kind != "a lambda":
        kind = f"the local function {name.rpartition('.')[2]}"
    raise HypothesisError(
        f"{role}= of node {node!r} is {kind}, which cannot be written down: only its name would be saved",
        needed="a function with a name at the top level of a module",
        tries=[f"def {_identifier(node)}_{role}(...): ... at module level, and {role}={_identifier(node)}_{role}"],
    )


def lookup(name: str, node: str, role: str, known: Any) -> Function:
    """The function that a name in a file stands for.

    Args:
        name: ``module:qualname``.
        node: whose function it is.
        role: ``value`` or ``mechanism``.
        known: a graph with the same node, or name -> function; without it only causalmad's own tasks are looked at.

    Raises:
        HypothesisError: when there is none, or it is not one that a file may name.
    """
    if isinstance(known, nx.DiGraph):
        return _from_graph(name, node, role, known)
    if isinstance(known, Mapping) and name in known:
        if not callable(known[name]):
            raise HypothesisError(f"functions[{name!r}] is a {type(known[name]).__name__}, not a function")
        given: Function = known[name]
        return given
    module, _, path = name.partition(":")
    if module.startswith(OWN):
        try:
            found = _found(importlib.import_module(module), path)
        except ImportError:
            found = None
        # Its own functions only: what a task imported from elsewhere (os, pathlib) is nobody's to name.
        if isinstance(found, FunctionType) and (found.__module__, found.__qualname__) == (module, path):
            return found
        raise HypothesisError(f"{role}= of node {node!r} was {name}, which is not there", causes=["another version"])
    raise HypothesisError(
        f"{role}= of node {node!r} is your own function {name}, and a file can't make Python import anything",
        needed="the function itself, from you",
        tries=[
            "FittedDetector.load(path, model, hypothesis=your_hypothesis)",
            f"Hypothesis.from_json(text, functions={{{name!r}: {path.rpartition('.')[2]}}})",
        ],
    )


def _from_graph(name: str, node: str, role: str, graph: nx.DiGraph) -> Function:
    function = graph.nodes[node].get(role) if node in graph else None
    if function is None:
        raise HypothesisError(
            f"the given hypothesis has no {role}= on node {node!r}, which was {name}", needed="the one that was saved"
        )
    # The module may have another name by now (a script is __main__ to itself); the function may not.
    if getattr(function, "__qualname__", "") != name.partition(":")[2]:
        raise HypothesisError(
            f"{role}= of node {node!r} was {name} and is {getattr(function, '__qualname__', function)!r} now",
            needed="the hypothesis that was saved",
            tries=["rename the function back", "fit again"],
        )
    found: Function = function
    return found


def _found(module: Any, path: str) -> Any:
    for name in path.split("."):
        module = getattr(module, name, None)
    return module


def _identifier(node: str) -> str:
    text = "".join(letter if letter.isalnum() else "_" for letter in node)
    return text if text.isidentifier() else "node"
