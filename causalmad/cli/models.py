"""The model of a command: a transformers folder, or the one that a task comes with."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING, Annotated, Any

import typer

from causalmad.cli.complete import folders, tasks
from causalmad.cli.console import Step
from causalmad.errors import ModelError, SpecError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from torch import nn

    from causalmad.inputs import Block, Inputs


class Precision(str, Enum):
    """What ``--dtype`` can be."""

    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"


Model = Annotated[
    str | None,
    typer.Option(
        help="Folder that save_pretrained wrote, or a model's name on the hub: a causal language model, or a "
        "classifier of texts or images.",
        metavar="DIR_OR_NAME",
        autocompletion=folders,
    ),
]
Task = Annotated[
    str | None,
    typer.Option(help="Use the model of this task; see `causalmad list tasks`.", metavar="NAME", autocompletion=tasks),
]
Device = Annotated[str, typer.Option(help="Where the model runs: cpu, cuda, cuda:1, mps, ...", metavar="DEVICE")]
Dtype = Annotated[Precision | None, typer.Option(help="Precision of the model.", show_default="as it was saved")]
Tokenizer = Annotated[
    str | None,
    typer.Option(
        help="Folder or hub name of the tokenizer; by default the model's own.", metavar="DIR", autocompletion=folders
    ),
]


@dataclass(frozen=True)
class Chosen:
    """A model, and what comes with it.

    Attributes:
        module: the network.
        tokenizer: for texts, where there is one.
        trusted: a task's trusted inputs.
        test: a task's test inputs.
        blocks: named parts of a task's inputs.
        hypothesis: a task's hypothesis, where it ships one.
        untrusted: a task's unlabelled pool, where it ships one.
        labels: which of a task's test inputs are anomalous; for reports only.
    """

    module: nn.Module
    tokenizer: Callable[..., Any] | None = None
    trusted: Inputs | None = None
    test: Inputs | None = None
    blocks: Mapping[str, Block] = field(default_factory=dict)
    hypothesis: object | None = None
    untrusted: Inputs | None = None
    labels: npt.NDArray[np.bool_] | None = None


def choose(
    model: str | None,
    task: str | None,
    seed: int,
    device: str,
    step: Step,
    dtype: Precision | None = None,
    tokenizer: str | None = None,
) -> Chosen:
    """The model that ``--model`` or ``--task`` names.

    Raises:
        SpecError: when not exactly one of them is given, or a tokenizer for a task.
        ModelError: when the folder holds no model that can be opened, or there is no such device.
    """
    if (model is None) == (task is None):
        said = "neither --model nor --task" if model is None else "--model together with --task"
        raise SpecError(said, needed="one of them", tries=["--model FOLDER", "--task gate-digits"])
    if task is not None and tokenizer is not None:
        raise SpecError("--tokenizer together with --task", needed="--model: a task has its own inputs")
    from causalmad.models.pretrained import locate, open_pretrained

    step("loading torch", 0, 0)
    for name in filter(None, (model, tokenizer)):
        locate(name)
    _require_device(device)
    step("loading torch", 1, 1)
    if task is not None:
        from causalmad.config import parse_spec

        data = parse_spec("tasks", task).load(seed, progress=lambda done, total: step("training", done, total))
        module = _on(data.model, device, dtype)
        blocks = data.trusted.blocks
        return Chosen(module, None, data.trusted, data.test, blocks, data.hypothesis, data.untrusted, data.labels)
    step("opening the model", 0, 0)
    module, words = open_pretrained(str(model), dtype=None if dtype is None else dtype.value, tokenizer=tokenizer)
    module = _on(module, device)
    step("opening the model", 1, 1)
    return Chosen(module, words)


def _require_device(device: str) -> None:
    """Fail before a model is read or trained for a device that is not there."""
    import torch

    try:
        torch.zeros(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise _no_device(device, error) from error


def _on(module: nn.Module, device: str, dtype: Precision | None = None) -> nn.Module:
    """The module, on a device."""
    import torch

    try:
        return module.to(device=device, dtype=None if dtype is None else getattr(torch, dtype.value))
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise _no_device(device, error) from error


def _no_device(device: str, error: Exception) -> ModelError:
    """What torch says, and the devices that are here."""
    import torch

    said = str(error).splitlines()[0][:120]
    there = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    return ModelError(f"--device {device}: {said}", tries=[f"--device {name}" for name, here in there.items() if here])
