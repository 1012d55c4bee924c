"""From many runs per input to columns: what replacements did to an output, over draws of donors."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from torch import Tensor
from torch.nn.functional import log_softmax

from causalmad.signatures.base import Column
from causalmad.signatures.columns import Reduced
from causalmad.signatures.effects import settled
from causalmad.targets import Target, divergence

Floats = npt.NDArray[np.float64]
Found = npt.NDArray[np.bool_]


def changes(name: str, site: str, clean: Tensor, patched: Tensor, target: Target, found: Found) -> Reduced:
    """Columns on how far patched outputs are from the clean one.

    Args:
        name: what was done, for the names of the columns.
        site: where.
        clean: (n, classes) clean logits.
        patched: (n * draws, classes) logits, the draws of an input one after the other.
        target: read-out whose change is wanted.
        found: (n * draws,) whether there was a donor; other draws don't count.

    Returns:
        (n, 5): mean and sd over draws of KL(clean || patched) in nats, mean and sd of the target's signed change, and
        the share of draws with another top class. An input without any donor has zeros.
    """
    again = clean.double().repeat_interleave(len(patched) // max(len(clean), 1), 0)
    patched = settled(patched, again)
    read = target.bind(again)
    kl = divergence(log_softmax(again, -1), log_softmax(patched, -1))
    flips = (patched.argmax(-1) != again.argmax(-1)).double()
    tables = {
        **_mean_and_sd("kl", _table(kl, clean), found.reshape(len(clean), -1)),
        **_mean_and_sd("margin", _table(read(patched) - read(again), clean), found.reshape(len(clean), -1)),
        "flips": over_draws(_table(flips, clean), found.reshape(len(clean), -1))[0],
    }
    return as_columns(name, site, tables)


def answers(name: str, site: str, right: Floats, sure: Floats, found: Found, count: int) -> Reduced:
    """Columns on whether the expected answer came out.

    Args:
        name: what was done.
        site: where.
        right: (n * draws,) 1 where the top class is the expected one.
        sure: (n * draws,) log-probability of the expected class, nats.
        found: (n * draws,) whether there was a donor.
        count: n.

    Returns:
        (n, 3): share of right answers, mean and sd of the log-probability.
    """
    shape = (count, -1)
    keep = found.reshape(shape)
    tables = _mean_and_sd("log-probability", sure.reshape(shape), keep)
    return as_columns(name, site, {"agreement": over_draws(right.reshape(shape), keep)[0], **tables})


def missing(found: list[Found], count: int) -> Reduced:
    """(n, 1) share of the draws, over everything that was done, for which there was no donor."""
    shares = 1 - np.concatenate([part.reshape(count, -1) for part in found], axis=1).mean(1)
    return Reduced((Column("without donors", unit="donors", block="donors"),), shares[:, None])


def over_draws(values: Floats, found: Found) -> tuple[Floats, Floats]:
    """(n,) mean and standard deviation over the draws that found a donor; zero where none did."""
    count = found.sum(1)
    safe = np.maximum(count, 1)
    mean = np.where(found, values, 0.0).sum(1) / safe
    spread = np.where(found, (values - mean[:, None]) ** 2, 0.0).sum(1) / safe
    return mean, np.sqrt(spread)


def as_columns(name: str, site: str, tables: dict[str, Floats]) -> Reduced:
    """Columns ``name statistic`` from statistics (n,)."""
    columns = tuple(Column(f"{name} {statistic}", site, name, block=name) for statistic in tables)
    return Reduced(columns, np.stack(list(tables.values()), axis=1))


def _mean_and_sd(name: str, values: Floats, found: Found) -> dict[str, Floats]:
    mean, spread = over_draws(values, found)
    return {name: mean, f"{name} sd": spread}


def _table(values: Tensor, clean: Tensor) -> Floats:
    return values.double().cpu().numpy().reshape(len(clean), -1)
