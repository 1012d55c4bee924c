"""Relevance patching: attribution patching whose gradient follows the rules of relevance propagation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal

from causalmad.config import require_options
from causalmad.inputs import Batch, Inputs
from causalmad.models import OpenModel
from causalmad.signatures.attribution_patching import AttributionPatching, FittedAttributionPatching
from causalmad.signatures.base import Column, Signatures, State, require_inputs
from causalmad.signatures.columns import Reduced
from causalmad.signatures.relevance_rules import Patch, Rule, edits, rules, rules_from_data, rules_to_data
from causalmad.sites import Place
from causalmad.targets import Readout, Target, TopMargin


@dataclass(frozen=True)
class RelevancePatching:
    """What each unit contributes to the output, by propagated relevance (RelP): steadier than gradients in depth.

    As :class:`AttributionPatching`, but where a gradient follows every curve of a nonlinear part, relevance holds its
    local factors constant: the normaliser of LayerNorm and RMSNorm; the attention pattern (no gradient through queries
    and keys); f(x) / x of an activation function f, where f(0) = 0; and of the product in a gated MLP each factor gets
    half. The values stay the same to the bit. One forward and one backward pass. In a model without biases the
    contributions at a layer, with a zero baseline, sum to the logit that is attributed.

    Parts are known by their kind and names: modules called LayerNorm or RMSNorm; activation modules; ``gate_proj`` and
    ``up_proj`` before ``down_proj``, ``gate_up_proj``, or ``wi_0`` and ``wi_1``; ``q_proj`` and ``k_proj`` (or
    ``query`` and ``key``), and the fused projections of GPT-2 and GPT-NeoX. Everything else keeps its plain gradient:
    functions that are no modules, and modules that a single pass calls more than once.

    Args:
        units: ``blocks``, ``positions``, ``residual``, ``heads``, ``mlps``, ``neurons``, ``layers``, or several of
            them; ``auto`` takes the blocks where the data declares them, otherwise the positions, and the heads where
            there are any.
        target: the scalar that is attributed, by default the margin of the model's own answer.
        baseline: ``mean``, ``zero``, ``donors``, ``positions`` or ``components``, as for attribution patching.
        normalise: divide by the sum of absolute contributions, and keep its logarithm as a column of its own.
        log: signed logarithm of the columns, log(1 + |x| / s) with s the trusted median size.
        donors: how many donors, for ``baseline="donors"``.
        components: how many principal components, for ``baseline="components"``.

    Columns are, for every unit, the signed sum and the sum of absolute values over its entries, in units of the target.

    Raises:
        FitError: on an option that attribution patching refuses as well.

    References:
        Rezaei Jafari, Eberle, Khakzar, Nanda 2025, "RelP", arXiv 2508.21258.
    """

    units: str | tuple[str, ...] = "auto"
    target: Target | Readout = field(default_factory=TopMargin)
    baseline: Literal["mean", "zero", "donors", "positions", "components"] = "mean"
    normalise: bool = True
    log: bool = True
    donors: int = 4
    components: int = 10

    def __post_init__(self) -> None:
        require_options(self)
        self._plain()  # which refuses what it does not know

    def fit(self, model: OpenModel, trusted: Inputs, seed: int = 0) -> FittedRelevancePatching:
        """Find the parts that have a rule, then fit as attribution patching does.

        Raises:
            FitError: when the units do not exist, or the trusted inputs are too few for donors.
        """
        require_inputs(trusted)
        found = rules(model, trusted)
        return FittedRelevancePatching(model, found, self._plain().fit(ruled(model, found), trusted, seed))

    def restore(self, model: OpenModel, state: State) -> FittedRelevancePatching:
        """The fitted signature that wrote ``state``."""
        found = rules_from_data(state.data["rules"])
        return FittedRelevancePatching(model, found, self._plain().restore(ruled(model, found), state))

    def _plain(self) -> AttributionPatching:
        return AttributionPatching(**{option.name: getattr(self, option.name) for option in fields(self)})


@dataclass(frozen=True, eq=False)
class FittedRelevancePatching:
    """Relevance patching on one model: attribution patching on a view of it that stands under the rules."""

    model: OpenModel
    rules: tuple[Rule, ...]
    fitted: FittedAttributionPatching

    @property
    def inner(self) -> FittedAttributionPatching:
        """Attribution patching on the view."""
        return replace(self.fitted, model=ruled(self.model, self.rules))

    @property
    def columns(self) -> tuple[Column, ...]:
        """The contributions."""
        return self.fitted.columns

    @property
    def donor_digests(self) -> tuple[str, ...]:
        """Contents of the donors, which the reference leaves out."""
        return self.fitted.donor_digests

    def __call__(self, inputs: Any) -> Signatures:
        """(n, d) contributions; one forward and one backward pass."""
        return self.inner(inputs)

    def reduced(self, inputs: Inputs) -> Reduced:
        """The columns in units of the target (or as shares of it)."""
        return self.inner.reduced(inputs)

    def state(self) -> State:
        """That of attribution patching, and the rules."""
        state = self.fitted.state()
        return State(state.tensors, {**state.data, "rules": rules_to_data(self.rules)})


def ruled(model: OpenModel, found: tuple[Rule, ...]) -> OpenModel:
    """A view of a model whose values are the same, and whose gradients follow the rules."""

    def standing(batch: Batch) -> Mapping[Place, Patch]:
        own = edits(model.module, found)
        others = {} if model.standing is None else model.standing(batch)
        # A rule is about what goes in and comes out of the module itself: other edits come before and after it.
        return {**own, **others, **{place: _both(place, own[place], others[place]) for place in own.keys() & others}}

    return replace(model, standing=standing)


def _both(place: Place, rule: Patch, other: Patch) -> Patch:
    if place.side == "input":
        return lambda value: rule(other(value))
    return lambda value: other(rule(value))
