"""What came of laws that were tried on a part: a table, and the reasons."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, TypeAlias

from causalmad.errors import CausalmadError
from causalmad.testing.law import EXCUSED, LawBroken

Status: TypeAlias = Literal["holds", "excused", "does not apply", "broken"]


@dataclass(frozen=True)
class Outcome:
    """One law, tried once.

    Attributes:
        law: name of the function, such as ``law_rows_stand_alone``.
        on: the toy or the model that it was tried on.
        status: whether it holds.
        reason: why not, where it does not hold.
    """

    law: str
    on: str
    status: Status
    reason: str = ""

    @property
    def words(self) -> str:
        """The law's name in words."""
        return self.law.removeprefix("law_").replace("_", " ")


@dataclass(frozen=True)
class LawReport:
    """All laws of a part.

    Attributes:
        part: as it was asked for.
        kind: ``signatures``, ``references``, ``calibrators``, ``detectors`` or ``models``.
        outcomes: one for each law on each toy.
    """

    part: str
    kind: str
    outcomes: tuple[Outcome, ...]

    @property
    def broken(self) -> tuple[Outcome, ...]:
        """The laws that do not hold."""
        return tuple(outcome for outcome in self.outcomes if outcome.status == "broken")

    @property
    def tried(self) -> bool:
        """Whether any law could be tried at all."""
        return any(outcome.status in ("holds", "broken") for outcome in self.outcomes)

    @property
    def holds(self) -> bool:
        """Whether laws were tried and none is broken."""
        return self.tried and not self.broken

    def table(self) -> Any:
        """A rich table: a row for each law, a column for each toy."""
        from rich.table import Table
        from rich.text import Text

        columns = list(dict.fromkeys(outcome.on for outcome in self.outcomes))
        cells = {(outcome.law, outcome.on): outcome for outcome in self.outcomes}
        title = f"{self.part}: the laws of {self.kind}"
        table = Table(title=Text(title), title_justify="left", min_width=min(len(title), 100))
        table.add_column("law")
        for column in columns:
            table.add_column(Text(column))
        for law in dict.fromkeys(outcome.law for outcome in self.outcomes):
            row = [cells.get((law, column)) for column in columns]
            words = next(outcome.words for outcome in row if outcome is not None)
            found = ["" if outcome is None else outcome.status for outcome in row]
            table.add_row(Text(words), *("BROKEN" if status == "broken" else status for status in found))
        return table

    def lines(self) -> tuple[str, ...]:
        """What is broken, law by law; then why others were not held to, each reason once."""
        broken = [f"{o.law} on {o.on} is broken:\n{_indented(o.reason)}" for o in self.broken]
        others: dict[tuple[str, str, str], list[str]] = {}
        for outcome in self.outcomes:
            if outcome.status in ("excused", "does not apply"):
                laws = others.setdefault((outcome.on, outcome.status, outcome.reason), [])
                laws.append(outcome.words)
        total = len({outcome.law for outcome in self.outcomes})
        notes = [
            f"{on}: {'' if len(laws) == total else ', '.join(laws) + ' '}{status}:\n{_indented(reason)}"
            for (on, status, reason), laws in others.items()
        ]
        if not self.tried:
            notes.append(f"No law could be tried on {self.part}: it refused everything that it was tried on.")
        return (*broken, *notes)

    def to_data(self) -> dict[str, Any]:
        """The report as JSON data."""
        laws = [asdict(outcome) for outcome in self.outcomes]
        return {"target": self.part, "kind": self.kind, "holds": self.holds, "laws": laws}


def try_law(
    law: Callable[..., None],
    part: str,
    on: str,
    *args: Any,
    excused: Mapping[tuple[str, str], str] = EXCUSED,
    refusal: str = "",
    strict: bool = True,
) -> Outcome:
    """What comes of a law: whatever is raised is caught.

    Args:
        law: one of the functions of this package.
        part: the part's name in the catalogue.
        on: the toy's name.
        args: what the law is called with.
        excused: see :data:`causalmad.testing.EXCUSED`.
        refusal: with which named error the part refuses this toy; then a law that ends in one does not apply.
        strict: whether a law that holds in spite of an excuse counts as broken, as the excuse is out of date.
    """
    name = law.__name__
    keys = [(key, text) for key in (name, "*") for text in (f"{part} on {on}", part)]
    excuse = next((excused[key] for key in keys if key in excused), None)
    try:
        law(*args)
    except (LawBroken, CausalmadError) as error:
        if excuse is not None:
            return Outcome(name, on, "excused", excuse)
        if refusal and isinstance(error, CausalmadError):
            return Outcome(name, on, "does not apply", refusal)
        return Outcome(name, on, "broken", _said(error))
    except Exception as error:  # a part's own mistake, which is to be shown beside the others
        return Outcome(name, on, "broken", _said(error))
    if excuse is not None and strict:
        return Outcome(name, on, "broken", f"the law holds: drop the excuse ({excuse})")
    return Outcome(name, on, "holds")


def _said(error: Exception) -> str:
    return str(error) if isinstance(error, LawBroken) else f"{type(error).__name__}: {error}"


def _indented(text: str) -> str:
    return "\n".join(f"  {line}" for line in text.splitlines())
