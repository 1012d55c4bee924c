"""Reports written to a file: of a detection, or of the lines that ``causalmad detect`` wrote."""

from __future__ import annotations

import errno
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from causalmad.errors import InputsError, SpecError, StoreError
from causalmad.report.charts import Chart, p_histogram, roc, score_histogram
from causalmad.report.claims import Graph
from causalmad.report.contents import Report
from causalmad.report.origin import fingerprint, origin
from causalmad.report.reasons import Reasons, keep
from causalmad.report.render import render
from causalmad.report.sources import SLOW, at_once, columns_of, from_rows, one_by_one, require_rows
from causalmad.report.tokens import Tokens
from causalmad.whole import write_whole

if TYPE_CHECKING:
    from causalmad.detection import Detection
    from causalmad.detector import FittedDetector
    from causalmad.hypotheses.graph import Hypothesis
    from causalmad.inputs import Inputs

Flags = npt.NDArray[np.bool_]


def write_report(
    path: str | Path,
    detection: Detection,
    *,
    inputs: Any = None,
    labels: npt.ArrayLike | None = None,
    normal: npt.ArrayLike | None = None,
    hypothesis: Hypothesis | None = None,
    tokenizer: Any = None,
    command: str = "",
    title: str = "",
    top_columns: int = 12,
    detector: FittedDetector | None = None,
) -> Path:
    """Write a detection and its reasons as one HTML file that works offline; see :func:`report_of` for the arguments.

    Returns:
        The path.

    Raises:
        CausalmadError: as :func:`report_of`; or it cannot be written there, or jinja2 is not installed (``pip install
            'causalmad[report]'``).
    """
    place = _place(path)
    return _write(
        place,
        report_of(
            detection,
            inputs=inputs,
            labels=labels,
            normal=normal,
            hypothesis=hypothesis,
            tokenizer=tokenizer,
            command=command,
            title=title,
            top_columns=top_columns,
            detector=detector,
        ),
    )


def report_of(
    detection: Detection,
    *,
    inputs: Any = None,
    labels: npt.ArrayLike | None = None,
    normal: npt.ArrayLike | None = None,
    hypothesis: Hypothesis | None = None,
    tokenizer: Any = None,
    command: str = "",
    title: str = "",
    top_columns: int = 12,
    detector: FittedDetector | None = None,
) -> Report:
    """The report of a detection.

    Args:
        detection: what was found.
        inputs: what it was found on, as Inputs, or with ``detector`` whatever it takes; tokens are then shown, coloured
            by what their positions contribute.
        labels: (n,) True = anomalous, where that is known.
        normal: (m,) p-values of fresh normal inputs, of which about a share alpha should be flagged.
        hypothesis: the claim that the signature tests; the parts that fail are marked.
        tokenizer: has ``decode``, by which token ids become text.
        command: what makes the result again.
        title: what it is about.
        top_columns: how many contributions of an input are listed one by one; the others stand as a sum.
        detector: what made the detection. With it reasons are computed for all inputs at once, where the reference has
            contributions of its own; without it one by one, for the 1,000 most anomalous inputs only.

    Raises:
        InputsError: when inputs, labels or p-values do not fit the detection, or it is of no inputs.
        SpecError: when the detection is of another detector, or ``top_columns`` is not positive.
    """
    _require_top(top_columns)
    if not len(detection):
        raise InputsError("a detection of no inputs", needed="at least one input to report")
    inputs = _read(inputs, detector)
    if inputs is not None and inputs.ids != detection.ids:
        raise InputsError("inputs with other ids than the detection's", needed="the inputs that it was made on")
    count, columns = len(detection), detection.signatures.columns
    chunks = None if detector is None else at_once(detector, detection)
    if chunks is not None and detector is not None:
        trusted = detector.trusted.values.astype(np.float64).mean(0)
    else:
        usual = {part.column.name: part.trusted for part in detection.reason(0).contributions}
        trusted = np.array([usual[column.name] for column in columns])
    blocks = () if inputs is None else tuple(inputs.blocks)
    reasons = keep(columns, trusted, one_by_one(detection) if chunks is None else chunks, count, top_columns, blocks)
    notes = []
    if len(reasons.rows) < count:
        notes.append(f"Reasons are given for the {SLOW:,} most anomalous inputs: those flagged first, then by score.")
    if detection.note and not detection.flags.any():
        notes.append(detection.note)
    known = _labels(labels, count)
    return Report(
        title,
        detection.level,
        detection.ids,
        tuple(detection.scores.tolist()),
        tuple(detection.p_values.tolist()),
        () if detection.adjusted is None else tuple(detection.adjusted.tolist()),
        tuple(detection.flags.tolist()),
        () if known is None else tuple(known.tolist()),
        _remarks(detection),
        reasons,
        Tokens.of(inputs, tokenizer),
        _charts(detection.scores, detection.flags, known, normal, detection.alpha),
        None if hypothesis is None else Graph.of(hypothesis, reasons.blocks),
        (*_hits(detection.flags, known), *notes),
        origin(detection, detector, inputs),
        command,
    )


