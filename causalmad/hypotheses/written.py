"""Hypotheses and circuits as plain data: everything but the functions, which are written by name."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Mapping
from typing import Any

import networkx as nx
import numpy as np
import torch
from torch import Tensor

from causalmad.errors import CausalmadError, HypothesisError, SiteError, nearest
from causalmad.hypotheses.functions import lookup, name_of
from causalmad.hypotheses.graph import OUTPUT, Hypothesis, sites_at
from causalmad.sites import Site
from causalmad.subspaces import Subspace

_ROLES = ("value", "mechanism")
_DTYPES = {"float32": torch.float32, "float64": torch.float64}


def writes(value: object) -> bool:
    """Whether :func:`to_data` can write this."""
    return isinstance(value, (Hypothesis, nx.DiGraph))


def to_data(claim: Hypothesis | nx.DiGraph) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors (the bases of subspaces, by digest) and plain data.

    Args:
        claim: a hypothesis, or a circuit: a DiGraph whose nodes and edges have numbers and texts as attributes.

    Raises:
        HypothesisError: when a function is a lambda or local, or an attribute is no plain data; the node is named.
    """
    graph = claim.to_networkx() if isinstance(claim, Hypothesis) else claim
    tensors: dict[str, Tensor] = {}
    nodes = []
    for node, data in graph.nodes(data=True):
        row: dict[str, Any] = {"node": _site(node, tensors)}
        for key, value in data.items():
            if key == "at":
                row["at"] = [_site(site, tensors) for site in sites_at(value)]
            elif key in _ROLES:
                row[key] = None if value is None else name_of(value, str(node), key)
            else:
                row[key] = _plain(value, f"{key}= of node {node!r}")
        nodes.append(row)
    edges = []
    for cause, effect, data in graph.edges(data=True):
        row = {key: _plain(value, f"{key}= of {cause} -> {effect}") for key, value in data.items()}
        edges.append({"edge": [_site(cause, tensors), _site(effect, tensors)], **row})
    about = {key: _plain(value, f"{key}= of the graph") for key, value in graph.graph.items()}
    form = "hypothesis" if isinstance(claim, Hypothesis) else "graph"
    return tensors, {"form": form, "about": about, "nodes": nodes, "edges": edges}


def from_data(tensors: Mapping[str, Tensor], data: Mapping[str, Any], functions: Any = None) -> Hypothesis | nx.DiGraph:
    """What :func:`to_data` wrote.

    Args:
        tensors: the bases of subspaces.
        data: the plain data.
        functions: the same hypothesis or graph, or ``"module:qualname"`` -> function. Without it only functions of
            causalmad's own tasks are found: a file never makes Python import what it names.

    Raises:
        HypothesisError: when the data is malformed, a function is missing, or ``functions`` is another hypothesis.
    """
    known = functions.to_networkx() if isinstance(functions, Hypothesis) else functions
    graph = nx.DiGraph()
    try:
        graph.graph.update(data["about"])
        for row in data["nodes"]:
            node = _back(row["node"], tensors)
            attributes = {key: value for key, value in row.items() if key != "node"}
            for key, value in attributes.items():
                if key == "at":
                    sites = tuple(_back(site, tensors) for site in value)
                    attributes[key] = sites[0] if len(sites) == 1 else sites
                elif key in _ROLES and value is not None:
                    attributes[key] = lookup(str(value), str(node), key, known)
            graph.add_node(node, **attributes)
        for row in data["edges"]:
            ends = [_back(end, tensors) for end in row["edge"]]
            graph.add_edge(*ends, **{key: value for key, value in row.items() if key != "edge"})
        hypothesis = data["form"] == "hypothesis"
    except (KeyError, TypeError, ValueError, AttributeError, SiteError) as error:
        raise HypothesisError(f"this is no hypothesis: {type(error).__name__}: {error}") from error
    if isinstance(known, nx.DiGraph):
        _require_same(known, graph)
    return Hypothesis(graph) if hypothesis else graph


def to_text(hypothesis: Hypothesis) -> str:
    """JSON that needs nothing beside it."""
    tensors, data = to_data(hypothesis)
    bases = {key: {"dtype": str(value.dtype)[6:], "values": value.tolist()} for key, value in tensors.items()}
    return json.dumps({**data, "subspaces": bases}, indent=1)


