"""Monitor: a detector on a stream, with a flag for every input and an alarm when inputs stop looking trusted."""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from causalmad.calibration.base import as_alpha
from causalmad.calibration.martingale import Betting
from causalmad.errors import CalibrationError, CausalmadError, InputsError, SpecError, StoreError
from causalmad.models.computed import first_change, record
from causalmad.whole import read_whole, write_whole

if TYPE_CHECKING:
    from causalmad.detector import FittedDetector
    from causalmad.inputs import Inputs

SCHEMA = 1


@dataclass(frozen=True)
class Event:
    """What the monitor says of one input.

    Attributes:
        id: the input.
        score: anomaly score, higher = more anomalous.
        p_value: its p-value, the same that :meth:`FittedDetector.detect` gives.
        flag: whether the p-value is at most alpha.
        capital: evidence so far that inputs are no longer like the trusted ones; it starts at 1.
        alarm: whether the capital has reached the alarm's threshold, now or before.
    """

    id: str
    score: float
    p_value: float
    flag: bool
    capital: float
    alarm: bool


class Monitor:
    """A detector on a stream of inputs, one at a time or in small batches, in constant memory.

    Each input gets the score, p-value and flag that ``detect`` gives. Beside them a conformal test martingale gathers
    evidence over inputs, and raises an alarm where they stop looking trusted: many that are a little odd, none of which
    need be flagged. Plain conformal p-values share one calibration set, so that over a long stream a martingale on them
    raises false alarms; this one takes calibration-conditional p-values, valid for all times at once except with
    probability ``alarm / 2`` over calibration sets, and bets that only win where p-values are too small. So normal
    inputs ever raise an alarm with probability at most ``alarm``, half of it from the calibration set and half from
    the capital's threshold ``2 / alarm``.

    The monitor never learns: neither what it flagged nor anything else that it saw changes a score or a p-value.

    Args:
        fitted: a detector with a :class:`Conformal`, :class:`CalibrationConditional` or :class:`Mondrian` calibrator.
        alpha: flags are p-values of at most this.
        alarm: probability that normal inputs, however many, ever raise an alarm.

    Raises:
        CalibrationError: where ``alpha`` is out of reach, ``alarm`` is no probability, or the calibrator has no
            calibration-conditional p-values.
        SpecError: when the detector is not fitted.

    Example:
        >>> import torch, causalmad as cm
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> data = torch.randn(80, 4, generator=torch.Generator().manual_seed(0))
        >>> monitor = cm.Monitor(cm.Detector(cm.signatures.Activations()).fit(model, data[:60]), alpha=0.05)
        >>> [event.alarm for event in monitor(data[60:62])]
        [False, False]

    References:
        Vovk, Gammerman, Shafer 2005, chapter 7. Bates et al. 2023, arXiv 2104.08279.
    """

    def __init__(self, fitted: FittedDetector, alpha: float = 0.01, alarm: float = 0.01) -> None:
        if not hasattr(fitted, "measure"):
            raise SpecError(
                f"a {type(fitted).__name__} cannot watch a stream",
                needed="a fitted detector",
                tries=["Monitor(detector.fit(model, trusted))", "Monitor(FittedDetector.load(folder, model))"],
            )
        fitted.calibrator.require(alpha)
        calibrator: Any = fitted.calibrator
        if not hasattr(getattr(calibrator, "plain", calibrator), "conditional"):
            raise CalibrationError(
                f"{type(fitted.spec.calibrator).__name__} has no p-values that are valid given the calibration inputs",
                needed="p-values that stay valid over a long stream",
                tries=["calibrator=Conformal()", "calibrator=CalibrationConditional()", "calibrator=Mondrian()"],
            )
        self.fitted = fitted
        self.alpha = as_alpha(alpha)
        self.alarm = _as_alarm(alarm)
        self.betting = Betting()
        self._valid = calibrator.conditional(self.alarm / 2)

    @property
    def threshold(self) -> float:
        """The capital at which the alarm is raised."""
        return 2 / self.alarm

    @property
    def capital(self) -> float:
        """Evidence so far that inputs are no longer like the trusted ones."""
        return _exp(self.betting.log_capital)

    @property
    def alarmed(self) -> bool:
        """Whether the alarm was ever raised; a new monitor starts anew."""
        return self.betting.highest >= math.log(self.threshold)

    @property
    def steps(self) -> int:
        """How many inputs were seen."""
        return self.betting.steps

    def __repr__(self) -> str:
        """What was seen, in a line."""
        state = "alarm" if self.alarmed else "no alarm"
        return f"Monitor({self.steps} inputs, {state}, capital {self.capital:.3g} of {self.threshold:g})"

    def __call__(self, inputs: Any) -> tuple[Event, ...]:
        """An event for every input, in their order; nothing is counted where one cannot be scored.

        Args:
            inputs: whatever :meth:`Inputs.of` takes.
        """
        known = self.fitted.model.inputs(inputs)
        scores, p_values = self.fitted.measure(self.fitted.signatures(known), known)
        betting, events = self.betting, []
        for row, p_value in enumerate(self._conditional(scores, known)):
            betting = betting.bet(float(p_value))
            alarm = betting.highest >= math.log(self.threshold)
            p = float(p_values[row])
            capital = _exp(betting.log_capital)
            events.append(Event(known.ids[row], float(scores[row]), p, p <= self.alpha, capital, alarm))
        self.betting = betting
        return tuple(events)

    def state(self) -> dict[str, Any]:
        """Everything that the monitor remembers, as JSON data."""
        return {
            "schema": SCHEMA,
            "detector": fingerprint(self.fitted),
            "buffers": record(self.fitted.model.module),
            "alpha": self.alpha,
            "alarm": self.alarm,
            "steps": self.betting.steps,
            "log_stakes": [None if stake == -math.inf else stake for stake in self.betting.log_stakes],
            "highest": self.betting.highest,
        }

    def save(self, path: str | Path) -> None:
        """Write the state to a JSON file, at once or not at all.

        Raises:
            StoreError: when the file cannot be written.
        """
        target, text = Path(path), json.dumps(self.state(), sort_keys=True)
        kept = json.dumps({**json.loads(text), "checksum": _hash(text)}, indent=1)
        try:
            write_whole(target, [kept])
        except OSError as error:
            raise StoreError(f"{target} cannot be written: {error.strerror}") from error

    @classmethod
    def load(cls, path: str | Path, fitted: FittedDetector) -> Monitor:
        """The monitor that :meth:`save` wrote, which goes on where it was.

        Args:
            path: the file.
            fitted: the same detector.

        Raises:
            StoreError: when the file is damaged, or of another detector.
        """
        try:
            content = json.loads(read_whole(Path(path)))
            checksum = content.pop("checksum")
            sound = checksum == _hash(json.dumps(content, sort_keys=True))
        except OSError as error:
            raise StoreError(f"{path} cannot be read: {error.strerror}", needed="a file of Monitor.save") from error
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise StoreError(f"{path} holds no monitor: {error}", needed="a file of Monitor.save") from error
        if not sound or content.get("schema") != SCHEMA:
            raise StoreError(f"{path} is not what was saved: its checksum or schema differs")
        try:
            # Monitors that were saved before there was a record of buffers are loaded as they were.
            changed = first_change(content.get("buffers", {}), fitted.model.module)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise StoreError(f"{path} holds no monitor: {error}") from error
        if content.get("detector") != fingerprint(fitted) or changed:
            raise StoreError(
                f"{path} was written for another detector{f': {changed}' if changed else ''}",
                needed="the very detector, on the same model",
                causes=["a detector that was fitted again", "another seed or other trusted inputs"],
                tries=["FittedDetector.load(...) of the one in use then", "a new Monitor"],
            )
        try:
            monitor = cls(fitted, content["alpha"], content["alarm"])
            stakes = tuple(-math.inf if stake is None else float(stake) for stake in content["log_stakes"])
            monitor.betting = Betting(int(content["steps"]), stakes, float(content["highest"]))
        except (CausalmadError, KeyError, TypeError, ValueError, OverflowError) as error:
            raise StoreError(f"{path} holds no monitor: {error}") from error
        return monitor

    def _conditional(self, scores: Any, inputs: Inputs) -> Any:
        return self._valid.p_values(scores, **self.fitted.compared_by(inputs))


