"""What a task is: the interface, and the data that it gives."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar, Protocol, TypeAlias, runtime_checkable

import numpy as np
import numpy.typing as npt
from torch import nn

from causalmad.errors import TaskError
from causalmad.inputs import Inputs

Progress: TypeAlias = Callable[[int, int], None]
"""Called with (steps done, steps in all) while a model is trained."""

NULL = {"null": "test inputs labelled anomalous are drawn as normal ones are: any score's AUROC is 0.5 but for chance"}
"""What the card of a null version says besides."""


@dataclass(frozen=True, repr=False)
class TaskData:
    """A model, inputs on which it is trusted, and test inputs that are normal or anomalous.

    Attributes:
        name: the task as it is written on the command line, options included.
        seed: what the data and the model were made from.
        model: the network, in eval mode.
        trusted: inputs that the network answers for the normal reason.
        test: inputs of both kinds, in random order; the output's margin tells nothing about the kind.
        labels: (n_test,) bool, True = anomalous. No detector may see it.
        normal: new normal inputs of the test distribution, not selected by margin: for false-alarm rates. Without a
            shift they are exchangeable with ``trusted``, unless the card says otherwise.
        untrusted: unlabelled inputs of both kinds, for references that learn from what they are asked about.
        hypothesis: a claim about the normal mechanism, where the task comes with one.
        card: where the model came from, how right it is, and what surface controls score.
    """

    name: str
    seed: int
    model: nn.Module
    trusted: Inputs
    test: Inputs
    labels: npt.NDArray[np.bool_]
    normal: Inputs
    untrusted: Inputs | None
    card: Mapping[str, object]
    hypothesis: object | None = None

    def __repr__(self) -> str:
        """The task, its model and how many inputs there are, in a line."""
        pool = "" if self.untrusted is None else f", {len(self.untrusted):,} untrusted"
        return (
            f"TaskData({self.name}, seed {self.seed}, {type(self.model).__name__}: {len(self.trusted):,} trusted, "
            f"{len(self.test):,} test ({int(self.labels.sum()):,} anomalous), {len(self.normal):,} normal{pool})"
        )


@runtime_checkable
class Task(Protocol):
    """A specification of a task: its fields are its options.

    A task whose model or inputs come from outside (files, folders, a hub) and not from its seed alone says so by
    ``outside: ClassVar[bool] = True``: they may change under the same options, and a bench then looks whether they did.
    """

    mechanism: ClassVar[str]
    source: ClassVar[str]
    licence: ClassVar[str]
    version: ClassVar[str]
    size: ClassVar[str]

    def load(self, seed: int = 0, *, progress: Progress | None = None) -> TaskData:
        """The task's model and inputs; trains the model at the first call for a seed, then takes it from the cache.

        Args:
            seed: everything random follows from it; not negative.
            progress: called with (steps done, steps in all) while the model is trained.

        Raises:
            TaskError: when the model does not learn both mechanisms.
        """
        ...


def stream(seed: int, *names: str) -> np.random.Generator:
    """A random generator of its own for each purpose, so that drawing more for one leaves the others alone.

    Raises:
        TaskError: when the seed is negative or no whole number.
    """
    if not isinstance(seed, (int, np.integer)) or seed < 0:
        raise TaskError(f"seed={seed!r}", needed="a whole number, 0 or larger")
    return np.random.default_rng([int(seed), *("/".join(names)).encode()])


def describe_card(task: Task, made: Mapping[str, object], **measured: object) -> dict[str, object]:
    """A task's card: what it is, how its model was made, what was measured on this load, and what the surface tells."""
    words = {key: getattr(task, key) for key in ("mechanism", "source", "licence", "version", "size")}
    controls = measured.get("controls")
    found = controls.get("input mahalanobis", 0.5) if isinstance(controls, Mapping) else 0.5
    # Being too typical gives an input away as well as being odd does.
    seen = max(found, 1 - found)
    verdict = "solvable" if seen > 0.95 else "partly solvable" if seen >= 0.65 else "not solvable"
    # A task whose trusted inputs are other inputs by definition says so; otherwise a shift is an option.
    exchangeable = getattr(task, "exchangeable", not getattr(task, "shift", False))
    return {
        **words,
        "exchangeable": exchangeable,
        **made,
        **measured,
        "surface": f"{verdict} from the raw input ({seen:.2f})",
    }
