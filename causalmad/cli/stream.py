"""Detection over a stream: chunk by chunk, in memory that does not grow with its length."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from causalmad.cli.console import Step, remark
from causalmad.errors import SpecError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from causalmad.detection import Detection
    from causalmad.detector import FittedDetector
    from causalmad.extraction import Cache
    from causalmad.inputs import Inputs

IN_A_REPORT = 10_000
_SHOWN = 3


@dataclass
class Tally:
    """What is known of a stream so far.

    Attributes:
        count: inputs that were scored.
        flagged: how many of them are flagged.
        trusted: how many of them the detector was fitted on.
        first_trusted: ids of the first few of these.
        pool: how many are of the untrusted pool.
        note: what the size of the calibration set rules out.
        level: what the flags are bounded by, in words.
        adjusted: p-values adjusted for all inputs at once, where that was asked for.
        kept: inputs and detections of all chunks, where a report wants them.
    """

    count: int = 0
    flagged: int = 0
    trusted: int = 0
    first_trusted: list[str] = field(default_factory=list)
    pool: int = 0
    note: str = ""
    level: str = ""
    adjusted: npt.NDArray[np.float64] | None = None
    kept: list[tuple[Inputs, Detection]] | None = None

    def add(self, given: Inputs, detection: Detection) -> None:
        """Count a chunk.

        Raises:
            SpecError: when it is kept for a report, and that is full.
        """
        self.count += len(detection)
        if self.kept is not None:
            require_reportable(self.count)
            self.kept.append((given, detection))
        repeated = detection.provenance["also trusted"]
        self.trusted += len(repeated)
        self.first_trusted += repeated[: _SHOWN - len(self.first_trusted)]
        self.pool += len(detection.provenance["also untrusted"])
        self.level = detection.level

    def remarks(self, quiet: bool) -> None:
        """Say what a reader of the file has to know."""
        if self.trusted:
            names = ", ".join(map(repr, self.first_trusted))
            more = " ..." if self.trusted > len(self.first_trusted) else ""
            which = f"{self.trusted} of {self.count} inputs are among the trusted ones"
            remark(f"{which}, so their p-values mean nothing: {names}{more}", quiet)
        if self.pool:
            known = f"{self.pool} of {self.count} inputs are of the untrusted pool"
            remark(f"{known} that the reference was fitted on.", quiet)
        if self.note and not self.flagged:
            remark(self.note, quiet)


def require_reportable(count: int) -> None:
    """Nothing, where a report can hold so many inputs.

    Raises:
        SpecError: where it cannot.
    """
    if count > IN_A_REPORT:
        raise SpecError(
            f"--report over more than {IN_A_REPORT:,} inputs",
            needed="inputs that fit into one page and into memory",
            tries=["leave --report out", f"head -n {IN_A_REPORT} INPUTS.jsonl | causalmad detect DIR - --report ..."],
        )


def slices(whole: Inputs, size: int) -> Iterator[Inputs]:
    """Inputs that are in memory, a chunk at a time."""
    return (whole[start : start + size] for start in range(0, len(whole), size))


@dataclass(frozen=True)
class Work:
    """How a stream is scored.

    Attributes:
        fitted: the detector.
        alpha: what flags are bounded by.
        reasons: whose reasons are written: ``all``, ``flagged`` or ``none``.
        total: how many inputs there are, 0 where that is not known.
        step: called with what is being done.
        quiet: no remarks.
        cache: of signatures, opened, so that the model is hashed once.
    """

    fitted: FittedDetector
    alpha: float
    reasons: str
    total: int
    step: Step
    quiet: bool
    cache: Cache | None = None

    def detect(self, given: Inputs) -> Detection:
        """A chunk, scored."""
        return self.fitted.detect(given, self.alpha, cache=self.cache)

    def line(self, detection: Detection, row: int, flagged: bool) -> dict[str, Any]:
        """One input as JSON data, with its reasons where they are wanted."""
        if self.reasons == "all" or (self.reasons == "flagged" and flagged):
            return detection.row(row)
        known = {"id": detection.ids[row], "flag": bool(detection.flags[row]), "alpha": self.alpha}
        return {**known, "score": float(detection.scores[row]), "p": float(detection.p_values[row])}


def lines_of(work: Work, chunks: Iterable[Inputs], tally: Tally) -> Iterator[str]:
    """One line of JSON for each input, as soon as its chunk is scored."""
    for given in chunks:
        detection = work.detect(given)
        before = tally.count
        tally.add(given, detection)
        tally.flagged += int(detection.flags.sum())
        for row, flagged in enumerate(detection.flags):
            yield json.dumps(work.line(detection, row, flagged))
            work.step("scoring", before + row + 1, work.total)


def lines_together(
    work: Work, chunks: Iterable[Inputs], tally: Tally, method: str, folder: str | None
) -> Iterator[str]:
    """The same where a flag depends on all p-values: lines wait in a temporary file until the last input is scored.

    In memory stay two numbers for each input.

    Args:
        work: how they are scored.
        chunks: the inputs.
        tally: what is counted.
        method: see :func:`causalmad.calibration.multiple.reject`.
        folder: where the temporary file goes; None for the system's.
    """
    import numpy as np

    from causalmad.calibration.multiple import adjusted, fewest
    from causalmad.detector import _reach

    alpha, fitted = work.alpha, work.fitted
    # No method flags an input whose p-value is above both: storey alone adjusts downwards, and not beyond a half.
    highest = max(alpha, 0.5 if method == "storey" else 0.0)
    p_values: list[npt.NDArray[np.float64]] = []
    floors: list[npt.NDArray[np.float64]] = []
    with tempfile.TemporaryFile("w+", encoding="utf-8", dir=folder) as waiting:
        for number, given in enumerate(chunks):
            if number == 1:
                remark("--fdr compares all p-values: no line is written before the last input is scored.", work.quiet)
            detection = work.detect(given)
            before = tally.count
            tally.add(given, detection)
            p_values.append(detection.p_values)
            floors.append(fitted._floors(given))
            for row, p_value in enumerate(detection.p_values):
                waiting.write(json.dumps(work.line(detection, row, p_value <= highest)) + "\n")
                work.step("scoring", before + row + 1, work.total)
        corrected = adjusted(np.concatenate(p_values), method)
        tally.adjusted = corrected
        tally.flagged = int((corrected <= alpha).sum())
        tally.note = _reach(fewest(np.concatenate(floors), alpha, method), tally.count, alpha)
        tally.level = f"false discovery rate {alpha:g} ({method})"
        waiting.seek(0)
        for number, (line, p_adjusted) in enumerate(zip(waiting, corrected.tolist())):
            rest: dict[str, Any] = json.loads(line)
            flagged = p_adjusted <= alpha
            head = {"id": rest.pop("id"), "flag": flagged, "alpha": alpha, "fdr": method, "p_adjusted": p_adjusted}
            del rest["flag"], rest["alpha"]
            if work.reasons == "flagged" and not flagged:
                rest = {name: rest[name] for name in ("score", "p")}
            yield json.dumps({**head, **rest})
            work.step("writing", number + 1, len(corrected))
