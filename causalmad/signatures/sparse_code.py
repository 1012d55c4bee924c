"""Sparse code: activations, or attributions, in the latents of a sparse autoencoder."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from causalmad.config import require_options
from causalmad.errors import FitError
from causalmad.inputs import Batch, Inputs
from causalmad.models import OpenModel
from causalmad.signatures.activations import Activations
from causalmad.signatures.activations import features as features_at
from causalmad.signatures.autoencoders import Autoencoder, load, train
from causalmad.signatures.base import Column, Signatures, State, require_inputs, signatures
from causalmad.signatures.kept import distinct, own_rows
from causalmad.signatures.table import table
from causalmad.sites import Site
from causalmad.targets import Readout, Target, TopMargin, as_target

_COUNTS = ("active latents", "novel latents", "novel sum", "reconstruction error")


@dataclass(frozen=True)
class SparseCode:
    """Latents of a sparse autoencoder, and how far it fails: novel latents, and what it does not reconstruct.

    Args:
        site: one role, path or site; ``auto`` is the middle one of the residual streams of a known architecture, or of
            the nonlinear layers of any other module.
        position: which token: a number (``-1`` is the last real one), the name of a position column, or ``all`` for
            the mean over the tokens. Inputs that are no tokens are averaged over space.
        basis: ``activations``, the latents themselves, or ``attributions``, each latent times the slope of the target
            along its decoder direction, in the target's unit.
        weights: a safetensors file (``W_enc``, ``b_enc``, ``W_dec``, ``b_dec``), a folder of sae-lens, or
            ``release:id`` of one on the hub (with the extra ``sae``); without it one is trained on trusted inputs.
        latents: how many latents are trained.
        k: how many of them are active in an input; also of an autoencoder in a file without a configuration, where 0
            keeps all positive ones.
        steps: batches of training.
        most: columns for single latents: those of the largest trusted energy (sum of squares).
        target: what is attributed, by default the margin of the model's own answer.

    Columns are these latents, in the autoencoder's unit or the target's; the number of active latents; the number of
    those that no trusted input has, and the sum of their values; and the norm of what is not reconstructed, over the
    root mean square distance of trusted activations from their mean.

    One half of the trusted inputs trains the autoencoder, and the reference leaves these out: it reconstructs what it
    has seen better than anything new. Whether a latent is novel is asked of all trusted inputs but the input itself.

    References:
        Top-k autoencoders: Gao et al. 2024, arXiv 2406.04093. Counts of novel latents: Mechanistic anomaly detection
        research update, EleutherAI 2024.
    """

    site: str = "auto"
    position: int | str = -1
    basis: Literal["activations", "attributions"] = "activations"
    weights: str | None = None
    latents: int = 256
    k: int = 16
    steps: int = 400
    most: int = 64
    target: Target | Readout = field(default_factory=TopMargin)

    def __post_init__(self) -> None:
        require_options(self)
        if self.basis not in ("activations", "attributions"):
            raise FitError(f"basis={self.basis!r}", needed="'activations' or 'attributions'")
        if self.basis == "attributions" and str(self.position).partition(":")[2] not in ("", "mean"):
            raise FitError(f"attributions at position={self.position!r}", needed="a token, or 'all', their mean")
        least = 1 if self.weights is None else 0
        if min(self.latents, self.steps, self.most) < 1 or self.k < least or self.k > self.latents:
            raise FitError(
                f"latents={self.latents}, k={self.k}, steps={self.steps}, most={self.most}",
                needed="at least 1 of each, and no more active latents than there are",
            )

    def fit(self, model: OpenModel, trusted: Inputs, seed: int = 0) -> FittedSparseCode:
        """Train or read the autoencoder, and learn which latents trusted inputs have.

        Raises:
            FitError: when there are fewer than 4 distinct inputs, or the autoencoder has another width than the site.
            SiteError: when the site does not exist.
        """
        require_inputs(trusted)
        site = self._site(model)
        reader = Activations(str(site), self.position).fit(model, trusted)
        (site,) = reader.sites
        kept = distinct(trusted, least=4)
        values = torch.from_numpy(reader(kept).values)
        donors: tuple[str, ...] = ()
        if self.weights is None:
            half = np.sort(np.random.default_rng([seed, 6]).permutation(len(kept))[: len(kept) // 2])
            donors = tuple(kept.digests[row] for row in half)
            code = train(values[half], self.latents, self.k, self.steps, seed)
        else:
            code = load(self.weights, self.k)
            if code.W_enc.shape[0] != values.shape[1]:
                raise FitError(
                    f"an autoencoder of {code.W_enc.shape[0]} features at {site}, which has {values.shape[1]}",
                    tries=["site= the place on which it was trained"],
                )
        found = code.encode(values)
        energy = found.double().square().sum(0)
        order = torch.argsort(energy, descending=True, stable=True)[: self.most]
        chosen = order[energy[order] > 0].sort().values
        active = (found > 0).to(torch.int64)
        size = (values.double() - values.double().mean(0)).square().sum(1).mean().sqrt().float().clamp(min=1e-6)
        return FittedSparseCode(
            self, model, site, code, chosen, active.sum(0), active.to(torch.bool), size, kept.digests, donors
        )

    def restore(self, model: OpenModel, state: State) -> FittedSparseCode:
        """The fitted signature that wrote ``state``."""
        tensors, data = state.tensors, state.data
        (site,) = model.sites(str(data["site"]))
        code = Autoencoder.of(tensors, int(data["k"]), float(data["scale"]))
        own = {name: tensors[name] for name in ("chosen", "support", "active", "size")}
        digests, donors = tuple(map(str, data["digests"])), tuple(map(str, data["donors"]))
        return FittedSparseCode(self, model, site, code, **own, digests=digests, donor_digests=donors)

    def _site(self, model: OpenModel) -> Site:
        if self.site == "auto":
            sites = model.sites("residual" if model.architecture else "layers")
            return sites[len(sites) // 2]
        sites = model.sites(self.site)
        if len(sites) != 1:
            raise FitError(f"site={self.site!r} is {len(sites)} sites", needed="one", tries=list(map(str, sites[:3])))
        return sites[0]


@dataclass(frozen=True, eq=False)
class FittedSparseCode:
    """The sparse code of one site of a model.

    Attributes:
        spec: what was fitted.
        model: the model.
        site: where the activation is.
        code: the autoencoder.
        chosen: (columns,) the latents that have a column.
        support: (latents,) how many trusted inputs have each.
        active: (trusted, latents) which trusted input has which.
        size: () root mean square distance of trusted activations from their mean.
        digests: contents of the trusted inputs.
        donor_digests: contents of those that trained the autoencoder, which the reference leaves out.
    """

    spec: SparseCode
    model: OpenModel
    site: Site
    code: Autoencoder
    chosen: Tensor
    support: Tensor
    active: Tensor
    size: Tensor
    digests: tuple[str, ...]
    donor_digests: tuple[str, ...]

    @property
    def columns(self) -> tuple[Column, ...]:
        """What the numbers are."""
        site, position = str(self.site), "" if self.site.position is None else str(self.site.position)
        latents = [(f"latent {i}", f"{self.spec.basis} of latents") for i in self.chosen.tolist()]
        rest = [(name, name) for name in _COUNTS]
        return tuple(Column(f"{site} {unit}", site, unit, position, block) for unit, block in [*latents, *rest])

    def __call__(self, inputs: Any) -> Signatures:
        """(n, d) latents and counts; one forward pass, and a backward pass for attributions."""
        known = self.model.inputs(inputs)
        own = own_rows(known, self.digests)

        def rows(batch: Batch) -> Tensor:
            return self._rows(batch, own[batch.rows])

        return signatures(known, self.columns, table(self.model, known, len(self.columns), rows))

    def state(self) -> State:
        """The autoencoder, and which latents trusted inputs have."""
        own = {name: getattr(self, name) for name in ("chosen", "support", "active", "size")}
        data = {"site": str(self.site), "k": self.code.k, "scale": self.code.scale}
        lists = {"digests": list(self.digests), "donors": list(self.donor_digests)}
        return State({**self.code.tensors(), **own}, {**data, **lists})

    def _rows(self, batch: Batch, own: npt.NDArray[np.int64]) -> Tensor:
        place = self.site.place
        attributed = self.spec.basis == "attributions"
        target = as_target(self.spec.target) if attributed else None
        run = self.model.run(batch, read=[place], target=target, output=attributed)
        values = features_at(run.values[place], self.site, batch).float().cpu()
        latents = self.code.encode(values)
        shown = latents[:, self.chosen]
        if attributed:
            slopes = self._slopes(run.values[place], run.grads[place], batch).float().cpu()
            shown = shown * (slopes @ self.code.W_dec[self.chosen].T) * self.code.scale
        index = torch.from_numpy(own)
        # A trusted input is no witness for itself.
        witnesses = self.support - torch.where((index >= 0)[:, None], self.active[index].long(), 0)
        novel = (latents > 0) & (witnesses == 0)
        error = (values - self.code.decode(latents)).norm(dim=1) / self.size
        counts = [(latents > 0).sum(1), novel.sum(1), torch.where(novel, latents, 0).sum(1), error]
        return torch.cat([shown, torch.stack([count.float() for count in counts], 1)], 1)

    def _slopes(self, value: Tensor, slope: Tensor, batch: Batch) -> Tensor:
        """(batch, features) the target's change per change of what the site's features are.

        Where they are a mean over tokens or space, all that enters the mean moves together: the slopes add up.
        """
        with torch.enable_grad():
            where = value.detach().clone().requires_grad_(True)
            weight = torch.autograd.grad(features_at(where, self.site, batch).sum(), where)[0]
        return features_at(slope, self.site, batch) / weight.flatten(1).amax(1, keepdim=True)