def from_text(text: str, functions: Any = None) -> Hypothesis:
    """The hypothesis that :func:`to_text` wrote."""
    try:
        data = json.loads(text)
        bases = {
            key: torch.tensor(basis["values"], dtype=_DTYPES[basis["dtype"]])
            for key, basis in data["subspaces"].items()
        }
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RuntimeError) as error:
        raise HypothesisError(f"this text is no hypothesis: {error}", needed="what Hypothesis.to_json gave") from error
    found = from_data(bases, data, functions)
    if not isinstance(found, Hypothesis):
        raise HypothesisError("this text is a circuit, not a hypothesis", tries=["Hypothesis.from_circuit(circuit)"])
    return found


def import_hypothesis(name: str) -> Hypothesis:
    """The hypothesis at ``module:name``; see :meth:`Hypothesis.load`."""
    module, colon, path = name.partition(":")
    if not (module and colon and path):
        raise HypothesisError(f"{name!r} names no hypothesis", needed="module:name, such as my_claims:parity")
    likely = module.removesuffix(".py").strip("./").replace("/", ".")
    sys.path.insert(0, "")  # as `python -m` does: a file beside the user is what they mean
    try:
        found = importlib.import_module(module)
    except Exception as error:
        raise HypothesisError(
            f"module {module!r} of {name!r} could not be imported: {type(error).__name__}: {error}",
            causes=["a path in place of a module name", "another working folder"],
            tries=[*([f"{likely}:{path}"] if likely != module else []), f"python -c 'import {likely}'"],
        ) from error
    finally:
        sys.path.remove("")
    for part in path.split("."):
        if not hasattr(found, part):
            public = [key for key in vars(found) if not key.startswith("_")] if hasattr(found, "__dict__") else []
            raise HypothesisError(f"no {part!r} in {module}", tries=[f"{module}:{n}" for n in nearest(part, public)])
        found = getattr(found, part)
    return _as_hypothesis(found, name)


def _as_hypothesis(found: Any, name: str) -> Hypothesis:
    if callable(found) and not isinstance(found, (Hypothesis, nx.DiGraph)):
        try:
            found = found()
        except CausalmadError:
            raise
        except Exception as error:
            raise HypothesisError(
                f"{name}() failed: {type(error).__name__}: {error}", needed="a function without arguments"
            ) from error
    if isinstance(found, nx.DiGraph):
        found = Hypothesis(found)
    if not isinstance(found, Hypothesis):
        raise HypothesisError(
            f"{name} is a {type(found).__name__}",
            needed="a causalmad.Hypothesis, a networkx.DiGraph, or a function without arguments that returns one",
        )
    return found


def _site(site: Any, tensors: dict[str, Tensor]) -> Any:
    if isinstance(site, str):
        return site
    if not isinstance(site, Site):
        raise HypothesisError(f"node {site!r} is a {type(site).__name__}", needed="a text or a Site")
    row: dict[str, Any] = {"site": str(site.within(None)), "heads": site.head_count}
    if site.subspace is not None:
        tensors.update(site.subspace.pack())
        row["subspace"] = site.subspace.digest
    return row


def _back(row: Any, tensors: Mapping[str, Tensor]) -> str | Site:
    if isinstance(row, str):
        return row
    plain = Site.parse(row["site"])
    subspace = Subspace.unpack(tensors, str(row["subspace"])) if "subspace" in row else None
    return Site(
        plain.path, plain.side, plain.element, plain.heads, plain.neurons, plain.position, int(row["heads"]), subspace
    )


def _plain(value: Any, what: str) -> Any:
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, Tensor) and value.ndim == 0:
        value = value.item()
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise HypothesisError(f"{what} is a {type(value).__name__}, which is not saved", needed="a number or text")


def _require_same(given: nx.DiGraph, saved: nx.DiGraph) -> None:
    """The hypothesis that lends its functions is the one that was saved."""
    if set(given) != set(saved) or set(given.edges) != set(saved.edges):
        other = sorted(map(str, set(given) ^ set(saved) or set(given.edges) ^ set(saved.edges)))
        raise HypothesisError(f"the given hypothesis is not the saved one: they differ in {', '.join(other[:3])}")
    for node, data in saved.nodes(data=True):
        mine = given.nodes[node]
        for key in sorted({"at", "tolerance", *_ROLES} & {*data, *mine}):
            then, now = data.get(key), mine.get(key)
            if key == "at" and node != OUTPUT:
                then, now = (None if at is None else sites_at(at) for at in (then, now))
            if then != now:
                raise HypothesisError(
                    f"the given hypothesis is not the saved one: {key}= of node {node!r} was {_shown(then)} and is "
                    f"{_shown(now)}",
                    tries=["the hypothesis that was saved", "fit again"],
                )


def _shown(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, tuple) else repr(value)
