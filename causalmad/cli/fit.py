"""``causalmad fit``: a detector from trusted inputs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from causalmad.cli.claims import Hypothesis, with_claim
from causalmad.cli.console import progress, show
from causalmad.cli.files import require_folder
from causalmad.cli.guard import Debug, Quiet, guarded
from causalmad.cli.models import choose
from causalmad.config import split_outside
from causalmad.errors import InputsError, SpecError
from causalmad.rows import as_inputs, read_blocks, read_rows

if TYPE_CHECKING:
    from causalmad.detector import Detector

Model = Annotated[
    str | None, typer.Option(help="Folder of a transformers model, or its name on the hub.", metavar="DIR")
]
Task = Annotated[str | None, typer.Option(help="Use the model of this task.", metavar="NAME")]
Device = Annotated[str, typer.Option(help="Where the model runs, such as cpu or cuda.")]


@guarded
def fit(
    out: Annotated[str, typer.Option(help="Folder for the detector.", metavar="DIR")],
    model: Model = None,
    task: Task = None,
    trusted: Annotated[
        str | None, typer.Option(help="JSON lines, - for standard input; by default the task's own.", metavar="FILE")
    ] = None,
    untrusted: Annotated[
        str | None,
        typer.Option(help="Unlabelled inputs for what compares with them; by default the task's own.", metavar="FILE"),
    ] = None,
    calibrator: Annotated[str | None, typer.Option(help="From scores to p-values; by default conformal.")] = None,
    signature: Annotated[str | None, typer.Option(help="How an output came about: name\\[key=value,...].")] = None,
    reference: Annotated[str | None, typer.Option(help="What is normal; by default mahalanobis.")] = None,
    detector: Annotated[str | None, typer.Option(help="Both at once: signature+reference.")] = None,
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
    batch_size: Annotated[int | None, typer.Option(help="Inputs a batch, at most.", min=1)] = None,
    device: Device = "cpu",
    seed: Annotated[int, typer.Option(help="Of the split, the donors and the task.", min=0)] = 0,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Fit a detector on trusted inputs and save it."""
    parts = read_blocks(block or [])
    text = _detector_text(signature, reference, detector, calibrator)
    require_folder(out)
    rows = None if trusted is None else read_rows(trusted)
    others = None if untrusted is None else read_rows(untrusted)
    with progress(quiet) as step:
        from causalmad.evaluation.threads import fitting_threads
        from causalmad.models import open_model
        from causalmad.names import with_hypothesis

        spec = with_claim(_spec(text, calibration_share), hypothesis)
        chosen = choose(model, task, seed, device, step)
        spec = with_hypothesis(spec, chosen.hypothesis)
        opened = open_model(chosen.module, tokenizer=chosen.tokenizer, batch_size=batch_size)
        if rows is not None:
            inputs = as_inputs(rows, opened, {**chosen.blocks, **parts})
        elif chosen.trusted is not None:
            inputs = chosen.trusted
        else:
            raise InputsError("no trusted inputs", tries=["--trusted FILE.jsonl", "--trusted -"])
        pool = chosen.untrusted if others is None else as_inputs(others, opened, {**chosen.blocks, **parts})
        step("fitting", 0, 0)
        with fitting_threads(chosen.module):
            fitted = spec.fit(opened, inputs, pool, seed=seed)
        fitted.save(out)
    from causalmad.calibration.conformal import rounded_up

    sizes = {name: len(ids) for name, ids in fitted.provenance["ids"].items()}
    show(
        f"Fitted {text} on {len(inputs)} trusted inputs: {sizes['reference']} for what is normal, "
        f"{sizes['calibration']} for p-values.",
        f"Smallest alpha: {rounded_up(fitted.calibrator.smallest)}. Saved in {out}",
    )


def _detector_text(
    signature: str | None, reference: str | None, detector: str | None, calibrator: str | None = None
) -> str:
    if detector is not None and (signature is not None or reference is not None or calibrator is not None):
        raise SpecError("--detector together with --signature, --reference or --calibrator", tries=["one or the other"])
    if detector is None and signature is None:
        raise SpecError(
            "no signature", tries=["--signature attribution-patching", "--detector activations+mahalanobis"]
        )
    if detector is None and len(split_outside(str(signature), "+")) > 1:
        raise SpecError(f"--signature {signature} is more than a signature", tries=[f"--detector '{signature}'"])
    return detector or "+".join(filter(None, (signature, reference or "mahalanobis", calibrator)))


def _spec(text: str, share: float | None) -> Detector:
    from dataclasses import replace

    from causalmad.names import parse_detector

    return replace(parse_detector(text), calibration_share=share)
