"""Tasks whose inputs are drawn from a rule: how their data is put together around a trained model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
from torch import Tensor, nn

from causalmad.errors import TaskError
from causalmad.hypotheses import Hypothesis
from causalmad.tasks.base import NULL, Progress, Task, TaskData, describe_card, stream
from causalmad.tasks.cache import Card
from causalmad.tasks.controls import control_scores
from causalmad.tasks.matching import FEWEST, margins
from causalmad.tasks.tables import Draw, Rows, draw_new, join
from causalmad.tasks.training import Recipe, trained

TRUSTED, NORMAL, UNTRUSTED, TEST, CANDIDATES, GRADED = 1200, 1000, 500, 450, 3000, 2000
BINS = 12  # of margins, for every answer

Forward: TypeAlias = Callable[[nn.Module, Tensor], tuple[list[Tensor], Tensor]]
"""Activations of each layer, (n, width), and logits, (n, classes)."""


@dataclass(frozen=True)
class Trainable:
    """A task whose network can be trained further, by somebody who means it to behave otherwise inside.

    Attributes:
        recipe: how its own network is made and judged.
        draw: the rows that it learns from, of either kind.
        around: from a network, and what is to be said of it on the card, to the task's data with that network.
    """

    recipe: Recipe
    draw: Draw
    around: Callable[[nn.Module, Card], TaskData]


def load_drawn(
    task: Task,
    recipe: Recipe,
    draw: Draw,
    forward: Forward,
    seed: int,
    progress: Progress | None,
    *,
    name: str = "",
    trusted: Draw | None = None,
    hypothesis: Hypothesis | None = None,
    card: Mapping[str, object] | None = None,
    null: bool = False,
    unhidden: Recipe | None = None,
    model: tuple[nn.Module, Card] | None = None,
) -> TaskData:
    """A task's model and inputs.

    Args:
        task: whose card is written.
        recipe: how its model is trained.
        draw: makes test inputs of either kind.
        forward: activations and logits of the model.
        seed: of everything random.
        progress: called after each step of the training.
        name: of the task with its options, as it is written on the command line; by default the recipe's.
        trusted: makes trusted inputs, where they are not like normal test inputs (a benign shift, easy and hard).
        hypothesis: the claim that comes with the task.
        card: what else the card says.
        null: anomalous inputs are drawn as normal ones are, and the model is the one that there is without this.
        unhidden: where the network hides its anomalies, how one that does not is trained. Its accuracy is on the card,
            since the difference is what hiding costs.
        model: a network, and what the card says of it, in place of the recipe's.
    """
    rng, taken, fifth = stream(seed, recipe.name, "data"), set[bytes](), UNTRUSTED // 5
    # One draw and one shuffle for all normal inputs: that makes `trusted` and `normal` exchangeable.
    cuts = np.cumsum([0, 0 if trusted else TRUSTED, NORMAL, UNTRUSTED - fifth, CANDIDATES])
    count = fifth + CANDIDATES  # of the other kind; of a null version, in the same draw
    usual = draw_new(draw, int(cuts[-1]) + null * count, False, rng, taken)
    known, normal, mixed, candidates = (usual[slice(a, b)] for a, b in pairwise(cuts))
    odd = usual[cuts[-1] :] if null else draw_new(draw, count, True, rng, taken)
    mixed = join(mixed, odd[:fifth])[rng.permutation(UNTRUSTED)]
    candidates = join(candidates, odd[fifth:])
    if trusted is not None:
        known = draw_new(trusted, TRUSTED, False, stream(seed, recipe.name, "trusted"), taken)

    network, made = trained(recipe, seed, progress) if model is None else model
    said = {**(NULL if null else {}), **(card or {})}
    if unhidden is not None:
        said["accuracy without hiding"] = trained(unhidden, seed, progress)[1]["accuracy"]

    sure = margins(forward(network, candidates.tensor())[1])
    odd_ones = np.arange(len(sure)) >= CANDIDATES
    chosen, labels = matched_by_answer(sure, candidates.columns["answer"], odd_ones, TEST, rng)
    test = candidates[chosen]
    layers = zip(*(forward(network, part.tensor())[0] for part in (known, test)))
    tokens = 1 + int(max(known.values.max(), test.values.max()))
    controls = control_scores(labels, sure[chosen], (known.raw(tokens), test.raw(tokens)), list(layers))
    inputs = [part.as_inputs() for part in (known, test, normal, mixed)]
    return TaskData(
        name or recipe.name,
        seed,
        network,
        inputs[0],
        inputs[1],
        labels,
        inputs[2],
        inputs[3],
        describe_card(task, made, controls=controls, **said),
        hypothesis,
    )


def matched_by_answer(
    sure: npt.NDArray[np.float64],
    answers: Rows,
    anomalous: npt.NDArray[np.bool_],
    count: int,
    rng: np.random.Generator,
) -> tuple[Rows, npt.NDArray[np.bool_]]:
    """Rows of a test set in random order, and its labels: for each answer, equal histograms of margins.

    Planted components leave each answer a margin of its own. Margins that match over all answers together would do so
    at the cost of other answers in one kind than in the other.

    Args:
        sure: (n,) margins of the candidates.
        answers: (n,) right classes; all are made equally frequent in both kinds, as far as there are pairs.
        anomalous: (n,) which kind.
        count: wanted of each kind, at most.
        rng: chooses and shuffles.

    Raises:
        TaskError: when fewer than 250 of each kind can be matched.
    """
    pairs: list[tuple[int, float, int, int]] = []  # place in the queue of its answer, tie-breaker, rows
    for answer in np.unique(answers):
        rows = np.flatnonzero(answers == answer)
        edges = np.quantile(sure[rows], np.linspace(0, 1, BINS + 1)[1:-1])
        bins = np.searchsorted(edges, sure[rows], side="right")
        found: list[tuple[int, int]] = []
        for bin_ in range(BINS):
            here = rng.permutation(rows[bins == bin_])
            found += zip(here[~anomalous[here]].tolist(), here[anomalous[here]].tolist())
        pairs += [(place, rng.random(), *found[which]) for place, which in enumerate(rng.permutation(len(found)))]
    if len(pairs) < FEWEST:
        raise TaskError(
            f"only {len(pairs)} normal and anomalous test inputs have matching output margins",
            needed=f"{FEWEST} of each",
            causes=["the model is far surer of its answer on one of the two kinds"],
            tries=["another seed"],
        )
    chosen = np.array([pair[2:] for pair in sorted(pairs)[:count]], dtype=np.int64)
    both, labels = chosen.T.ravel(), np.repeat([False, True], len(chosen))
    order = rng.permutation(len(both))
    return both[order], labels[order]
