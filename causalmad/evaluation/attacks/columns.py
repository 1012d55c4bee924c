"""The columns of a fitted signature as tensors through which gradients flow, for those who attack it."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from causalmad.errors import SpecError
from causalmad.evaluation.attacks.graphs import GraphModel
from causalmad.inputs import Batch
from causalmad.signatures.activations import FittedActivations, features
from causalmad.signatures.attribution_patching import FittedAttributionPatching
from causalmad.signatures.attributions import Attributor, flat
from causalmad.signatures.base import FittedSignature
from causalmad.signatures.concat import FittedConcat
from causalmad.signatures.effects import Effects, Resampler
from causalmad.signatures.gram_deviation import FittedGramDeviation
from causalmad.signatures.relevance_patching import FittedRelevancePatching
from causalmad.signatures.resampling_profile import FittedResamplingProfile
from causalmad.signatures.sums import unit_tensors
from causalmad.signatures.units import Group
from causalmad.targets import as_target

_LEAST = 1e-20  # below this an effect is no effect, and its logarithm has no slope worth following


def columns(fitted: FittedSignature, model: GraphModel, batch: Batch) -> Tensor:
    """(batch, d) columns of a fitted signature, as it gives them, in double precision and with their graph.

    Known are activations, attribution patching (one step), relevance patching, the resampling profile, the Gram
    deviation, and several of them beside each other. The batch's inputs are taken to be no donors and not trusted.

    Args:
        fitted: what was fitted on the model, perhaps with other parameters or inputs.
        model: the view of the model that is run.
        batch: the inputs, whose main field may require gradients.

    Raises:
        SpecError: for a signature that is not known here.
    """
    fitted = getattr(fitted, "inner", fitted) if type(fitted).__name__ == "Remembered" else fitted
    if isinstance(fitted, FittedConcat):
        return torch.cat([columns(part, model, batch) for part in fitted.parts], dim=1)
    if isinstance(fitted, FittedActivations):
        places = list({site.place: None for site in fitted.sites})
        run = model.run(batch, read=places)
        return torch.cat([features(run.values[site.place], site, batch) for site in fitted.sites], dim=1).double()
    if isinstance(fitted, FittedRelevancePatching):
        return _attributed(fitted.fitted, replace(model, rules=fitted.rules), batch)
    if isinstance(fitted, FittedAttributionPatching):
        return _attributed(fitted, model, batch)
    if isinstance(fitted, FittedResamplingProfile):
        return _profile(fitted, model, batch)
    if isinstance(fitted, FittedGramDeviation):
        return fitted.deviations(model, batch)
    raise SpecError(
        f"the columns of {type(fitted).__name__} have no gradient here",
        needed="activations, attribution or relevance patching, resampling profile, Gram deviation, or several of them",
        tries=["searched(...), which needs scores alone"],
    )


def _attributed(fitted: FittedAttributionPatching, model: GraphModel, batch: Batch) -> Tensor:
    spec = fitted.spec
    if spec.steps > 1 or fitted.baseline.donors is not None:
        raise SpecError(f"{spec!r} has no gradient here", tries=["steps=1, and another baseline than donors"])
    places = flat(fitted.places)
    attributor = Attributor(model, as_target(spec.target), fitted.baseline, places, 1)
    found = attributor.contributions(batch, None)
    tables = {
        (group.name, kind): (group, values.nan_to_num(0.0))  # now: zero times the slope of what is missing is no zero
        for group in fitted.groups
        for kind, values in unit_tensors(group, found, fitted.places[group.name], batch).items()
    }
    total = torch.cat([values for (_, kind), (_, values) in tables.items() if kind == "size"], 1).sum(1)
    divisor = torch.where(total > 0, total, 1.0)[:, None]
    parts = [
        _placed(group, values / divisor if spec.normalise else values, fitted.longest)
        for group, values in tables.values()
    ]
    if spec.normalise:
        parts.append(divisor if spec.log else divisor.log())
    values = torch.cat(parts, dim=1)
    return _signed_log(values, fitted.scales) if spec.log else values


def _profile(fitted: FittedResamplingProfile, model: GraphModel, batch: Batch) -> Tensor:
    spec = fitted.spec
    resampler = Resampler.of(model, fitted.donors, as_target(spec.target), fitted.groups)
    which = torch.arange(fitted.donors.count).expand(len(batch), -1)
    parts = []
    for group in fitted.groups:
        effects: Effects = resampler.effects(batch, which, group)
        for values in (effects.divergence.double(), effects.change.double()):
            mean = values.mean(-1).nan_to_num(0.0)
            away = (values - values.mean(-1, keepdim=True)).nan_to_num(0.0)
            spread = (away.square().mean(-1) + _LEAST).sqrt() - _LEAST**0.5
            if spec.by in ("rank", "both"):
                parts.append(_ranked(mean, spec.top, last=group.ragged and spec.by == "rank"))
            if spec.by in ("place", "both"):
                parts.append(_placed(group, mean, fitted.longest))
            parts.append(spread.sum(1, keepdim=True))
    return _signed_log(torch.cat(parts, dim=1), fitted.scales)


def _ranked(effects: Tensor, top: int, *, last: bool) -> Tensor:
    """What :func:`causalmad.signatures.columns.by_rank` gives of (batch, units) effects."""
    size = effects.abs()
    order = size.detach().argsort(dim=1, descending=True, stable=True)
    ranked = torch.nn.functional.pad(effects.gather(1, order), (0, max(top - effects.shape[1], 0)))[:, :top]
    share = size / size.sum(1, keepdim=True).clamp_min(1e-300)
    entropy = -(share * share.clamp_min(1e-300).log()).sum(1, keepdim=True)
    parts = [ranked, effects.sum(1, keepdim=True), entropy]
    return torch.cat([*parts, effects[:, :1]] if last else parts, dim=1)


def _placed(group: Group, values: Tensor, longest: int) -> Tensor:
    """What :func:`causalmad.signatures.columns.by_place` gives of (batch, units) values."""
    if not group.ragged:
        return values
    placed = torch.nn.functional.pad(values, (0, max(longest - values.shape[1], 0)))[:, :longest]
    return torch.cat([placed, values[:, longest:].sum(1, keepdim=True)], dim=1)


def _signed_log(values: Tensor, scales: object) -> Tensor:
    """Sign times log(1 + size / scale)."""
    return values.sign() * (values.abs() / torch.as_tensor(scales)).log1p()
