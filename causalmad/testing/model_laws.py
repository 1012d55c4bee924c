"""Laws of engines: what opening, padding and editing a model does, whatever the model is.

They take a toy, or a user's own model and inputs as :func:`subject` puts them together.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from causalmad.errors import CausalmadError, ModelError, SiteError
from causalmad.inputs import Inputs
from causalmad.interventions import add, interchange, interpolate, keep
from causalmad.models import OpenModel, open_model
from causalmad.models.logits import read_logits
from causalmad.signatures import Activations, AttributionPatching
from causalmad.sites import Place, Site
from causalmad.testing.law import LawBroken
from causalmad.testing.toys import Toy
from causalmad.testing.traces import ToyFailure, failing, untouched

_ROLES = ("residual", "heads", "mlps", "neurons", "embedding")


def subject(name: str, module: nn.Module, inputs: Inputs) -> Toy:
    """A model of one's own, with a few inputs, as the laws take it."""
    return Toy(name, module, inputs, inputs, ("", ""))


def law_identity_edits_change_nothing(toy: Toy, engine: Any = "hooks") -> None:
    """Editing any activation to itself changes no logit, to the last bit: one place at a time, and all at once."""
    model = open_model(toy.model, engine=engine)
    places = _places(model) + ([] if toy.fresh.tokens else [Place("", "input")])
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


def law_signatures_leave_nothing(toy: Toy, engine: Any = "hooks") -> None:
    """A signature of activations and one of gradients leave nothing, also where the model fails on the way."""
    model = open_model(toy.model, engine=engine)

    def activations() -> None:
        Activations().fit(model, toy.fresh, seed=0)(toy.fresh)

    def gradients() -> None:
        with suppress(CausalmadError):  # an architecture of which neither heads nor MLPs are known
            AttributionPatching(baseline="zero").fit(model, toy.fresh, seed=0)(toy.fresh)

    for run in (activations, gradients):
        with untouched(toy.model, f"after {run.__name__} were read"):
            run()
        for number in (0, 1):
            after = f"after {run.__name__} were read and the model raised in run {number}"
            with failing(toy.model, number), untouched(toy.model, after):
                _require_handed_on(run)


def law_padding_changes_nothing(toy: Toy, engine: Any = "hooks") -> None:
    """Token inputs get the logits that they get alone, also among longer ones, padded at either side.

    Inputs of one length are cut to different ones. Other inputs have no padding.
    """
    if not toy.fresh.tokens:
        return
    inputs = _ragged(toy.fresh)
    alone = _logits(open_model(toy.model, engine=engine, batch_size=1), inputs)
    tolerance = _tolerance(open_model(toy.model))
    largest = max(float(alone.abs().max()), 1e-3)
    for side in ("left", "right"):
        try:
            model = open_model(toy.model, engine=engine, side=side)
        except ModelError:  # a model that reads its first token takes no padding before it
            continue
        off = (_logits(model, inputs) - alone).abs().amax(1) / largest
        if not bool((off <= tolerance).all()):
            row = int(off.argmax())
            raise LawBroken(
                f"padding at the {side} changes nothing",
                f"logits as of each input alone, to {tolerance:.1g} of the largest",
                f"{float(off[row]):.2g} off on input {inputs.ids[row]!r} of {int(inputs.lengths[row])} tokens, "
                f"padded to {int(inputs.lengths.max())}",
            )


def law_logits_are_the_models_own(toy: Toy, engine: Any = "hooks") -> None:
    """Every input alone has the logits that the plain module gives when it is called with its fields and nothing else.

    The module gets what it has no default for as well, a mask of ones among it.
    """
    model = open_model(toy.model, engine=engine)
    tolerance = _tolerance(model)
    for number in range(len(toy.fresh)):
        (batch,) = model.batches(toy.fresh[number : number + 1])
        needed = {name: value for name, value in batch.extra.items() if name in model.needs}
        args, kwargs = replace(batch, extra=needed).call
        if model.positional and "input_ids" in kwargs:
            args = (kwargs.pop("input_ids"), *args)
        found = model.logits(batch).double()
        with model.quiet(), torch.no_grad():
            own = read_logits(model.module(*args, **kwargs), batch, -1).double()
        off = float((found - own).abs().max() / max(float(own.abs().max()), 1e-3))
        if not off <= tolerance:
            raise LawBroken(
                "logits are the model's own",
                f"those of the plain module, to {tolerance:.1g} of the largest",
                f"{off:.2g} off on input {toy.fresh.ids[number]!r}, by itself",
            )


def _tolerance(model: OpenModel) -> float:
    # Sums in another order differ in the last bits, which a deep model makes larger; padding that is seen, by far more.
    return max(1e-4, 8 * torch.finfo(model.dtype).eps)


def _places(model: OpenModel) -> list[Place]:
    """Every place of the roles that the model has, each once."""
    sites: list[Site] = []
    for role in _ROLES if model.architecture else ("layers",):
        with suppress(SiteError):  # a family of which not every part is known
            sites += model.sites(role)
    return list(dict.fromkeys(site.place for site in sites))


def _ragged(inputs: Inputs) -> Inputs:
    """Token inputs of differing lengths: where all are of one length, every second one loses its end."""
    length = int(inputs.lengths[0])
    if length < 2 or (inputs.lengths != length).any():
        return inputs

    def cut(row: Tensor, number: int) -> Tensor:
        along = row.ndim == 1 and len(row) == length  # a mask is as long as its tokens
        return row[: (length + 1) // 2] if along and number % 2 else row

    fields = {name: tuple(cut(row, i) for i, row in enumerate(rows)) for name, rows in inputs.fields.items()}
    return replace(inputs, fields=fields)


def _logits(model: OpenModel, inputs: Inputs) -> Tensor:
    """(n, classes) logits in the order of the inputs."""
    batches = list(model.batches(inputs))
    rows = torch.cat([torch.as_tensor(batch.rows) for batch in batches])
    found = torch.cat([model.logits(batch).double().cpu() for batch in batches])
    return found[rows.argsort()]


def _require_handed_on(run: Callable[[], None]) -> None:
    """A failing model's own error comes through, or a named one."""
    try:
        run()
    except (ToyFailure, CausalmadError):
        return
    except Exception as error:
        # nnsight raises an error of its own that tells of the model's.
        if isinstance(error.__cause__, ToyFailure) or "ToyFailure" in f"{type(error)} {error}":
            return
        raise LawBroken("a model's own error is handed on", "ToyFailure", repr(error)) from error


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


MODEL_LAWS: tuple[Callable[[Toy, Any], None], ...] = (
    law_identity_edits_change_nothing,
    law_runs_leave_nothing,
    law_signatures_leave_nothing,
    law_logits_are_the_models_own,
    law_padding_changes_nothing,
)
