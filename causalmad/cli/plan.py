"""``--dry-run``: passes, memory, time and the smallest alpha, from a sample that is timed; nothing is written."""

from __future__ import annotations

import inspect
import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from causalmad.cli.console import Step, show
from causalmad.cli.files import STANDARD, require_file, write_json
from causalmad.cli.stream import Work
from causalmad.errors import CausalmadError

if TYPE_CHECKING:
    from torch import nn

    from causalmad.detector import Detector, FittedDetector
    from causalmad.inputs import Inputs
    from causalmad.models import OpenModel

FIRST = 8  # inputs in the first sample; every later one is twice as large
LARGEST = 512  # some signatures fit on a few hundred inputs at most: passes grow slower beyond
ENOUGH = 1.5  # seconds that a sample takes at most before it is large enough
_EXPLAINED = 8  # rows of a sample that are explained and written down, to time that as well


@dataclass
class Passes:
    """How many inputs went through a model, forward and backward."""

    forward: int = 0
    backward: int = 0


@dataclass(frozen=True)
class Sample:
    """One timed sample: how many inputs, and seconds and passes of preparing (a fit) and of working on each.

    Attributes:
        size: how many inputs.
        ready_seconds: wall time of the preparation.
        ready: its passes.
        work_seconds: wall time of the work on the inputs.
        work: its passes.
        columns: numbers for each input.
        line_bytes: length of a line of output.
        donors: inputs that serve the signature only: they don't describe what is normal.
    """

    size: int
    ready_seconds: float
    ready: Passes
    work_seconds: float
    work: Passes
    columns: int
    line_bytes: float = 0.0
    donors: int = 0


@dataclass(frozen=True)
class Plan:
    """What a command would take: lines for people, data for programs."""

    title: str
    lines: tuple[tuple[str, str], ...]
    data: dict[str, Any]

    def tell(self, as_json: str | None) -> None:
        """Print it, or write its data."""
        if as_json is not None:
            require_file(as_json)
            write_json(as_json, self.data)
        if as_json != STANDARD:
            widest = max(len(name) for name, _ in self.lines)
            show(f"{self.title} Nothing is written.", *(f"  {name:<{widest}}  {said}" for name, said in self.lines))


@contextmanager
def counted(module: nn.Module) -> Iterator[Passes]:
    """Counts what goes through a module while it lasts; afterwards the module is as it was."""
    from torch import Tensor

    found = Passes()

    def before(_: nn.Module, args: Any, kwargs: Any) -> None:
        found.forward += next((len(v) for v in (*args, *kwargs.values()) if isinstance(v, Tensor) and v.ndim), 0)

    def after(_: nn.Module, args: Any, result: Any) -> None:
        value = next((v for v in _tensors(result) if v.requires_grad and v.ndim), None)
        if value is not None:
            count = len(value)

            def back(grad: Tensor) -> None:
                found.backward += count

            value.register_hook(back)

    hooks = [module.register_forward_pre_hook(before, with_kwargs=True), module.register_forward_hook(after)]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()


