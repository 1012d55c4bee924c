"""Laws of engines: what opening and editing a model does, whatever the model is."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from causalmad.interventions import add, interchange, interpolate, keep
from causalmad.models import open_model
from causalmad.sites import Place
from causalmad.testing.law import LawBroken
from causalmad.testing.toys import Toy
from causalmad.testing.traces import untouched


def law_identity_edits_change_nothing(toy: Toy, engine: Any = "hooks") -> None:
    """Editing any activation to itself changes no logit, to the last bit: one place at a time, and all at once."""
    model = open_model(toy.model, engine=engine)
    sites = model.sites(["residual", "heads", "mlps", "neurons", "embedding"] if model.architecture else ["layers"])
    places = list(dict.fromkeys(site.place for site in sites)) + ([] if toy.fresh.tokens else [Place("", "input")])
    for batch in model.batches(toy.fresh):
        clean = model.run(batch, read=places)
        for name, edit in _IDENTITIES.items():
            patches = {place: partial(edit, donor=clean.values[place]) for place in places}
            for place in places:
                _require_unchanged(name, [place], clean.logits, model.logits(batch, {place: patches[place]}))
            _require_unchanged(name, places, clean.logits, model.logits(batch, patches))


def law_runs_leave_nothing(toy: Toy, engine: Any = "hooks") -> None:
    """Reads, edits and gradients leave the model and the generators as they were."""
    model = open_model(toy.model, engine=engine)
    sites = model.sites("residual" if model.architecture else "layers")
    places = [site.place for site in sites]
    with untouched(toy.model, "after runs of every kind"):
        for batch in model.batches(toy.fresh):
            model.run(batch, read=places, output=False)
            model.run(batch, read=places, target=lambda logits: logits[:, 0])
            model.run(batch, edits={places[0]: torch.zeros_like})


def _add_nothing(activation: Tensor, donor: Tensor) -> Tensor:
    return add(activation, torch.zeros_like(donor))


def _interpolate_by_nothing(activation: Tensor, donor: Tensor) -> Tensor:
    return interpolate(activation, donor * 2, 0.0)


_IDENTITIES = {
    "keep": keep,
    "interchange with itself": interchange,
    "add nothing": _add_nothing,
    "interpolate by nothing": _interpolate_by_nothing,
}


def _require_unchanged(name: str, places: list[Place], clean: Tensor | None, now: Tensor) -> None:
    if clean is None or not torch.equal(clean, now):
        where = ", ".join(map(str, places[:2]))
        largest = "" if clean is None else f"by up to {float((clean - now).abs().max()):g}"
        raise LawBroken("an identity edit changes nothing", f"the same logits: {name} at {where}", f"others {largest}")


MODEL_LAWS = (law_identity_edits_change_nothing, law_runs_leave_nothing)
