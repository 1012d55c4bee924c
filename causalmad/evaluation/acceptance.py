"""What a task has to keep to be worth measuring on: a model that is right, a surface that tells nothing, sound data."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, TypeAlias

from causalmad.config import parse_spec
from causalmad.errors import SpecError, TaskError
from causalmad.evaluation.loads import WORDS, Load, look
from causalmad.evaluation.rules import Rule, another, null, plainness, right, sound, surface
from causalmad.tasks.base import Task

Progress: TypeAlias = Callable[[str, int, int], None]
"""Called with (what is being done, steps done, steps in all); 0 steps in all = their number is not known."""


@dataclass(frozen=True)
class Acceptance:
    """A task held to the rules, over several seeds.

    Attributes:
        task: as it is written on the command line.
        seeds: those it was loaded with.
        rules: all of them, kept or not.
        card: what the task says of itself: mechanism, source, licence, version, size, and what the surface tells.
        accuracy: kind of input -> share of right answers, for each seed.
        controls: name of a surface control -> its AUROC for each seed; None where it could not be fitted.
        sizes: part of the data -> number of inputs, for the first seed.
    """

    task: str
    seeds: tuple[int, ...]
    rules: tuple[Rule, ...]
    card: Mapping[str, str]
    accuracy: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    controls: Mapping[str, tuple[float | None, ...]] = field(default_factory=dict)
    sizes: Mapping[str, int] = field(default_factory=dict)

    @property
    def holds(self) -> bool:
        """Whether every rule is kept."""
        return all(rule.holds for rule in self.rules)

    @property
    def failing(self) -> tuple[str, ...]:
        """Names of the rules that are not kept."""
        return tuple(rule.name for rule in self.rules if not rule.holds)

    def table(self) -> Any:
        """A rich table of the rules."""
        from rich.table import Table
        from rich.text import Text

        verdict = "accepted" if self.holds else "not accepted"
        seeds = f"{len(self.seeds)} seed{'s' if len(self.seeds) > 1 else ''}"
        title = f"{self.task}: {verdict}, {seeds}"
        table = Table(title=Text(title), title_justify="left", min_width=min(len(title), 100))
        noted = any(rule.note for rule in self.rules)
        for heading, side in (("rule", "left"), ("worst", "right"), ("allowed", "left"), ("", "left")):
            table.add_column(heading, justify=side)  # type: ignore[arg-type]
        if noted:
            table.add_column("")
        for rule in self.rules:
            value = "none" if rule.value is None else f"{rule.value:.4g}"
            notes = [Text(rule.note)] if noted else []
            table.add_row(rule.name, value, rule.limit, "holds" if rule.holds else "BROKEN", *notes)
        return table

    def to_data(self) -> dict[str, Any]:
        """The numbers as JSON data."""
        return {
            "target": self.task,
            "kind": "tasks",
            "holds": self.holds,
            "seeds": list(self.seeds),
            "rules": [{**asdict(rule), "limit": rule.limit} for rule in self.rules],
            "card": dict(self.card),
            "accuracy": {kind: list(values) for kind, values in self.accuracy.items()},
            "controls": {name: list(values) for name, values in self.controls.items()},
            "sizes": dict(self.sizes),
        }


def accept(task: str | Task, seeds: int | Iterable[int] = 1, *, progress: Progress | None = None) -> Acceptance:
    """A task held to every rule; it is loaded twice with each seed, and once with one more where there is only one.

    Args:
        task: a task, or its text such as ``induction-lookup[shift=true]``.
        seeds: how many (from 0 on), or which.
        progress: called with what is being done.

    Raises:
        SpecError: on unknown names or options, or no seeds.
    """
    chosen = tuple(range(seeds)) if isinstance(seeds, int) else tuple(seeds)
    if not chosen or len(set(chosen)) != len(chosen):
        raise SpecError(f"seeds={seeds!r}", needed="at least one seed, each once", tries=["seeds=5", "seeds=(0, 1, 2)"])
    spec: Task = parse_spec("tasks", task) if isinstance(task, str) else task
    name = task if isinstance(task, str) else ""
    words = {key: str(getattr(spec, key, "")) for key in WORDS}
    try:
        loads, name = _loads(spec, chosen, name, progress or _silent)
    except TaskError as error:
        rule = Rule("the task loads", 0, 1, None, False, error.what)
        return Acceptance(name or type(spec).__name__, chosen, (rule,), words)
    own = [load for load in loads if load.seed in chosen]
    kinds = [kind for kind in own[0].accuracy if all(kind in load.accuracy for load in own)]
    names = dict.fromkeys(control for load in own for control in load.controls)
    return Acceptance(
        name,
        chosen,
        (*right(own), *surface(own), *null(own), *sound(own), another(loads)),
        {**words, **max(own, key=plainness).card},
        {kind: tuple(load.accuracy[kind] for load in own) for kind in kinds},
        {control: tuple(load.controls.get(control) for load in own) for control in names},
        {part: len(contents) for part, contents in own[0].contents.items()},
    )


def _loads(spec: Task, seeds: tuple[int, ...], name: str, say: Progress) -> tuple[list[Load], str]:
    """Every seed looked at, one more where there is only one, and the task's name."""
    loads = []
    for seed in (*seeds, *([seeds[0] + 1] if len(seeds) == 1 else [])):
        extra = seed not in seeds

        def training(done: int, total: int, seed: int = seed) -> None:
            say(f"seed {seed}: training", done, total)

        data = spec.load(seed, progress=training)
        say(f"seed {seed}: looking", 0, 0)
        again = None if extra else spec.load(seed, progress=training)
        loads.append(look(data, again))
        say(f"seed {seed}: looking", 1, 1)
        name = name or data.name
    return loads, name


def _silent(what: str, done: int, total: int) -> None:
    """Progress that nobody asked for."""
