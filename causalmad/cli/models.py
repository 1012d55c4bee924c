"""The model of a command: a transformers folder, or the one that a task comes with."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from causalmad.cli.console import Step
from causalmad.errors import ModelError, SpecError

if TYPE_CHECKING:
    from torch import nn

    from causalmad.inputs import Block, Inputs


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
    """

    module: nn.Module
    tokenizer: Callable[..., Any] | None = None
    trusted: Inputs | None = None
    test: Inputs | None = None
    blocks: Mapping[str, Block] = field(default_factory=dict)
    hypothesis: object | None = None
    untrusted: Inputs | None = None


def _on(module: nn.Module, device: str) -> nn.Module:
    """The module, on a device."""
    try:
        return module.to(device)
    except (RuntimeError, AssertionError) as error:
        said = str(error).splitlines()[0][:120]
        raise ModelError(f"--device {device}: {said}", tries=["--device cpu", "--device cuda"]) from error


def choose(model: str | None, task: str | None, seed: int, device: str, step: Step) -> Chosen:
    """The model that ``--model`` or ``--task`` names.

    Raises:
        SpecError: when not exactly one of them is given.
        ModelError: when the folder holds no model that can be opened.
    """
    if (model is None) == (task is None):
        raise SpecError("one of --model and --task is needed", tries=["--model FOLDER", "--task gate-digits"])
    if task is not None:
        from causalmad.config import parse_spec

        data = parse_spec("tasks", task).load(seed, progress=lambda done, total: step("training", done, total))
        model_on = _on(data.model, device)
        blocks = data.trusted.blocks
        return Chosen(model_on, None, data.trusted, data.test, blocks, data.hypothesis, data.untrusted)
    from causalmad.models.pretrained import open_pretrained

    step("opening the model", 0, 0)
    module, tokenizer = open_pretrained(str(model))
    _on(module, device)
    step("opening the model", 1, 1)
    return Chosen(module, tokenizer)
