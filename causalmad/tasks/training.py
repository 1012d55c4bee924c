"""Training a task's model: deterministic, without a trace on the process, and accepted only when it is right."""

from __future__ import annotations

import logging
import math
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import nn

from causalmad.errors import TaskError
from causalmad.tasks.base import Progress, stream
from causalmad.tasks.cache import Card, cached

logger = logging.getLogger(__name__)

NEEDED = 0.95
ATTEMPTS = 4


@dataclass(frozen=True)
class Recipe:
    """How a task's model is made and judged.

    Attributes:
        name: of the task.
        version: of the task; a change of anything here needs another one.
        steps: of the training.
        build: the untrained network.
        train: trains it in place from a generator, and calls the last argument after each step.
        grade: kind of input -> share of held-out inputs that a network answers right.
        options: those of the task's options on which the weights depend.
    """

    name: str
    version: str
    steps: int
    build: Callable[[], nn.Module]
    train: Callable[[nn.Module, np.random.Generator, Callable[[int], None]], None]
    grade: Callable[[nn.Module], Mapping[str, float]]
    options: Mapping[str, object] = field(default_factory=dict)


def trained(recipe: Recipe, seed: int, progress: Progress | None = None) -> tuple[nn.Module, Card]:
    """The model of a recipe in eval mode, and its card: from the cache, or trained now.

    Raises:
        TaskError: when none of the attempts is right on at least 95 % of every kind of input.
    """
    stream(seed)  # refuses a bad seed before anything is built
    seed = int(seed)  # numpy's integers are no JSON
    with isolated(0):
        model = recipe.build()

    def train(new: nn.Module) -> Card:
        return _train(recipe, new, seed, progress)

    card = cached(recipe.name, recipe.options, recipe.version, seed, model, train)
    return model.eval(), card


def _train(recipe: Recipe, model: nn.Module, seed: int, progress: Progress | None) -> Card:
    """Trains ``model`` in place, again with another training seed where it is not good enough."""
    start, figures = time.perf_counter(), []
    for attempt in range(1, ATTEMPTS + 1):
        rng = stream(seed, recipe.name, "training", str(attempt))
        with isolated(int(rng.integers(2**62))), shown(progress, recipe, seed) as step:
            fresh = recipe.build().train()
            recipe.train(fresh, rng, step)
            fresh.eval()
            accuracy = {kind: round(float(share), 4) for kind, share in recipe.grade(fresh).items()}
        figures.append(accuracy)
        if all(share >= NEEDED for share in accuracy.values()):
            model.load_state_dict(fresh.state_dict())
            seconds = round(time.perf_counter() - start, 1)
            return {"accuracy": accuracy, "attempts": attempt, "training_seconds": seconds}
        logger.warning("%s, seed %d, attempt %d: right on %s", recipe.name, seed, attempt, _shares(accuracy))
    raise TaskError(
        f"{recipe.name}, seed {seed}: {ATTEMPTS} models were trained, right on "
        + "; ".join(_shares(accuracy) for accuracy in figures),
        needed=f"{NEEDED:.0%} of the held-out inputs of every kind",
        causes=["another version of torch trains differently", "an unlucky seed"],
        tries=["another seed"],
    )


def _shares(accuracy: Mapping[str, float]) -> str:
    return ", ".join(f"{share:.1%} of {kind}" for kind, share in accuracy.items())


@contextmanager
def isolated(seed: int) -> Iterator[None]:
    """Torch's generator seeded, gradients on, one thread; afterwards all of it as it was.

    One thread, because sums in another order are other weights, and because these networks are too small for two.
    """
    threads = torch.get_num_threads()
    with torch.random.fork_rng(devices=[]), torch.inference_mode(False), torch.enable_grad():
        torch.default_generator.manual_seed(seed)
        torch.set_num_threads(1)
        try:
            yield
        finally:
            torch.set_num_threads(threads)


@contextmanager
def shown(progress: Progress | None, recipe: Recipe, seed: int) -> Iterator[Callable[[int], None]]:
    """Something to call with the number of steps done: the given function, a bar on a terminal, or nothing."""
    total = recipe.steps
    if progress is not None:
        yield lambda done: progress(done, total)
    elif not sys.stderr.isatty():
        yield lambda done: None
    else:
        from rich.console import Console
        from rich.progress import Progress as Bar

        with Bar(console=Console(stderr=True), transient=True) as bar:
            shown_as = bar.add_task(f"training {recipe.name}, seed {seed}", total=total)
            yield lambda done: bar.update(shown_as, completed=done)


def one_cycle(optimiser: torch.optim.Optimizer, steps: int, warm: float = 0.1) -> Callable[[int], None]:
    """A function that sets the learning rate before a step: up in a straight line, then down on a cosine."""
    peaks = [group["lr"] for group in optimiser.param_groups]

    def set_rate(step: int) -> None:
        done = (step + 1) / steps
        share = done / warm if done < warm else 0.5 * (1 + math.cos(math.pi * (done - warm) / (1 - warm)))
        for group, peak in zip(optimiser.param_groups, peaks):
            group["lr"] = peak * max(share, 1e-4)

    return set_rate
