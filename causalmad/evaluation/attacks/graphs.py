"""A view of a model whose runs keep their graph, so that what a detector reads can be differentiated again."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor, nn

from causalmad.inputs import Batch
from causalmad.models import OpenModel
from causalmad.models.base import Patch, Run
from causalmad.models.logits import read_logits
from causalmad.models.places import edited, fresh, part_at, pick, require_reached, swap
from causalmad.signatures.relevance_rules import Rule
from causalmad.signatures.units import embedding
from causalmad.sites import Place
from causalmad.targets import Readout, Target, as_target


@dataclass(frozen=True, eq=False, repr=False)
class GraphModel(OpenModel):
    """An opened model of which nothing is detached: gradients flow into inputs and parameters, also through gradients.

    The module is used as it is: whoever holds this decides about its mode and about which parameters require gradients.

    Attributes:
        rules: of relevance patching, under which gradients of a target are taken. The values, and how the gradients
            change with inputs and parameters, are those of the plain run (in gated MLPs the latter only nearly).
        soft: (n, positions, width) what stands in for the embedded tokens of every row, or None.
        tokens: (n, positions) the tokens that it stands in for; where an edit puts another token, its own embedding
            counts.
    """

    rules: tuple[Rule, ...] = ()
    soft: Tensor | None = None
    tokens: Tensor | None = None

    @classmethod
    def of(cls, model: OpenModel) -> GraphModel:
        """The view of an opened model."""
        return cls(**{field.name: getattr(model, field.name) for field in fields(OpenModel)})

    @property
    def plain(self) -> GraphModel:
        """The view without standing edits, rules and soft tokens: what donors run on."""
        return replace(self, standing=None, rules=(), soft=None, tokens=None)

    def quiet(self) -> AbstractContextManager[None]:
        """Nothing: the graph reaches beyond any single run."""
        return nullcontext()

    def run(
        self,
        batch: Batch,
        *,
        read: Sequence[Place] = (),
        edits: Mapping[Place, Patch] | None = None,
        target: Target | Readout | None = None,
        output: bool = True,
        position: int | str = -1,
        extra: Mapping[str, Any] | None = None,
        sloped: Sequence[Place] | None = None,
    ) -> Run:
        """What :meth:`causalmad.models.OpenModel.run` gives, with its graph; ``extra`` arguments are not taken."""
        if extra:
            raise ValueError(f"extra arguments {sorted(extra)} of a run that keeps its graph")
        soft = self._soft(batch)
        own = {**soft, **_after(soft, edits or {})}
        if target is None:
            logits, values = self._forward(batch, own, read, position)
            return Run(logits, values)
        question = as_target(target)
        read = tuple(dict.fromkeys((*read, *(sloped or ()))))
        ruled = {place for rule in self.rules for place in _places(rule)}
        logits, plain = self._forward(batch, own, [*read, *ruled], position)
        values = {place: plain[place] for place in read}
        if not self.rules:
            return Run(logits, values, _slopes(question.bind(logits)(logits).sum(), _only(values, sloped)))
        # The slope of the target is that of the plain logits. Under the rules the rest of the run is linear in what is
        # read, with factors of the plain run: so nothing about how the gradients change is lost.
        (slope,) = torch.autograd.grad(question.bind(logits)(logits).sum(), logits, create_graph=True)
        both = {**own, **_after(own, _linear(self.module, self.rules, plain))}
        linear, seen = self._forward(batch, both, read, position)
        return Run(logits, values, _slopes((slope * linear).sum(), _only(seen, sloped)))

    def _forward(
        self,
        batch: Batch,
        edits: Mapping[Place, Patch],
        read: Sequence[Place],
        position: int | str,
    ) -> tuple[Tensor, dict[Place, Tensor]]:
        columns = self._columns(batch, position)
        args, kwargs = fresh(*self._call(batch, position, columns))
        values: dict[Place, Tensor] = {}
        wanted = set(read)

        def visit(place: Place, value: Tensor) -> Tensor:
            if place in edits:
                value = edited(place, value, edits[place])
            if place in wanted:
                # An alias of its own, so that a gradient taken here counts no other way to the same tensor.
                value = value.view_as(value) if value.requires_grad else value.detach().requires_grad_()
                values[place] = value
            return value

        with ExitStack() as stack, torch.enable_grad():
            for place in dict.fromkeys([*read, *edits]):
                stack.callback(_hook(part_at(place, self.module), place, visit).remove)
            result = self.module(*args, **kwargs)
            require_reached(list(read), values)
            return read_logits(result, batch, position, columns), values

    def _soft(self, batch: Batch) -> dict[Place, Patch]:
        if self.soft is None or self.tokens is None:
            return {}
        rows = torch.as_tensor(batch.rows)
        values, same = self.soft[rows], (batch.main == self.tokens[rows])[..., None]
        return {embedding(self): lambda own: torch.where(same, values.to(own.dtype), own)}


@contextmanager
def twice_differentiable(module: nn.Module) -> Iterator[None]:
    """While this is open, a transformers model computes its attention so that it has a second derivative."""
    before = getattr(getattr(module, "config", None), "_attn_implementation", None)
    change = getattr(module, "set_attn_implementation", None)
    if before in (None, "eager") or change is None:
        yield
        return
    change("eager")
    try:
        yield
    finally:
        change(before)


def _hook(part: nn.Module, place: Place, visit: Callable[[Place, Tensor], Tensor]) -> Any:
    def after(_: nn.Module, args: Any, kwargs: Any, result: Any) -> Any:
        return swap(result, place, visit(place, pick(result, place)))

    def before(_: nn.Module, args: Any, kwargs: Any) -> Any:
        return swap((args, kwargs), place, visit(place, pick((args, kwargs), place)))

    if place.side == "output":
        return part.register_forward_hook(after, with_kwargs=True)
    return part.register_forward_pre_hook(before, with_kwargs=True)


def _only(values: Mapping[Place, Tensor], sloped: Sequence[Place] | None) -> Mapping[Place, Tensor]:
    return values if sloped is None else {place: values[place] for place in sloped}


def _slopes(scalar: Tensor, values: Mapping[Place, Tensor]) -> dict[Place, Tensor]:
    found = torch.autograd.grad(scalar, list(values.values()), create_graph=True, allow_unused=True)
    return {
        place: torch.zeros_like(value) if slope is None else slope
        for (place, value), slope in zip(values.items(), found, strict=True)
    }


def _places(rule: Rule) -> tuple[Place, ...]:
    """Where the plain run is read for a rule."""
    if rule.kind == "product":
        return ()
    outside = Place(rule.path)
    return (Place(rule.path, "input"), outside) if rule.kind in ("norm", "centred norm", "activation") else (outside,)


def _linear(module: nn.Module, rules: Sequence[Rule], plain: Mapping[Place, Tensor]) -> dict[Place, Patch]:
    """The rules as edits whose factors are those of the plain run."""
    found: dict[Place, Patch] = {}
    for rule in rules:
        inside, outside = Place(rule.path, "input"), Place(rule.path)
        if rule.kind == "product":
            found[inside] = lambda value: 0.5 * value + 0.5 * value.detach()
        elif rule.kind == "stacked":
            found[outside] = _stacked(plain[outside])
        elif rule.kind == "interleaved":
            found[outside] = _interleaved(plain[outside], rule.heads)
        elif rule.kind == "pattern":
            found[outside] = _fixed(plain[outside])
        else:
            found |= _proportional(rule, module.get_submodule(rule.path), plain[inside], plain[outside])
    return found


def _proportional(rule: Rule, part: nn.Module, source: Tensor, value: Tensor) -> dict[Place, Patch]:
    """The output as the (centred) input times a factor of the plain run, plus the bias."""
    seen: list[Tensor] = []
    axes = tuple(range(-len(getattr(part, "normalized_shape", (0,))), 0))
    centred = rule.kind == "centred norm"
    still = source - source.mean(axes, keepdim=True) if centred else source
    bias = getattr(part, "bias", None)
    constant = bias if isinstance(bias, Tensor) else torch.zeros(())
    zero = still == 0
    ratio = torch.where(zero, 0.0, (value - constant) / torch.where(zero, 1.0, still))
    if type(part) is nn.LayerNorm:  # without a division, in which a bias would cost digits
        scale = (still.square().mean(axes, keepdim=True) + part.eps).rsqrt()
        ratio = (scale if part.weight is None else scale * part.weight).expand_as(still)

    def before(given: Tensor) -> Tensor:
        seen[:] = [given]
        return given

    def after(own: Tensor) -> Tensor:
        given = seen.pop()
        moved = given - given.mean(axes, keepdim=True) if centred else given
        return moved * ratio + constant

    return {Place(rule.path, "input"): before, Place(rule.path): after}


def _fixed(plain: Tensor) -> Patch:
    return lambda value: plain


def _stacked(plain: Tensor) -> Patch:
    def patch(value: Tensor) -> Tensor:
        third = value.shape[-1] // 3
        return torch.cat([plain[..., : 2 * third], value[..., 2 * third :]], -1)

    return patch


def _interleaved(plain: Tensor, heads: int) -> Patch:
    def patch(value: Tensor) -> Tensor:
        own, other = value.unflatten(-1, (heads, 3, -1)), plain.unflatten(-1, (heads, 3, -1))
        return torch.cat([other[..., :2, :], own[..., 2:, :]], -2).flatten(-3)

    return patch


def _after(first: Mapping[Place, Patch], then: Mapping[Place, Patch]) -> dict[Place, Patch]:
    """``then``, each after what ``first`` does at the same place (at an input: before it)."""

    def both(place: Place) -> Patch:
        return lambda value: then[place](first[place](value))

    return {place: both(place) if place in first else patch for place, patch in then.items()}
