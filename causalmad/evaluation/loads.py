"""What is kept of a task that was loaded, to hold it to the rules."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from causalmad.evaluation.controls import control_aurocs
from causalmad.evaluation.threads import fitting_threads
from causalmad.models import open_model
from causalmad.tasks.base import TaskData

FEWEST = 10  # test inputs of either kind
WORDS = ("mechanism", "source", "licence", "version", "size", "surface")


@dataclass(frozen=True)
class Load:
    """What is kept of a task that was loaded with a seed.

    Attributes:
        seed: of the load.
        card: the words of its card.
        accuracy: kind of input -> share of right answers, as the card gives it.
        controls: AUROC of the surface controls; none where there are too few test inputs of a kind.
        contents: part -> hash of each input.
        twice: how many ids stand more than once.
        fewest: number of test inputs of the rarer kind, 0 where the labels don't fit the inputs.
        training: how many modules are not in eval mode.
        changed: what differs when the same seed is loaded again.
    """

    seed: int
    card: Mapping[str, str]
    accuracy: Mapping[str, float]
    controls: Mapping[str, float | None]
    contents: Mapping[str, tuple[str, ...]]
    twice: int
    fewest: int
    training: int
    changed: tuple[str, ...]

    @property
    def shared(self) -> int:
        """How many contents stand in more than one part."""
        parts = [content for contents in self.contents.values() for content in set(contents)]
        return len(parts) - len(set(parts))


def look(data: TaskData, again: TaskData | None) -> Load:
    """What is kept of a load; one that is not loaded again is only compared by its contents."""
    accuracy = data.card.get("accuracy", {})
    ids = [key for part in _parts(data).values() for key in part.ids]
    fits = data.labels.dtype == bool and data.labels.shape == (len(data.test),)
    fewest = int(min(data.labels.sum(), (~data.labels).sum())) if fits else 0
    training = sum(module.training for module in data.model.modules())
    with fitting_threads(data.model):
        controls = {} if again is None or fewest < FEWEST else control_aurocs(data, data.seed)
    before, after = (_bits(each) for each in (data, again or data))
    return Load(
        data.seed,
        {key: str(data.card[key]) for key in (*WORDS, "null") if key in data.card},
        {key: float(value) for key, value in accuracy.items()} if isinstance(accuracy, Mapping) else {},
        controls,
        {part: inputs.digests for part, inputs in _parts(data).items()},
        len(ids) - len(set(ids)),
        fewest,
        training,
        tuple(key for key in {**before, **after} if before.get(key) != after.get(key)),
    )


def _parts(data: TaskData) -> dict[str, Any]:
    """Name of a part -> its inputs."""
    known = {"trusted": data.trusted, "test": data.test, "normal": data.normal, "untrusted": data.untrusted}
    return {name: part for name, part in known.items() if part is not None}


def _bits(data: TaskData) -> dict[str, object]:
    """All that a detector meets, by name, as something to compare."""
    bits: dict[str, object] = {"model": open_model(data.model).fingerprint(), "labels": data.labels.tobytes()}
    for name, part in _parts(data).items():
        columns = {key: hashlib.sha256(repr(list(rows)).encode()).hexdigest() for key, rows in part.columns.items()}
        bits[f"{name} inputs"] = (part.ids, part.digests, columns)
    return bits
