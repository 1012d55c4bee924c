"""The laws of models on a model of one's own, and what the roles mean on it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn

from causalmad.errors import InputsError, SiteError
from causalmad.inputs import Inputs
from causalmad.models import OpenModel, open_model
from causalmad.models.resolve import ROLES
from causalmad.testing.model_laws import MODEL_LAWS, law_padding_changes_nothing, subject
from causalmad.testing.outcomes import LawReport, Outcome, try_law

FEW = 8  # inputs that the laws are tried on
ON = "the model"


@dataclass(frozen=True)
class Role:
    """What a role means on a model.

    Attributes:
        name: such as ``residual``.
        count: how many sites.
        first: the first of them, in site form.
        last: the last of them.
        refusal: why there are none, where there are none.
    """

    name: str
    count: int
    first: str = ""
    last: str = ""
    refusal: str = ""


@dataclass(frozen=True)
class ModelReport:
    """A model that was examined.

    Attributes:
        model: how it was opened, in a line.
        inputs: how many it was run on.
        roles: what every role means on it.
        laws: what came of the laws.
    """

    model: str
    inputs: int
    roles: tuple[Role, ...]
    laws: LawReport

    @property
    def holds(self) -> bool:
        """Whether no law is broken."""
        return self.laws.holds

    def table(self) -> Any:
        """A rich table of the roles."""
        from rich.table import Table
        from rich.text import Text

        table = Table(title=Text(self.model), title_justify="left", min_width=min(len(self.model), 100))
        for heading, side in (("role", "left"), ("sites", "right"), ("first", "left"), ("last", "left")):
            table.add_column(heading, justify=side)  # type: ignore[arg-type]
        for role in self.roles:
            table.add_row(role.name, str(role.count), Text(role.first or role.refusal), Text(role.last))
        return table

    def to_data(self) -> dict[str, Any]:
        """The report as JSON data."""
        return {
            "model": self.model,
            "holds": self.holds,
            "inputs": self.inputs,
            "roles": [asdict(role) for role in self.roles],
            "laws": self.laws.to_data()["laws"],
        }


def examine(
    module: nn.Module, inputs: Inputs, name: str, *, step: Callable[[str, int, int], None] | None = None
) -> ModelReport:
    """Every law of models on a module, and its roles; of the inputs, the first few are used.

    The weights are copied to compare them, so that three times their memory is needed.

    Args:
        module: stays as it is, if the laws hold.
        inputs: what it can be called with.
        name: how the model is called in the report.
        step: called after every law.

    Raises:
        ModelError: when the model cannot be run on the inputs at all.
    """
    model, few = open_model(module), inputs[:FEW]
    for batch in model.batches(few):  # inputs that do not fit would break every law, and be no word about the model
        model.logits(batch)
    outcomes = []
    for number, law in enumerate(MODEL_LAWS, 1):
        if law is law_padding_changes_nothing and not few.tokens:
            outcomes.append(Outcome(law.__name__, ON, "does not apply", "the inputs are no tokens"))
        else:
            outcomes.append(try_law(law, name, ON, subject(name, module, few)))
        if step is not None:
            step("laws", number, len(MODEL_LAWS))
    roles = tuple(_role(model, role) for role in ROLES)
    return ModelReport(f"{name}: {model!r}", len(few), roles, LawReport(name, "models", tuple(outcomes)))


def made_up(model: OpenModel, count: int = FEW) -> Inputs:
    """Inputs that a transformers model takes: random tokens of differing lengths, or random images.

    Raises:
        InputsError: when the model's configuration doesn't say what it takes.
    """
    config = getattr(model.module, "config", None)
    draw = torch.Generator().manual_seed(0)
    words = getattr(config, "vocab_size", None)
    if isinstance(words, int) and "input_ids" in model.accepts:
        known = set(range(min(words, 1000))) - {getattr(config, "pad_token_id", None)}
        ids = torch.tensor(sorted(known))
        lengths = [3 + i % 6 for i in range(count)]
        return model.inputs({"input_ids": [ids[torch.randint(len(ids), (size,), generator=draw)] for size in lengths]})
    size, colours = getattr(config, "image_size", None), getattr(config, "num_channels", 3)
    if size is not None and "pixel_values" in model.accepts:
        height, width = (size, size) if isinstance(size, int) else size
        return model.inputs({"pixel_values": torch.randn(count, colours, height, width, generator=draw)})
    raise InputsError(f"what {model.name} is called with cannot be told from it", tries=["--inputs FILE.jsonl"])


def _role(model: OpenModel, name: str) -> Role:
    try:
        sites = model.sites(name)
    except SiteError as error:
        return Role(name, 0, refusal=error.what)
    return Role(name, len(sites), str(sites[0]), str(sites[-1]))
