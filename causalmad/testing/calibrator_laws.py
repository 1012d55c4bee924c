"""Laws of calibrators: anomaly scores in, p-values out."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import partial
from itertools import combinations_with_replacement
from typing import Any

import numpy as np

from causalmad.errors import CalibrationError, CausalmadError
from causalmad.testing.law import LawBroken


def given(function: Callable[..., Any], spec: Any, count: int) -> dict[str, Any]:
    """Plausible keywords for a calibrator's ``fit`` or its fit's ``p_values``, those alone that it has.

    All inputs are alike in every covariate, so that they are of one stratum and of one weight.

    Args:
        function: ``spec.fit``, or ``p_values`` of a fit.
        spec: the calibrator.
        count: number of scores.
    """
    names = getattr(spec, "asks", ())
    known: dict[str, Any] = {
        "covariates": {name: np.full(count, 3) for name in names},
        "untrusted": {name: np.full(5, 3) for name in names},
    }
    taken = inspect.signature(function).parameters
    return {key: value for key, value in known.items() if key in taken}


def fit(spec: Any, scores: Any) -> Any:
    """The calibrator fitted on scores, with whatever else its ``fit`` takes."""
    return spec.fit(scores, **given(spec.fit, spec, _count(scores)))


def p_values(spec: Any, fitted: Any, scores: Any) -> Any:
    """P-values of scores, with whatever else they take."""
    return fitted.p_values(scores, **given(fitted.p_values, spec, _count(scores)))


def _count(scores: Any) -> int:
    return len(scores) if hasattr(scores, "__len__") else 1


def law_p_values_are_super_uniform(spec: Any) -> None:
    """P(p <= alpha) <= alpha for a normal input, exhaustively over small lists of tied scores."""
    levels = np.linspace(0.01, 0.99, 99)
    for size in range(2, 6):
        for scores in combinations_with_replacement((0.0, 1.0, 2.0), size):
            # Every one of exchangeable scores is as likely to be the new one.
            others = [np.delete(np.array(scores), i) for i in range(size)]
            p = np.array([p_values(spec, fit(spec, rest), np.array([scores[i]]))[0] for i, rest in enumerate(others)])
            for alpha in levels:
                share = float((p <= alpha).mean())
                if share > alpha + 1e-12:
                    raise LawBroken(
                        "p-values are super-uniform",
                        f"P(p <= {alpha:.2f}) <= {alpha:.2f}",
                        f"{share:.3f}, scores {scores}",
                    )


def law_p_values_fall_with_scores(spec: Any) -> None:
    """Higher scores never get higher p-values, which lie in (0, 1]; the order of calibration scores plays no part."""
    draw = np.random.default_rng(0)
    scores = draw.normal(size=80).round(1)
    new = np.concatenate([np.sort(draw.normal(size=200) * 3), [np.inf]])
    p = p_values(spec, fit(spec, scores), new)
    if not ((p > 0) & (p <= 1)).all():
        raise LawBroken("p-values lie in (0, 1]", "no others", f"{p.min()} to {p.max()}")
    if (np.diff(p) > 0).any():
        raise LawBroken("p-values fall as scores rise", "a falling sequence", "a rise")
    if not np.array_equal(p, p_values(spec, fit(spec, scores[::-1]), new)):
        raise LawBroken("the order of calibration scores plays no part", "equal p-values", "others")


def law_alpha_out_of_reach_is_refused(spec: Any) -> None:
    """``require`` refuses an alpha below the smallest p-value, which an extreme score does reach, and no other."""
    law = "an alpha that no score can reach is refused"
    fitted = fit(spec, np.arange(30.0))
    smallest = float(p_values(spec, fitted, np.array([1e9]))[0])
    if fitted.smallest != smallest:
        raise LawBroken("`smallest` is the smallest p-value", f"{smallest}", f"{fitted.smallest}")
    fitted.require(smallest)
    for alpha in (smallest * 0.99, 0.0, 1.0, -1.0, float("nan")):
        try:
            fitted.require(alpha)
        except CalibrationError:
            continue
        raise LawBroken(law, f"a CalibrationError at alpha = {alpha}", "none")


def law_state_restores(spec: Any) -> None:
    """What is restored from a state gives the same bits."""
    fitted = fit(spec, np.random.default_rng(1).normal(size=40))
    new = np.linspace(-4, 4, 50)
    again = spec.restore({key: np.array(value) for key, value in fitted.state().items()})
    if p_values(spec, again, new).tobytes() != p_values(spec, fitted, new).tobytes():
        raise LawBroken("restore(state()) is the fit", "the same p-values", "others")


def law_bad_scores_are_named(spec: Any) -> None:
    """NaN, no scores at all, tables and text give a named error."""
    fitted = fit(spec, np.arange(5.0))
    bad: dict[str, Any] = {"NaN": [0.0, np.nan], "a table": [[0.0, 1.0]], "text": ["high"], "a number": 3.0}
    runs: dict[str, Callable[[], object]] = {"fit on nothing": lambda: fit(spec, np.empty(0))}
    for case, scores in bad.items():
        runs[f"fit on {case}"] = partial(fit, spec, scores)
        runs[f"p-values of {case}"] = partial(p_values, spec, fitted, scores)
    for case, run in runs.items():
        try:
            run()
        except CausalmadError:
            continue
        except Exception as error:
            raise LawBroken("bad scores give a named error", case, repr(error)) from error
        raise LawBroken("bad scores give a named error", case, "no error")


CALIBRATOR_LAWS: tuple[Callable[[Any], None], ...] = (
    law_p_values_are_super_uniform,
    law_p_values_fall_with_scores,
    law_alpha_out_of_reach_is_refused,
    law_state_restores,
    law_bad_scores_are_named,
)
