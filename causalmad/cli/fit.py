"""``causalmad fit``: a detector from trusted inputs."""

from __future__ import annotations

import time
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from causalmad.cli.claims import Hypothesis, with_claim
from causalmad.cli.complete import calibrators, references, signatures, whole_detectors
from causalmad.cli.console import progress, remark, show
from causalmad.cli.files import STANDARD, Json, Keep, require_file, require_folder, write_json
from causalmad.cli.guard import Debug, Quiet, guarded
from causalmad.cli.models import Device, Dtype, Model, Task, Tokenizer, choose
from causalmad.cli.parts import detector_text
from causalmad.config import split_outside
from causalmad.errors import InputsError, SpecError
from causalmad.rows import as_inputs, read_blocks, read_rows

if TYPE_CHECKING:
    from causalmad.detector import Detector, FittedDetector


@guarded
def fit(
    out: Annotated[str | None, typer.Option(help="Folder for the detector.", metavar="DIR")] = None,
    model: Model = None,
    task: Task = None,
    trusted: Annotated[
        str | None, typer.Option(help="JSON lines, - for standard input; by default the task's own.", metavar="FILE")
    ] = None,
    untrusted: Annotated[
        str | None,
        typer.Option(help="Unlabelled inputs for what compares with them; by default the task's own.", metavar="FILE"),
    ] = None,
    detector: Annotated[
        str | None,
        typer.Option(
            help="What to fit: signature+reference, each with its options, or a name of `causalmad list detectors`.",
            autocompletion=whole_detectors,
        ),
    ] = None,
    signature: Annotated[
        str | None,
        typer.Option(
            help="In place of --detector: how an output came about, name\\[key=value,...].", autocompletion=signatures
        ),
    ] = None,
    reference: Annotated[
        str | None,
        typer.Option(help="With --signature: what is normal; by default mahalanobis.", autocompletion=references),
    ] = None,
    calibrator: Annotated[
        str | None,
        typer.Option(
            help="With --signature: from scores to p-values; by default conformal.", autocompletion=calibrators
        ),
    ] = None,
    hypothesis: Hypothesis = None,
    block: Annotated[
        list[str] | None,
        typer.Option(help="A named part of the input's last axis; may be repeated.", metavar="NAME=A:B"),
    ] = None,
    calibration_share: Annotated[
        float | None,
        typer.Option(
            help="Share of the trusted inputs kept for p-values.", show_default="a third, up to a half of few"
        ),
    ] = None,
    as_json: Json = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what it would take, from a timed sample; write nothing.")
    ] = False,
    batch_size: Annotated[
        str | None, typer.Option(help="Inputs a batch, or auto: what fits into memory.", show_default="64", metavar="N")
    ] = None,
    cache: Keep = None,
    device: Device = "cpu",
    dtype: Dtype = None,
    tokenizer: Tokenizer = None,
    seed: Annotated[int, typer.Option(help="Of the split, the donors and the task.", min=0)] = 0,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Fit a detector on trusted inputs and save it."""
    parts = read_blocks(block or [])
    with progress(quiet) as step:
        step("looking up the detector", 0, 0)
        text = _detector_text(signature, reference, detector, calibrator)
    if not dry_run:
        if out is None:
            raise SpecError("no folder for the detector", tries=["--out DIR", "--dry-run"])
        require_folder(out)
        if as_json is not None:
            require_file(as_json)
    started = time.perf_counter()
    with progress(quiet) as step:
        step("reading the inputs", 0, 0)
        rows = None if trusted is None else read_rows(trusted)
        others = None if untrusted is None else read_rows(untrusted)
        step("reading the inputs", 1, 1)
        chosen = choose(model, task, seed, device, step, dtype, tokenizer)
        from causalmad.evaluation.threads import fitting_threads
        from causalmad.models import open_model
        from causalmad.names import with_hypothesis

        spec = with_hypothesis(with_claim(_spec(text, calibration_share), hypothesis), chosen.hypothesis)
        opened = open_model(chosen.module, tokenizer=chosen.tokenizer, batch_size=_size(batch_size))
        if rows is not None:
            inputs = as_inputs(rows, opened, {**chosen.blocks, **parts})
        elif chosen.trusted is not None:
            inputs = chosen.trusted
        else:
            raise InputsError("no trusted inputs", tries=["--trusted FILE.jsonl", "--trusted -"])
        pool = chosen.untrusted if others is None else as_inputs(others, opened, {**chosen.blocks, **parts})
        if not spec.compares:
            pool = None
            if others is not None:
                remark(f"Nothing in {text} looks at untrusted inputs: those of {untrusted} play no part.", quiet)
        with fitting_threads(chosen.module):
            if dry_run:
                from causalmad.cli.plan import plan_fit

                plan = plan_fit(spec, opened, inputs, pool, seed, step)
            else:
                what = f"fitting {text} on {len(inputs)} inputs"
                step(what, 0, 0)
                with opened.batching.watched(partial(step, what)):
                    fitted = spec.fit(opened, inputs, pool, seed=seed, cache=cache)
                step(what, 1, 1)
                fitted.save(str(out))
    if dry_run:
        plan.tell(as_json)
        return
    _summary(fitted, text, len(inputs), str(out), as_json, time.perf_counter() - started)


def _summary(fitted: FittedDetector, text: str, count: int, out: str, as_json: str | None, seconds: float) -> None:
    from causalmad.calibration.conformal import rounded_up

    sizes = {name: len(ids) for name, ids in fitted.provenance["ids"].items()}
    if as_json is not None:
        data: dict[str, Any] = {
            "detector": text,
            "out": out,
            "model": fitted.model.name,
            "trusted": count,
            "reference": sizes["reference"],
            "calibration": sizes["calibration"],
            "columns": len(fitted.trusted.columns),
            "smallest_alpha": fitted.calibrator.smallest,
            "seconds": round(seconds, 3),
        }
        write_json(as_json, data)
    if as_json != STANDARD:
        show(
            f"Fitted {text} on {count} trusted inputs: {sizes['reference']} for what is normal, "
            f"{sizes['calibration']} for p-values.",
            f"Smallest alpha: {rounded_up(fitted.calibrator.smallest)}. Saved in {out}",
        )


def _detector_text(
    signature: str | None, reference: str | None, detector: str | None, calibrator: str | None = None
) -> str:
    if detector is not None and (signature is not None or reference is not None or calibrator is not None):
        raise SpecError("--detector together with --signature, --reference or --calibrator", tries=["one or the other"])
    if detector is not None:
        return detector_text(detector)
    if signature is None:
        raise SpecError(
            "no signature", tries=["--signature attribution-patching", "--detector activations+mahalanobis"]
        )
    if len(split_outside(signature, "+")) > 1:
        raise SpecError(f"--signature {signature} is more than a signature", tries=[f"--detector '{signature}'"])
    return "+".join(filter(None, (signature, reference or "mahalanobis", calibrator)))


def _size(text: str | None) -> int | Literal["auto"] | None:
    if text is None:
        return None
    if text == "auto":
        return "auto"
    if not text.isdecimal() or int(text) < 1:
        raise SpecError(f"--batch-size {text}", needed="a number of inputs, or auto")
    return int(text)


def _spec(text: str, share: float | None) -> Detector:
    from dataclasses import replace

    from causalmad.names import parse_detector

    return replace(parse_detector(text), calibration_share=share)