def fingerprint(fitted: FittedDetector) -> str:
    """A hash of what a detector's p-values depend on: model, columns, trusted signatures and calibration."""
    digest = hashlib.sha256(fitted.model.fingerprint().encode())
    digest.update("\n".join(column.name for column in fitted.signature.columns).encode())
    arrays: dict[str, Any] = {"trusted": fitted.trusted.values, **fitted.calibrator.state()}
    for name, array in sorted(arrays.items()):
        digest.update(f"{name}{array.shape}{array.dtype}".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def _as_alarm(alarm: float) -> float:
    try:
        return as_alpha(alarm)
    except CalibrationError:
        raise CalibrationError(
            f"alarm={alarm!r}",
            needed="the probability of a false alarm, strictly between 0 and 1",
            tries=["alarm=0.01", "alarm=0.001"],
        ) from None


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _exp(log: float) -> float:
    """Never infinite, so that it can be written down."""
    return math.exp(min(log, 700.0))


def first_alarm(events: tuple[Event, ...]) -> int | None:
    """Number of inputs (from 1) at which the alarm was first raised, if it was.

    Raises:
        InputsError: when there are no events.
    """
    if not events:
        raise InputsError("no events", needed="what a monitor returned")
    return next((step for step, event in enumerate(events, 1) if event.alarm), None)
