"""Laws of calibrators: anomaly scores in, p-values out."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import combinations_with_replacement
from typing import Any

import numpy as np

from causalmad.calibration.base import Calibrator
from causalmad.errors import CalibrationError, CausalmadError
from causalmad.testing.law import LawBroken


def law_p_values_are_super_uniform(spec: Calibrator) -> None:
    """P(p <= alpha) <= alpha for a normal input, exhaustively over small lists of tied scores."""
    levels = np.linspace(0.01, 0.99, 99)
    for size in range(2, 6):
        for scores in combinations_with_replacement((0.0, 1.0, 2.0), size):
            # Every one of exchangeable scores is as likely to be the new one.
            others = [np.delete(np.array(scores), i) for i in range(size)]
            p = np.array([spec.fit(rest).p_values(np.array([scores[i]]))[0] for i, rest in enumerate(others)])
            for alpha in levels:
                share = float((p <= alpha).mean())
                if share > alpha + 1e-12:
                    raise LawBroken(
                        "p-values are super-uniform",
                        f"P(p <= {alpha:.2f}) <= {alpha:.2f}",
                        f"{share:.3f}, scores {scores}",
                    )


def law_p_values_fall_with_scores(spec: Calibrator) -> None:
    """Higher scores never get higher p-values, which lie in (0, 1]; the order of calibration scores plays no part."""
    draw = np.random.default_rng(0)
    scores = draw.normal(size=80).round(1)
    new = np.concatenate([np.sort(draw.normal(size=200) * 3), [np.inf]])
    p = spec.fit(scores).p_values(new)
    if not ((p > 0) & (p <= 1)).all():
        raise LawBroken("p-values lie in (0, 1]", "no others", f"{p.min()} to {p.max()}")
    if (np.diff(p) > 0).any():
        raise LawBroken("p-values fall as scores rise", "a falling sequence", "a rise")
    if not np.array_equal(p, spec.fit(scores[::-1]).p_values(new)):
        raise LawBroken("the order of calibration scores plays no part", "equal p-values", "others")


def law_alpha_out_of_reach_is_refused(spec: Calibrator) -> None:
    """``require`` refuses an alpha below the smallest p-value, which an extreme score does reach, and no other."""
    law = "an alpha that no score can reach is refused"
    fitted = spec.fit(np.arange(30.0))
    smallest = float(fitted.p_values(np.array([1e9]))[0])
    if fitted.smallest != smallest:
        raise LawBroken("`smallest` is the smallest p-value", f"{smallest}", f"{fitted.smallest}")
    fitted.require(smallest)
    for alpha in (smallest * 0.99, 0.0, 1.0, -1.0, float("nan")):
        try:
            fitted.require(alpha)
        except CalibrationError:
            continue
        raise LawBroken(law, f"a CalibrationError at alpha = {alpha}", "none")


def law_state_restores(spec: Calibrator) -> None:
    """What is restored from a state gives the same bits."""
    fitted = spec.fit(np.random.default_rng(1).normal(size=40))
    new = np.linspace(-4, 4, 50)
    again = spec.restore({key: np.array(value) for key, value in fitted.state().items()})
    if again.p_values(new).tobytes() != fitted.p_values(new).tobytes():
        raise LawBroken("restore(state()) is the fit", "the same p-values", "others")


def law_bad_scores_are_named(spec: Calibrator) -> None:
    """NaN, no scores at all, tables and text give a named error."""
    fitted = spec.fit(np.arange(5.0))
    bad: dict[str, Any] = {"NaN": [0.0, np.nan], "a table": [[0.0, 1.0]], "text": ["high"], "a number": 3.0}
    runs: dict[str, Callable[[], object]] = {"fit on nothing": lambda: spec.fit(np.empty(0))}
    for case, scores in bad.items():
        runs[f"fit on {case}"] = partial(spec.fit, scores)
        runs[f"p-values of {case}"] = partial(fitted.p_values, scores)
    for case, run in runs.items():
        try:
            run()
        except CausalmadError:
            continue
        except Exception as error:
            raise LawBroken("bad scores give a named error", case, repr(error)) from error
        raise LawBroken("bad scores give a named error", case, "no error")


CALIBRATOR_LAWS: tuple[Callable[[Calibrator], None], ...] = (
    law_p_values_are_super_uniform,
    law_p_values_fall_with_scores,
    law_alpha_out_of_reach_is_refused,
    law_state_restores,
    law_bad_scores_are_named,
)