def write_report_from_rows(
    path: str | Path,
    rows: Sequence[Mapping[str, Any]],
    *,
    inputs: Inputs | None = None,
    labels: npt.ArrayLike | None = None,
    normal: npt.ArrayLike | None = None,
    hypothesis: Hypothesis | None = None,
    tokenizer: Any = None,
    command: str = "",
    title: str = "",
    top_columns: int = 12,
) -> Path:
    """Write the report of the lines that ``causalmad detect`` wrote; see :func:`report_of_rows`.

    Returns:
        The path.

    Raises:
        CausalmadError: as :func:`report_of_rows`; or jinja2 is not installed (``pip install 'causalmad[report]'``).
    """
    place = _place(path)
    return _write(
        place,
        report_of_rows(
            rows,
            inputs=inputs,
            labels=labels,
            normal=normal,
            hypothesis=hypothesis,
            tokenizer=tokenizer,
            command=command,
            title=title,
            top_columns=top_columns,
        ),
    )


def report_of_rows(
    rows: Sequence[Mapping[str, Any]],
    *,
    inputs: Inputs | None = None,
    labels: npt.ArrayLike | None = None,
    normal: npt.ArrayLike | None = None,
    hypothesis: Hypothesis | None = None,
    tokenizer: Any = None,
    command: str = "",
    title: str = "",
    top_columns: int = 12,
) -> Report:
    """The report of a detection's lines, :meth:`Detection.rows`, without the detector.

    Args:
        rows: the lines as dicts.
        inputs: as in :func:`report_of`, like all further arguments.
        labels: (n,) True = anomalous.
        normal: (m,) p-values of fresh normal inputs.
        hypothesis: the claim that the signature tests.
        tokenizer: turns token ids into text.
        command: what makes the result again.
        title: what it is about.
        top_columns: how many contributions are listed one by one.

    Raises:
        InputsError: when a line lacks something, or inputs, labels or p-values do not fit.
        SpecError: when ``top_columns`` is not positive.
    """
    _require_top(top_columns)
    require_rows(rows)
    ids = tuple(str(row["id"]) for row in rows)
    inputs = _read(inputs, None)
    if inputs is not None and inputs.ids != ids:
        raise InputsError("inputs with other ids than the lines'", needed="the inputs that they were made of")
    columns, trusted = columns_of(rows)
    blocks = () if inputs is None else tuple(inputs.blocks)
    reasons: Reasons = keep(columns, trusted, from_rows(rows, columns), len(rows), top_columns, blocks)
    flags = np.array([bool(row["flag"]) for row in rows])
    scores = np.array([float(row["score"]) for row in rows])
    alpha, fdr = float(rows[0]["alpha"]), rows[0].get("fdr")
    adjusted = tuple(float(row["p_adjusted"]) for row in rows if "p_adjusted" in row)
    known = _labels(labels, len(rows))
    return Report(
        title,
        f"alpha = {alpha:g}" if fdr is None else f"false discovery rate {alpha:g} ({fdr})",
        ids,
        tuple(scores.tolist()),
        tuple(float(row["p"]) for row in rows),
        adjusted if len(adjusted) == len(rows) else (),
        tuple(flags.tolist()),
        () if known is None else tuple(known.tolist()),
        {},
        reasons,
        Tokens.of(inputs, tokenizer),
        _charts(scores, flags, known, normal, alpha),
        None if hypothesis is None else Graph.of(hypothesis, reasons.blocks),
        _hits(flags, known),
        (("inputs", f"{len(ids)}, ids {fingerprint(ids)}"), ("columns of the signature", str(len(columns)))),
        command,
    )