def plan_fit(spec: Detector, opened: OpenModel, inputs: Inputs, pool: Inputs | None, seed: int, step: Step) -> Plan:
    """What a fit would take."""
    from causalmad.references.estimators import compares
    from causalmad.splits import split

    share = spec.calibration_share
    if share is None and "folds" in inspect.signature(spec.calibrator.fit).parameters:
        share = 2 / 3
    fitting, held = split(inputs, share, seed)
    others = len(pool) if pool is not None and compares(spec.reference) else 0
    part = inputs[fitting]

    def run(size: int) -> Sample:
        started = time.perf_counter()
        with counted(opened.module) as ready:
            signature = spec.signature.fit(opened, part[:size], seed)
        middle = time.perf_counter()
        with counted(opened.module) as work:
            found = signature(part[:size])
        ended = time.perf_counter()
        donors = len(frozenset(getattr(signature, "donor_digests", ())))
        return Sample(size, middle - started, ready, ended - middle, work, len(found.columns), donors=donors)

    samples = _samples(run, len(part), step)
    last = samples[-1]
    donors = min(round(_line(samples, lambda sample: sample.donors, len(fitting))), len(fitting))
    count = len(fitting) - donors + len(held) + others
    ready = {
        "forward": round(_line(samples, lambda sample: sample.ready.forward, len(fitting))),
        "backward": round(_line(samples, lambda sample: sample.ready.backward, len(fitting))),
    }
    each = {name: getattr(last.work, name) / last.size for name in ("forward", "backward")}
    total = {name: round(ready[name] + each[name] * count) for name in ready}
    seconds = _line(samples, lambda sample: sample.ready_seconds, len(fitting)) + last.work_seconds / last.size * count
    memory = {**_memory(opened), "signatures": 4 * count * last.columns}
    smallest, exact = _smallest(spec.calibrator, len(held))
    data = {
        "dry_run": True,
        "model": opened.name,
        "inputs": {"fit": len(fitting), "donors": donors, "calibration": len(held), "untrusted": others},
        "columns": last.columns,
        "passes": {"fit": ready, "each": each, "all": total},
        "seconds": round(seconds, 1),
        "memory": memory,
        "smallest_alpha": smallest,
        "smallest_alpha_is_exact": exact,
        "measured_on": last.size,
    }
    given = f", of which about {donors} are donors" if donors else ""
    pooled = f", {others} untrusted" if others else ""
    lines = (
        ("model", f"{opened.name}, {_parameters(opened)} on {opened.device}"),
        ("inputs", f"{len(fitting)} for what is normal{given}, {len(held)} for p-values{pooled}"),
        ("columns", f"{last.columns}"),
        ("passes", f"{_passes(ready)} to fit the signature, then {_passes(each)} for each input: {_passes(total)}"),
        ("time", f"about {_duration(seconds)}, measured on {last.size} inputs; without the fit of the reference"),
        ("memory", _said(memory)),
        ("alpha", f"{'' if exact else 'at best '}{_up(smallest)} or more, with {len(held)} calibration inputs"),
    )
    return Plan("A dry run of fit.", lines, data)


def plan_detection(fitted: FittedDetector, sample: Inputs, total: int, alpha: float, reasons: str, step: Step) -> Plan:
    """What a detection would take.

    Args:
        fitted: the detector.
        sample: the first inputs.
        total: how many there are in all, 0 where that is not known.
        alpha: what was asked for.
        reasons: whose reasons are written: ``all``, ``flagged`` or ``none``.
        step: called with what is being done.
    """
    smallest = fitted.calibrator.smallest
    reachable = min(max(alpha, smallest), 0.99)
    how = Work(fitted, reachable, reasons, total, step, True)

    def run(size: int) -> Sample:
        started = time.perf_counter()
        with counted(fitted.model.module) as work:
            detection = fitted.detect(sample[:size], reachable)
        middle = time.perf_counter()
        lines = [
            json.dumps(how.line(detection, row, bool(detection.flags[row]))) for row in range(min(size, _EXPLAINED))
        ]
        written = (time.perf_counter() - middle) / len(lines) * size
        length = sum(map(len, lines)) / len(lines) + 1
        return Sample(size, 0.0, Passes(), middle - started + written, work, len(detection.signatures.columns), length)

    last = _samples(run, len(sample), step)[-1]
    each = {name: getattr(last.work, name) / last.size for name in ("forward", "backward")}
    pace = last.work_seconds / last.size
    memory = {**_memory(fitted.model), "signatures": 4 * len(sample) * last.columns}
    known = total > 0
    data = {
        "dry_run": True,
        "model": fitted.model.name,
        "inputs": total if known else None,
        "columns": last.columns,
        "passes": {"each": each, "all": {k: round(v * total) for k, v in each.items()} if known else None},
        "seconds_each": pace,
        "seconds": round(pace * total, 1) if known else None,
        "memory": memory,
        "output_bytes": round(last.line_bytes * total) if known else None,
        "smallest_alpha": smallest,
        "alpha_in_reach": smallest <= alpha,
        "measured_on": last.size,
    }
    every = f": {_passes({name: value * total for name, value in each.items()})}" if known else ""
    reach = "in reach" if smallest <= alpha else "out of reach: nothing could ever be flagged"
    calibration = len(fitted.provenance["ids"]["calibration"])
    lines = (
        ("model", f"{fitted.model.name}, {_parameters(fitted.model)} on {fitted.model.device}"),
        ("inputs", f"{total}" if known else "as many as come"),
        ("columns", f"{last.columns}"),
        ("passes", f"{_passes(each)} for each input{every}"),
        (
            "time",
            f"{f'about {_duration(pace * total)}, ' if known else ''}{1 / pace:,.3g} inputs a second, measured on "
            f"{last.size} inputs, with reasons for {reasons}",
        ),
        ("memory", f"{_said(memory)}, whatever the number of inputs"),
        ("output", f"{_bytes(last.line_bytes)} a line{f', {_bytes(last.line_bytes * total)}' if known else ''}"),
        ("alpha", f"{_up(smallest)} or more, with {calibration} calibration inputs; {alpha:g} is {reach}"),
    )
    return Plan("A dry run of detect.", lines, data)


