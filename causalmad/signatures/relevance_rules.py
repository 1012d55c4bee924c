"""Rules of layer-wise relevance propagation, as edits that keep every value and change its gradient."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, nn

from causalmad.inputs import Inputs
from causalmad.models import OpenModel
from causalmad.models.hooks import Hooks
from causalmad.models.offloaded import at_hand
from causalmad.models.order import counted
from causalmad.sites import Place

Patch: TypeAlias = Callable[[Tensor], Tensor]
Kind: TypeAlias = Literal["norm", "centred norm", "activation", "product", "pattern", "stacked", "interleaved"]

# Functions f with f(0) = 0, so that f(x) / x stays finite.
_ACTIVATION = re.compile(r"relu|gelu|elu|silu|swish|mish|tanh|softsign|shrink", re.IGNORECASE)
# Names of the parts of gated MLPs, and of the projection that reads the product.
_GATED = ((("gate_proj", "up_proj"), "down_proj"), (("gate_up_proj",), "down_proj"), (("wi_0", "wi_1"), "wo"))
# Names of the projections that make queries and keys, beside each other.
_QUERIES_AND_KEYS = (("q_proj", "k_proj"), ("query", "key"), ("q_lin", "k_lin"), ("to_q", "to_k"))


@dataclass(frozen=True)
class Rule:
    """What is done at one module.

    Attributes:
        path: of the module.
        kind: ``norm`` (root mean square) and ``centred norm``: the normaliser counts as constant; ``activation``: f(x)
            counts as x times a constant; ``product``: both factors of the product that the module reads get half of its
            relevance; ``pattern``: the module makes queries or keys, which count as constant, and so does the
            attention pattern; ``stacked`` and ``interleaved``: it makes queries, keys and values in one.
        heads: number of heads, for ``interleaved``.
    """

    path: str
    kind: Kind
    heads: int = 0


def rules(model: OpenModel, inputs: Inputs) -> tuple[Rule, ...]:
    """The rules that apply to a model; what none is known for keeps its plain gradient.

    Args:
        model: the opened model.
        inputs: at least one, on which it is seen which modules a run calls; one that is called more than once has no
            place of its own, and keeps its plain gradient too.
    """
    parts = dict(model.module.named_modules())
    found = [*_by_module(parts), *_attention(model, parts)]
    if getattr(model.engine, "remote", False) is True:
        return tuple(found)  # the model runs elsewhere, where nothing can be counted
    (batch,) = model.batches(inputs[:1])
    # nnsight's engine may run the module twice: once to record the order.
    here = replace(model.plain, engine=Hooks())
    with here.quiet(), counted(parts[rule.path] for rule in found) as calls:
        here.run(batch)
    return tuple(rule for rule in found if calls[id(parts[rule.path])] == 1)


def edits(module: nn.Module, found: Iterable[Rule]) -> dict[Place, Patch]:
    """The rules as edits for a single run."""
    patches: dict[Place, Patch] = {}
    for rule in found:
        if rule.kind in ("norm", "centred norm", "activation"):
            patches |= _proportional(rule, module.get_submodule(rule.path))
        elif rule.kind == "product":
            patches[Place(rule.path, "input")] = _half
        else:
            patches[Place(rule.path)] = _CONSTANT[rule.kind](rule.heads)
    return patches


def rules_to_data(found: Iterable[Rule]) -> list[list[object]]:
    """Rules as plain data; :func:`rules_from_data` is the way back."""
    return [[rule.path, rule.kind, rule.heads] for rule in found]


def rules_from_data(data: Any) -> tuple[Rule, ...]:
    """The rules that :func:`rules_to_data` wrote."""
    return tuple(Rule(str(path), kind, int(heads)) for path, kind, heads in data)


def _by_module(parts: Mapping[str, nn.Module]) -> list[Rule]:
    found = []
    for path, part in parts.items():
        name, leaf = type(part).__name__, next(part.children(), None) is None
        children = dict(part.named_children())
        if leaf and ("RMSNorm" in name or name == "T5LayerNorm"):
            found.append(Rule(path, "norm"))
        elif leaf and "LayerNorm" in name:
            found.append(Rule(path, "centred norm"))
        elif leaf and path and _ACTIVATION.search(name):
            found.append(Rule(path, "activation"))
        for factors, reader in _GATED:
            if all(factor in children for factor in (*factors, reader)):
                found.append(Rule(f"{path}.{reader}".lstrip("."), "product"))
    return found


def _attention(model: OpenModel, parts: Mapping[str, nn.Module]) -> list[Rule]:
    family = model.architecture
    if family is not None and family.wiring is not None and family.wiring.layout != "apart":
        layout: Kind = "stacked" if family.wiring.layout == "stacked" else "interleaved"
        paths = [family.path(layer, family.wiring.queries) for layer in range(family.layers)]
        return [Rule(path, layout, family.heads) for path in paths if path in parts]
    found = []
    for path, part in parts.items():
        children = dict(part.named_children())
        for pair in _QUERIES_AND_KEYS:
            if all(name in children for name in pair):
                found += [Rule(f"{path}.{name}".lstrip("."), "pattern") for name in pair]
    return found


def _proportional(rule: Rule, part: nn.Module) -> dict[Place, Patch]:
    """The output counts as the (centred) input times a constant, plus the bias.

    An entry where the input is zero keeps its plain gradient: for a norm that is what the rule says, and for an
    activation it is the limit of f(x) / x.
    """
    seen: list[Tensor] = []

    def before(value: Tensor) -> Tensor:
        seen[:] = [value]
        return value.clone() if getattr(part, "inplace", False) else value

    def after(value: Tensor) -> Tensor:
        source = seen.pop()
        axes: tuple[int, ...] = (-1,)
        if not (value.requires_grad and source.requires_grad) or value.shape != source.shape:
            return value
        if rule.kind == "centred norm":
            axes = tuple(range(-len(getattr(part, "normalized_shape", axes)), 0))
            source = source - source.mean(axes, keepdim=True)
        still = source.detach()
        with at_hand(part):
            weight, own = getattr(part, "weight", None), getattr(part, "bias", None)
        if type(part) is nn.LayerNorm:  # without a division, in which a bias would cost digits
            scale = (still.square().mean(axes, keepdim=True) + part.eps).rsqrt()
            ratio = scale if weight is None else scale * weight
        else:
            ratio = (value.detach() - (own if isinstance(own, Tensor) else 0)) / torch.where(still == 0, 1, still)
        surrogate = source * ratio
        # The value to the bit, and the gradient of the surrogate.
        return torch.where(still == 0, value, value.detach() + (surrogate - surrogate.detach()))

    return {Place(rule.path, "input"): before, Place(rule.path): after}


def _half(value: Tensor) -> Tensor:
    return value if not value.requires_grad else 0.5 * value + 0.5 * value.detach()


def _constant(heads: int) -> Patch:
    return lambda value: value.detach()


def _stacked(heads: int) -> Patch:
    def patch(value: Tensor) -> Tensor:
        third = value.shape[-1] // 3
        return torch.cat([value[..., : 2 * third].detach(), value[..., 2 * third :]], -1)

    return patch


def _interleaved(heads: int) -> Patch:
    def patch(value: Tensor) -> Tensor:
        apart = value.unflatten(-1, (heads, 3, -1))
        return torch.cat([apart[..., :2, :].detach(), apart[..., 2:, :]], -2).flatten(-3)

    return patch


_CONSTANT: Mapping[str, Callable[[int], Patch]] = {
    "pattern": _constant,
    "stacked": _stacked,
    "interleaved": _interleaved,
}
