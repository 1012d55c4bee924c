"""``--report FILE``: a detection as one page of HTML."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from causalmad.cli.console import remark
from causalmad.cli.files import require_file
from causalmad.errors import SpecError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from causalmad.detection import Detection
    from causalmad.detector import FittedDetector
    from causalmad.explanation import Explanation
    from causalmad.inputs import Inputs

GET = "pip install 'causalmad[report]'"


def missing() -> str:
    """What a report takes that is not installed; empty where all is there."""
    return "" if find_spec("jinja2") else f"a report takes jinja2: {GET}"


def require_report(path: str | None) -> None:
    """Nothing, where a report can be written, or none is wanted; found out before anything is computed.

    Raises:
        SpecError: when what it takes is not installed, or it would go to standard output.
        StoreError: when the file cannot be written.
    """
    if path is None:
        return
    if path == "-":
        raise SpecError("--report -", needed="a file: standard output is for the JSON lines")
    if missing():
        raise SpecError("--report without what it takes", needed="jinja2", tries=[GET])
    require_file(path)


def offer(path: str, *, asked: bool, quiet: bool) -> str | None:
    """The path, where a report can be written there; otherwise one line says what it takes, and there is none."""
    if missing():
        remark(f"No {path}: {missing()}", quiet and not asked)
        return None
    require_report(path)
    return path


def command() -> str:
    """The command line as it was typed, so that it can be typed again."""
    return shlex.join(["causalmad", *sys.argv[1:]])


def write(
    path: str,
    detection: Detection,
    *,
    inputs: Inputs | None = None,
    labels: npt.NDArray[np.bool_] | None = None,
    normal: Any = None,
    hypothesis: Any = None,
    tokenizer: Callable[..., Any] | None = None,
    title: str = "",
    detector: FittedDetector | None = None,
) -> None:
    """The page of a detection."""
    from causalmad.report import write_report

    write_report(
        path,
        detection,
        inputs=inputs,
        labels=labels,
        normal=normal,
        hypothesis=hypothesis,
        tokenizer=tokenizer,
        command=command(),
        title=title,
        detector=detector,
    )


def joined(
    parts: Sequence[tuple[Inputs, Detection]],
    fdr: str | None = None,
    adjusted: npt.NDArray[np.float64] | None = None,
    note: str = "",
) -> tuple[Inputs, Detection]:
    """Chunks of inputs and their detections as one.

    Args:
        parts: at least one.
        fdr: how the false discovery rate over all of them is bounded, where it is.
        adjusted: (n,) p-values adjusted for all of them, where it is.
        note: what the size of the calibration set rules out.
    """
    from dataclasses import replace

    import numpy as np

    from causalmad.signatures.base import Signatures

    inputs = _inputs([given for given, _ in parts])
    found = [detection for _, detection in parts]
    first = found[0]
    also = {
        key: tuple(name for each in found for name in each.provenance[key])
        for key in ("also trusted", "also untrusted")
    }
    starts = np.cumsum([0, *(len(each) for each in found)])

    def reason(row: int) -> Explanation:
        chunk = int(np.searchsorted(starts, row, side="right")) - 1
        return found[chunk].reason(row - int(starts[chunk]))

    signatures = Signatures(
        inputs.ids, first.signatures.columns, np.concatenate([each.signatures.values for each in found])
    )
    scores, p_values = (np.concatenate([getattr(each, name) for each in found]) for name in ("scores", "p_values"))
    whole = replace(
        first,
        signatures=signatures,
        scores=scores,
        p_values=p_values,
        provenance={**first.provenance, **also},
        reason=reason,
        fdr=fdr,
        adjusted=adjusted,
        note=note,
    )
    return inputs, whole


def _inputs(parts: list[Inputs]) -> Inputs:
    """Chunks of a stream as one; rows of a field are one tensor where they fit into one."""
    from dataclasses import replace

    import numpy as np
    import torch

    if len(parts) == 1:
        return parts[0]
    fields: dict[int | str, Any] = {}
    for name in parts[0].fields:
        rows = [row for part in parts for row in part.fields[name]]
        fields[name] = torch.stack(rows) if len({tuple(row.shape) for row in rows}) == 1 else tuple(rows)
    columns = {name: np.concatenate([part.columns[name] for part in parts]) for name in parts[0].columns}
    return replace(parts[0], ids=tuple(key for part in parts for key in part.ids), fields=fields, columns=columns)