def _samples(run: Callable[[int], Sample], there: int, step: Step) -> list[Sample]:
    """Samples of 8, 16, ... inputs until one takes long enough; the first is run twice, to be warm.

    Raises:
        CausalmadError: when even all inputs are too few.
    """
    limit, size = min(there, LARGEST), min(FIRST, there)
    found: list[Sample] = []
    step("timing a sample", 0, 0)
    while True:
        try:
            if not found:
                run(size)
            found.append(run(size))
        except CausalmadError:  # some parts take more inputs than that
            limit = there
            if size >= limit:
                raise
        slow = found and found[-1].ready_seconds + found[-1].work_seconds > ENOUGH
        if size >= limit or (slow and len(found) > 1):
            step("timing a sample", 1, 1)
            return found
        size = min(2 * size, limit)


def _line(samples: list[Sample], of: Callable[[Sample], float], count: int) -> float:
    """What a fit would take on ``count`` inputs: a straight line through the last two samples, never falling."""
    last = samples[-1]
    if len(samples) < 2 or last.size == samples[-2].size:
        return of(last) * max(count / last.size, 1.0)
    before = samples[-2]
    slope = max((of(last) - of(before)) / (last.size - before.size), 0.0)
    return of(last) + slope * (count - last.size)


def _smallest(calibrator: Any, count: int) -> tuple[float, bool]:
    """The smallest alpha that so many calibration inputs support, and whether that is known before their scores are."""
    import numpy as np

    if len(inspect.signature(calibrator.fit).parameters) > 1:  # it asks for more than scores
        return 1 / (count + 1), False
    return float(calibrator.fit(np.arange(count, dtype=np.float64)).smallest), True


def _memory(opened: OpenModel) -> dict[str, int]:
    """Bytes of the weights, and the most that was in use so far, the sample included."""
    import torch

    weights = sum(value.numel() * value.element_size() for value in opened.module.state_dict().values())
    if opened.device.type == "cuda":
        return {"weights": weights, "peak": torch.cuda.max_memory_allocated(opened.device)}
    try:
        import resource
    except ImportError:  # Windows
        return {"weights": weights}
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {"weights": weights, "peak": used if sys.platform == "darwin" else 1024 * used}


def _said(memory: dict[str, int]) -> str:
    peak = f", {_bytes(memory['peak'])} at most while the sample was run" if "peak" in memory else ""
    return f"{_bytes(memory['weights'])} of weights, {_bytes(memory['signatures'])} of signatures{peak}"


def _tensors(result: Any) -> Iterator[Any]:
    """The tensors of an output, its logits first."""
    from torch import Tensor

    logits = getattr(result, "logits", None)
    if isinstance(result, Tensor):
        yield result
    elif isinstance(logits, Tensor):
        yield logits
    elif isinstance(result, (tuple, list)):
        yield from (value for value in result if isinstance(value, Tensor))
    elif isinstance(result, dict):
        yield from (value for value in result.values() if isinstance(value, Tensor))


def _parameters(opened: OpenModel) -> str:
    return f"{sum(value.numel() for value in opened.module.parameters()):,} parameters"


def _passes(found: dict[str, Any]) -> str:
    return f"{found['forward']:,.4g} forward and {found['backward']:,.4g} backward"


def _up(alpha: float) -> str:
    from causalmad.calibration.conformal import rounded_up

    return str(rounded_up(alpha))


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.2g} s" if seconds < 10 else f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _bytes(count: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"
