"""What signatures that test a hypothesis share: the claim itself, and their pool of donors in a file."""

from __future__ import annotations

from collections.abc import Mapping

from causalmad.errors import HypothesisError
from causalmad.hypotheses import Hypothesis
from causalmad.hypotheses.pool import Pool
from causalmad.inputs import Inputs
from causalmad.packing import pack, unpack
from causalmad.signatures.base import State
from causalmad.signatures.units import Group
from causalmad.sites import Site

_PREFIX = "pool:"


def require_hypothesis(hypothesis: Hypothesis | None, name: str) -> Hypothesis:
    """The hypothesis.

    Raises:
        HypothesisError: when there is none.
    """
    if hypothesis is None:
        raise HypothesisError(
            f"{name} has no hypothesis to test",
            needed="a claim about the circuit",
            tries=[
                "hypothesis=causalmad.Hypothesis(graph)",
                "--hypothesis module:name on the command line",
                "a task that ships one, such as planted-routes",
            ],
        )
    if not isinstance(hypothesis, Hypothesis):
        raise HypothesisError(f"{name} was given a {type(hypothesis).__name__}", tries=["causalmad.Hypothesis(graph)"])
    return hypothesis


def save_pool(pool: Pool) -> State:
    """The trusted donors with everything that the claims read, and the seed of the draws.

    Raises:
        StoreError: when a column holds something else than numbers or text.
    """
    tensors, data = pack(pool.inputs)
    return State({f"{_PREFIX}{key}": value for key, value in tensors.items()}, {"pool": data, "pool_seed": pool.seed})


def restore_pool(state: State) -> tuple[Inputs, int]:
    """The trusted donors and the seed that :func:`save_pool` wrote."""
    tensors = {key.removeprefix(_PREFIX): value for key, value in state.tensors.items() if key.startswith(_PREFIX)}
    return unpack(tensors, state.data["pool"]), int(state.data["pool_seed"])


def claim_groups(sites: Mapping[str, tuple[Site, ...]]) -> tuple[Group, ...]:
    """The claimed sites as units, for repairs."""
    pairs = [(f"{claim} {site}", site) for claim, found in sites.items() for site in found]
    return (Group("claim", tuple(name for name, _ in pairs), tuple(site for _, site in pairs)),)
