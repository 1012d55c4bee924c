"""A hypothesis in pyvene's words: the interchange interventions of its claims, to be run by pyvene itself."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import torch
from torch import Tensor

from causalmad.errors import HypothesisError
from causalmad.hypotheses.graph import Hypothesis
from causalmad.hypotheses.scrubbing import sites_of
from causalmad.inputs import Batch
from causalmad.models import OpenModel, open_model
from causalmad.models.padding import one_batch
from causalmad.sites import Site, position_index

_HEADS = "head_attention_value_output"
_NO_INPUTS = Batch(np.zeros(0, dtype=np.int64), {})


def to_pyvene(hypothesis: Hypothesis, model: Any) -> Any:
    """The ``pyvene.IntervenableConfig`` with one representation for every site of every claim, causes before effects.

    Args:
        hypothesis: the claim.
        model: a model of an architecture that pyvene knows, or whatever :func:`causalmad.open_model` takes.

    Returns:
        The configuration for ``pyvene.IntervenableModel(config, model)``; :func:`interchange_arguments` gives what it
        is called with. (pyvene freezes the parameters of the model that it is given, and takes all hooks off it.)

    Raises:
        HypothesisError: for an architecture that pyvene does not know, or a site that it would intervene on otherwise
            than we do.
    """
    import pyvene

    opened = open_model(model)
    representations = []
    for site in _sites(opened, hypothesis):
        row: dict[str, Any] = _component(opened, site)
        if site.neurons or site.subspace is not None:
            row["intervention"] = _within(site)
        else:
            row["intervention_type"] = pyvene.VanillaIntervention
        representations.append(row)
    return pyvene.IntervenableConfig(representations)


def interchange_arguments(hypothesis: Hypothesis, model: Any, base: Any, source: Any) -> dict[str, Any]:
    """What an ``IntervenableModel`` is called with, so that all claims are taken from the sources.

    Args:
        hypothesis: the claim.
        model: whatever :func:`causalmad.open_model` takes.
        base: inputs that receive.
        source: as many inputs that give.

    Returns:
        ``base``, ``sources`` (the same batch for every claim; put None in the place of those that shall keep their own
        values) and ``unit_locations``.

    Raises:
        HypothesisError: when the two differ in number, or a site holds whole sequences of differing length.
    """
    opened = open_model(model)
    batches = []
    for data in (base, source):
        known = opened.inputs(data)
        batches.append(one_batch(opened, known, error=HypothesisError))
    receiving, giving = batches
    if len(receiving) != len(giving):
        raise HypothesisError(f"{len(receiving)} bases and {len(giving)} sources", needed="one source for every base")
    sites = _sites(opened, hypothesis)
    whole = [site for site in sites if site.position is None]
    if whole and receiving.main.shape[1] != giving.main.shape[1]:
        raise HypothesisError(
            f"{whole[0]} holds whole sequences, of {receiving.main.shape[1]} and {giving.main.shape[1]} tokens",
            needed="one length, or a position",
            tries=[f"{whole[0]}@-1"],
        )
    locations = tuple([_locations(site, batch) for site in sites] for batch in (giving, receiving))
    return {
        "base": receiving.call[1],
        "sources": [giving.call[1] for _ in sites],
        "unit_locations": {"sources->base": locations},
    }


def _sites(model: OpenModel, hypothesis: Hypothesis) -> list[Site]:
    found = [site for sites in sites_of(model, hypothesis).values() for site in sites]
    for site in found:
        if isinstance(site.position, str) and site.position.partition(":")[0] == "all":
            raise HypothesisError(f"{site} is pooled", needed="a single position, to intervene on it")
        if site.element is not None:
            raise HypothesisError(f"{site}: pyvene intervenes on the first tensor only", tries=[site.path])
    return found


def _component(model: OpenModel, site: Site) -> dict[str, Any]:
    """Where pyvene finds a site."""
    mapping = _mapping(model)
    if site.heads:
        for layer in range(model.architecture.layers if model.architecture else 0):
            place = re.sub(r"\[(\w+)\]", r".\1", mapping.get(_HEADS, ("",))[0].replace("%s", str(layer)))
            if place == site.path and site.side == "input":
                unit = "h" if site.position is None else "h.pos"
                return {"layer": layer, "component": _HEADS, "unit": unit, "max_number_of_units": len(site.heads)}
        raise HypothesisError(f"pyvene knows no heads at {site.path!r} of {model.name}", tries=["the attention module"])
    if site.side == "input" and not _own_input(model, site):
        raise HypothesisError(
            f"pyvene writes into the input of {site.path!r}, which other modules may read as well",
            needed="the output of a module, or the input of a block, an attention, an MLP or an output projection",
        )
    return {"component": f"{site.path}.{site.side}", "unit": "pos"}


def _own_input(model: OpenModel, site: Site) -> bool:
    """Whether nothing else reads the tensor that goes into a module."""
    family = model.architecture
    parts = ("", family.attention, family.mlp, family.projection, family.down) if family else ()
    layers = range(family.layers if family else 0)
    return family is not None and any(site.path == family.path(layer, part) for layer in layers for part in parts)


def _mapping(model: OpenModel) -> dict[str, Any]:
    from pyvene.models.intervenable_modelcard import type_to_module_mapping

    if type(model.module) not in type_to_module_mapping:
        known = sorted({kind.__name__ for kind in type_to_module_mapping if kind.__name__.endswith("LM")})
        raise HypothesisError(f"pyvene does not know {model.name}", needed=f"one of {', '.join(known)}, ...")
    found: dict[str, Any] = type_to_module_mapping[type(model.module)]
    return found


def _locations(site: Site, batch: Batch) -> Any:
    """Units of every row, as pyvene wants them."""
    heads = [list(site.heads) for _ in range(len(batch))]
    if site.position is None:
        return heads if site.heads else None
    positions = [[int(index)] for index in position_index(site.position, batch)]
    return [heads, positions] if site.heads else positions


def _within(site: Site) -> Any:
    """An intervention that swaps some directions or entries only."""
    import pyvene

    part = Site("", neurons=site.neurons, subspace=site.subspace)

    class Swap(pyvene.Intervention):  # type: ignore[misc]
        """Takes what a site names from the source."""

        def forward(self, base: Tensor, source: Tensor, subspaces: Any = None) -> Tensor:
            with torch.no_grad():
                return part.put(base, part.take(source, _NO_INPUTS), _NO_INPUTS)

    # pyvene joins heads by itself, and joins positions unless it is told not to.
    return Swap(keep_last_dim=not site.heads)
