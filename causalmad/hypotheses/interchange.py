"""Interchange interventions: put a variable's activation from one run into another, and see whose answer comes out."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from scipy import stats

from causalmad.errors import HypothesisError
from causalmad.hypotheses.bench import Bench
from causalmad.hypotheses.graph import OUTPUT, ArrayValue, Hypothesis
from causalmad.hypotheses.pool import Rows, require_values, values_of
from causalmad.hypotheses.scrubbing import sites_of
from causalmad.models import open_model


@dataclass(frozen=True)
class Accuracy:
    """Interchange-intervention accuracy of one claim.

    Attributes:
        claim: the variable.
        share: share of (base, source) pairs whose answer is the one that the causal model predicts.
        interval: 95 % Clopper-Pearson interval.
        pairs: number of pairs.
        changed: share of the pairs for which the prediction differs from the base's own answer; the others can be right
            without any effect.
    """

    claim: str
    share: float
    interval: tuple[float, float]
    pairs: int
    changed: float


def is_causal_model(hypothesis: Hypothesis) -> bool:
    """Whether the graph predicts answers: the output has a mechanism, and so has every node with causes."""
    inner = [claim for claim in hypothesis.claims if hypothesis.parents(claim.name)]
    return hypothesis.output_mechanism is not None and all(claim.mechanism is not None for claim in inner)


def predict(hypothesis: Hypothesis, values: Mapping[str, Hashable], replaced: Mapping[str, Hashable]) -> int:
    """The class that the causal model answers when some variables are set.

    Args:
        hypothesis: a graph with mechanisms.
        values: claim -> its value on the base.
        replaced: claim -> the value that it is set to.

    Raises:
        HypothesisError: when the graph is no causal model, or a mechanism fails.
    """
    known: dict[str, Any] = {}
    for claim in hypothesis.claims:
        causes = hypothesis.parents(claim.name)
        if claim.name in replaced:
            known[claim.name] = replaced[claim.name]
        elif causes:
            known[claim.name] = apply(claim.mechanism, claim.name, {cause: known[cause] for cause in causes})
        else:
            known[claim.name] = values[claim.name]
    answer = apply(hypothesis.output_mechanism, OUTPUT, {cause: known[cause] for cause in hypothesis.parents(OUTPUT)})
    if not isinstance(answer, (int, np.integer)):
        raise HypothesisError(f"the output's mechanism gave {answer!r}", needed="the index of a class")
    return int(answer)


def interchange_accuracy(
    model: Any, hypothesis: Hypothesis, inputs: Any, *, pairs: int = 500, seed: int = 0
) -> dict[str, Accuracy]:
    """Interchange-intervention accuracy of every claim on a data set.

    Args:
        model: whatever :func:`causalmad.open_model` takes.
        hypothesis: a causal model: mechanisms on the output and on every node with causes, values on all.
        inputs: the data set, from which bases and sources are drawn.
        pairs: number of (base, source) pairs per claim.
        seed: decides the pairs.

    Returns:
        Claim -> accuracy.

    References:
        Geiger, Lu, Icard and Potts 2021, "Causal abstractions of neural networks", arXiv 2106.02997.
    """
    require_causal_model(hypothesis)
    require_values(hypothesis)
    opened = open_model(model)
    known = opened.inputs(inputs)
    claims = sites_of(opened, hypothesis)
    # A clean run of all inputs pays where there are more pairs than inputs.
    often = pairs * len(claims) > 2 * len(known)
    bench = Bench.of(opened, known, [site for sites in claims.values() for site in sites] if often else ())
    values = values_of(hypothesis, known)
    rng = np.random.default_rng([seed, 13])
    found = {}
    for claim, sites in claims.items():
        base, source = (rng.integers(len(known), size=pairs) for _ in range(2))
        _, patches = bench.run(source, read=sites, output=False)
        logits, _ = bench.run(base, patches)
        expected = np.array(
            [predict(hypothesis, one(values, b), {claim: values[claim][s]}) for b, s in zip(base, source)]
        )
        own = np.array([predict(hypothesis, one(values, b), {}) for b in base])
        right = int((logits.argmax(-1).cpu().numpy() == expected).sum())
        interval = stats.binomtest(right, pairs).proportion_ci(0.95)
        share = float(np.mean(expected != own))
        found[claim] = Accuracy(claim, right / pairs, (float(interval.low), float(interval.high)), pairs, share)
    return found


def predictions(
    hypothesis: Hypothesis,
    claim: str,
    base: Sequence[Mapping[str, Hashable]],
    source: Sequence[Mapping[str, Hashable]],
) -> npt.NDArray[np.int64]:
    """(pairs,) predicted classes when ``claim`` is taken from the sources."""
    pairs = zip(base, source, strict=True)
    return np.array([predict(hypothesis, values, {claim: other[claim]}) for values, other in pairs], dtype=np.int64)


def one(values: Mapping[str, Sequence[Hashable]], row: int) -> dict[str, Hashable]:
    """Claim -> its value on one row."""
    return {name: found[int(row)] for name, found in values.items()}


def each(values: Mapping[str, Sequence[Hashable]], rows: Rows) -> list[dict[str, Hashable]]:
    """The same for several rows."""
    return [one(values, row) for row in rows]


def require_causal_model(hypothesis: Hypothesis) -> None:
    """Raise a HypothesisError unless the graph predicts answers."""
    if not is_causal_model(hypothesis):
        missing = [c.name for c in hypothesis.claims if hypothesis.parents(c.name) and c.mechanism is None]
        raise HypothesisError(
            f"{hypothesis.name!r} predicts no answer: no mechanism on {', '.join(missing) or OUTPUT!r}",
            needed="mechanism= on the output and on every node with causes, a function of the causes' values by name",
            tries=[f"graph.add_node(causalmad.OUTPUT, mechanism=lambda {missing[0] if missing else 'cause'}: ...)"],
        )


def apply(mechanism: Any, node: str, causes: Mapping[str, Any]) -> Any:
    """What a mechanism makes of its causes' values, arrays as arrays.

    Raises:
        HypothesisError: when it fails.
    """
    given = {cause: value.array if isinstance(value, ArrayValue) else value for cause, value in causes.items()}
    try:
        return mechanism(**given)
    except Exception as error:
        raise HypothesisError(
            f"mechanism() of {node!r} failed: {type(error).__name__}: {error}",
            needed=f"a function of {', '.join(causes) or 'nothing'} by name",
        ) from error


def log_probability(logits: torch.Tensor, classes: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """(jobs,) log-probability of a class, in nats."""
    if len(classes) and not 0 <= int(classes.min()) <= int(classes.max()) < logits.shape[-1]:
        raise HypothesisError(
            f"the output's mechanism answers classes {int(classes.min())} to {int(classes.max())}",
            needed=f"the index of one of the model's {logits.shape[-1]} classes",
        )
    index = torch.as_tensor(classes, device=logits.device)[:, None]
    # In single precision the log-probability of a confident answer is mostly rounding.
    found: npt.NDArray[np.float64] = logits.double().log_softmax(-1).gather(-1, index).squeeze(-1).cpu().numpy()
    return found