def _require_top(count: int) -> None:
    """At least one column is listed.

    Raises:
        SpecError: when none is.
    """
    if count < 1:
        raise SpecError(f"top_columns={count}", needed="at least 1")


def _write(path: Path, report: Report) -> Path:
    try:
        return write_whole(path, [render(report)])
    except OSError as error:
        raise _unwritten(path, error) from error


def _place(path: str | Path) -> Path:
    """A path whose folder is there, so that nothing is computed for a place that cannot be.

    Raises:
        StoreError: when it is a folder, or its folder cannot be made.
    """
    place = Path(path)
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        if place.is_dir():
            raise IsADirectoryError(errno.EISDIR, "it is a folder")
    except OSError as error:
        raise _unwritten(place, error) from error
    return place


def _unwritten(path: Path, error: OSError) -> StoreError:
    return StoreError(f"{path} cannot be written: {error.strerror}", needed="a path such as report.html")


def _read(inputs: Any, detector: FittedDetector | None) -> Inputs | None:
    """The inputs of a report, read as the detector reads them."""
    from causalmad.inputs import Inputs

    if inputs is None or isinstance(inputs, Inputs):
        return inputs
    if detector is None:
        raise InputsError(
            f"inputs={type(inputs).__name__}, which only a model can read",
            needed="causalmad.Inputs",
            tries=["inputs=open_model(model, tokenizer=tokenizer).inputs(texts)", "detector=fitted, which reads them"],
        )
    return detector.model.inputs(inputs)


def _labels(labels: npt.ArrayLike | None, count: int) -> Flags | None:
    if labels is None:
        return None
    known = np.asarray(labels)
    if known.shape != (count,) or not np.isin(known, (0, 1)).all():
        raise InputsError(f"labels of shape {known.shape}", needed=f"({count},) booleans, True = anomalous")
    return known.astype(bool)


def _charts(
    scores: npt.NDArray[np.float64], flags: Flags, labels: Flags | None, normal: npt.ArrayLike | None, alpha: float
) -> tuple[Chart, ...]:
    found = [score_histogram(scores, flags, labels)]
    if labels is not None and labels.any() and not labels.all():
        found.append(roc(labels, scores))
    if normal is not None:
        p_values = np.asarray(normal, dtype=np.float64)
        if p_values.ndim != 1 or not len(p_values) or not ((p_values >= 0) & (p_values <= 1)).all():
            raise InputsError(f"normal p-values of shape {p_values.shape}", needed="(n,) numbers from 0 to 1")
        found.append(p_histogram(p_values, alpha))
    return tuple(found)


def _hits(flags: Flags, labels: Flags | None) -> tuple[str, ...]:
    """What share of either kind is flagged, where kinds are known."""
    if labels is None:
        return ()
    parts = []
    for name, kind in (("anomalous", labels), ("normal", ~labels)):
        if count := int(kind.sum()):
            hits = int((flags & kind).sum())
            parts.append(f"{hits:,} of {count:,} {name} inputs ({hits / count:.1%})")
    return (f"Flagged are {' and '.join(parts)}.",)


def _remarks(detection: Detection) -> dict[int, str]:
    said = {
        "also trusted": "The detector was fitted on this input: its p-value means nothing.",
        "also untrusted": "This input is of the untrusted pool, which the reference knows: its p-value is not exact.",
    }
    rows = {key: i for i, key in enumerate(detection.ids)}
    return {rows[key]: text for name, text in said.items() for key in detection.provenance.get(name, ())}
