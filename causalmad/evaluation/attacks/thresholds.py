"""Threshold games: attacks that leave the model alone and play with the flags, alarms and trusted inputs around it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from causalmad.auditing import audit
from causalmad.calibration.multiple import reject
from causalmad.detector import Detector, FittedDetector
from causalmad.errors import InputsError
from causalmad.inputs import Inputs
from causalmad.monitor import Monitor

Floats = npt.NDArray[np.float64]
Flags = npt.NDArray[np.bool_]

_MARK = "second: "


@dataclass(frozen=True)
class Drifted:
    """How a slow drift went.

    Attributes:
        sent: anomalies among the inputs of the stream, in all.
        flagged: share of these that were flagged; an attacker who asks first sends none that would be.
        passed: anomalies that had gone by unflagged when the alarm was raised, or by the end without one.
        alarm: inputs up to and with the alarm; None without one.
        length: inputs of the stream.
    """

    sent: int
    flagged: float
    passed: int
    alarm: int | None
    length: int


def drift(
    fitted: FittedDetector,
    normal: Inputs,
    anomalous: Inputs,
    *,
    rise: float,
    alpha: float = 0.01,
    alarm: float = 0.01,
    asks: bool = True,
    seed: int = 0,
) -> Drifted:
    """A stream into which anomalies come slowly, each of them under the threshold, before a monitor.

    The share of anomalies rises from 0 by ``rise`` at every input, up to all. The stream ends where either kind of
    input is used up.

    Args:
        fitted: the detector of the monitor.
        normal: normal inputs, each sent once at most.
        anomalous: anomalous ones.
        rise: of the share, at every input.
        alpha: of the monitor's flags.
        alarm: of the monitor's alarm.
        asks: the attacker has a copy of the detector and sends only anomalies whose p-value is above ``alpha``.
        seed: of the order.

    Raises:
        InputsError: when none of the anomalies passes, so that there is no drift.
    """
    rng = np.random.default_rng(seed)
    p_values = fitted.detect(anomalous, max(alpha, fitted.calibrator.smallest)).p_values
    usable = np.flatnonzero(p_values > alpha) if asks else np.arange(len(anomalous))
    if not len(usable):
        raise InputsError(
            f"none of {len(anomalous)} anomalies has a p-value above {alpha:g}",
            needed="one that passes",
            tries=["asks=False", "anomalies that were altered first: Perturbation, TokenSearch"],
        )
    odd, usual = list(rng.permutation(usable)), list(rng.permutation(len(normal)))
    rows: list[tuple[bool, int]] = []
    while odd and usual:
        wanted = bool(rng.random() < rise * (len(rows) + 1))
        rows.append((wanted, int((odd if wanted else usual).pop())))
    kinds = np.array([wanted for wanted, _ in rows])
    both = _together(normal, anomalous)
    events = Monitor(fitted, alpha, alarm)(both[[row + wanted * len(normal) for wanted, row in rows]])
    flags = np.array([event.flag for event in events])
    raised = next((place + 1 for place, event in enumerate(events) if event.alarm), None)
    until = slice(None, raised)
    return Drifted(
        int(kinds.sum()),
        float(flags[kinds].mean()) if kinds.any() else 0.0,
        int((kinds & ~flags)[until].sum()),
        raised,
        len(events),
    )


@dataclass(frozen=True)
class Flooded:
    """What is left of the flags in a flood.

    Attributes:
        attack: share of the attack's inputs that are flagged.
        decoys: share of the decoys that are flagged.
        normal: number of the normal inputs that are flagged.
    """

    attack: float
    decoys: float
    normal: int


def flood(
    attack: npt.ArrayLike, normal: npt.ArrayLike, decoys: npt.ArrayLike = (), *, alpha: float = 0.05, fdr: str | None
) -> Flooded:
    """An attack among many other inputs, tested together.

    Many *normal* inputs in one batch raise the bar for each: with n calibration inputs Benjamini and Hochberg flag k of
    m only where k alpha / m >= 1 / (n + 1). Many loud *decoys* lower it, and buy false flags on normal inputs.

    Args:
        attack: (k,) p-values of the inputs that are to pass.
        normal: (m,) p-values of normal inputs beside them.
        decoys: (d,) p-values of loud anomalies beside them.
        alpha: level of each input by itself, or with ``fdr`` of the false discovery rate.
        fdr: ``bh``, ``by``, ``storey`` or ``e-bh``; None tests every input by itself.
    """
    parts = [np.asarray(part, dtype=np.float64) for part in (attack, decoys, normal)]
    p_values = np.concatenate(parts)
    flags = p_values <= alpha if fdr is None else reject(p_values, alpha, fdr)
    own, loud, usual = np.split(flags, np.cumsum([len(part) for part in parts])[:-1])
    return Flooded(_mean(own), _mean(loud), int(usual.sum()))


@dataclass(frozen=True, eq=False)
class Poisoned:
    """What poison among trusted inputs does, and what an audit says of it.

    Attributes:
        scores: (n,) anomaly scores of the test inputs, by the detector fitted on the poisoned set.
        p_values: (n,) their p-values, against calibration inputs that are poisoned alike.
        cleaned: (n,) scores after the inputs that the audit names were left out and the detector was fitted anew.
        named: how many trusted inputs the audit named.
        found: how many of these are poison.
        poison: how many there are.
    """

    scores: Floats
    p_values: Floats
    cleaned: Floats
    named: int
    found: int
    poison: int


def poison(
    detector: Detector, model: Any, trusted: Inputs, poison: Inputs, test: Inputs, *, share: float, seed: int = 0
) -> Poisoned:
    """A detector on a trusted set of which a share was replaced by poison.

    Args:
        detector: fitted as it is, audited, and fitted again without what the audit names.
        model: whatever :func:`causalmad.open_model` takes.
        trusted: clean inputs; some are replaced, so that their number stays.
        poison: what is put in their place, enough of it.
        test: inputs to score.
        share: of the trusted inputs that is poison, from 0 to 1.
        seed: of the draw and the fits.

    Raises:
        InputsError: when there is too little poison.
    """
    count = round(share * len(trusted))
    if count > len(poison):
        raise InputsError(f"{len(poison)} inputs of poison for a share of {share:g}", needed=f"{count}")
    rng = np.random.default_rng([seed, 3])
    kept = np.sort(rng.permutation(len(trusted))[: len(trusted) - count])
    put = np.sort(rng.permutation(len(poison))[:count])
    mixed = _together(trusted[kept], poison[put])
    fitted = detector.fit(model, mixed, seed=seed)
    found = fitted.detect(test, max(0.05, fitted.calibrator.smallest))
    named = audit(detector, model, mixed, seed=seed).unlike
    bad = [key for key in named if key.startswith(_MARK)]
    rest = [row for row, key in enumerate(mixed.ids) if key not in set(named)]
    cleaned = detector.fit(model, mixed[rest], seed=seed).score(test) if named else found.scores
    return Poisoned(found.scores, found.p_values, cleaned, len(named), len(bad), count)


def _together(first: Inputs, second: Inputs) -> Inputs:
    """Both as one set of inputs, the second's ids marked; columns are left out."""
    fields: dict[int | str, Any] = {}
    for name, rows in first.fields.items():
        every = (*rows, *second.fields[name])
        fields[name] = torch.stack(every) if isinstance(rows, Tensor) else every
    return replace(first, ids=(*first.ids, *(f"{_MARK}{key}" for key in second.ids)), fields=fields, columns={})


def _mean(flags: Flags) -> float:
    return float(flags.mean()) if len(flags) else 0.0
