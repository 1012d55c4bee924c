"""Reconstruction of a row by a small variational autoencoder of the trusted rows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from causalmad.config import require_options
from causalmad.errors import FitError, InputsError, SpecError
from causalmad.references.base import as_rows, resolution
from causalmad.references.covariance import Spread
from causalmad.references.state import frozen, restored
from causalmad.references.whitening import spread_of

Array = npt.NDArray[np.float64]

_BATCH = 256
_RATE = 1e-2
_LARGEST_LOG = 8.0  # log variances of codes stay within plus and minus this


@dataclass(frozen=True)
class VariationalAutoencoder:
    """What a small variational autoencoder, trained on trusted rows, cannot reconstruct of a row.

    Rows r in trusted units are encoded by d -> hidden (tanh) -> mean m and log variance of a Gaussian code, and decoded
    by latents -> hidden (tanh) -> d. The anomaly score is

        1/2 ||r - decode(m)||^2 + beta KL(code || N(0, I))

    in which the code is its mean: *no noise is drawn to score a row*, so the same row always has the same score.
    Training minimises the same sum with a drawn code, by Adam on batches of at most 256 rows. The tanh is bounded, so a
    row far from all trusted ones is not reconstructed. Fit and score are in double precision, on the CPU.

    Args:
        latents: length of the code.
        hidden: width of the hidden layers.
        steps: training steps.
        beta: weight of the divergence: the variance that the decoder leaves unexplained, in trusted variances.

    References:
        Kingma, Welling 2014, arXiv 1312.6114.
    """

    latents: int = 8
    hidden: int = 64
    steps: int = 300
    beta: float = 0.1

    def __post_init__(self) -> None:
        require_options(self)
        for name in ("latents", "hidden", "steps"):
            if getattr(self, name) < 1:
                raise SpecError(f"{name}={getattr(self, name)!r}", needed="a whole number of at least 1")
        if not 0 <= self.beta < np.inf:
            raise SpecError(f"beta={self.beta!r}", needed="a number of at least 0", tries=["beta=0.1"])

    def fit(self, X: npt.ArrayLike, *, seed: int = 0) -> FittedAutoencoder:
        """The fit on trusted rows ``X`` (n, d), n at least 2; ``seed`` decides weights, batches and codes.

        Raises:
            FitError: where ``X`` is no table of finite numbers, or has too few rows.
        """
        rows = as_rows(X, what="trusted rows")
        if len(rows) < 2:
            raise FitError(f"got {len(rows)} trusted row{'s' * (len(rows) != 1)}", needed="at least 2, better 200")
        units, _ = spread_of(rows, resolution(X))
        draw = torch.Generator().manual_seed(seed)
        with torch.inference_mode(False), torch.enable_grad():
            weights = self._trained(torch.from_numpy(units.standardised(rows)), draw)
        layers = Layers(*(weight.detach().numpy().copy() for weight in weights))
        return FittedAutoencoder(units.mean, units.scale, layers, self.beta)

    def restore(self, state: Mapping[str, npt.ArrayLike]) -> FittedAutoencoder:
        """The fit that ``state`` was taken from, with the same scores to the last bit.

        Raises:
            StoreError: where an array is missing, or has another shape or broken numbers.
        """
        h, k = self.hidden, self.latents
        shapes: dict[str, tuple[str | int, ...]] = {
            "mean": ("d",), "scale": ("d",), "encode": (h, "d"), "encode_bias": (h,), "code": (2 * k, h),
            "code_bias": (2 * k,), "expand": (h, k), "expand_bias": (h,), "decode": ("d", h), "decode_bias": ("d",),
        }  # fmt: skip
        kept = restored(self, state, shapes, positive=("scale",))
        layers = Layers(*(kept[field.name] for field in fields(Layers)))
        return FittedAutoencoder(kept["mean"], kept["scale"], layers, self.beta)

    def _trained(self, rows: Tensor, draw: torch.Generator) -> list[Tensor]:
        """The weights, in the order of `Layers`, after training on rows (n, d) in trusted units."""
        n, d = rows.shape
        weights = []
        for out, inner in ((self.hidden, d), (2 * self.latents, self.hidden), (self.hidden, self.latents)):
            weights += [_normal((out, inner), draw) / inner**0.5, torch.zeros(out, dtype=torch.float64)]
        weights += [_normal((d, self.hidden), draw) / self.hidden**0.5, torch.zeros(d, dtype=torch.float64)]
        for weight in weights:
            weight.requires_grad_(True)
        optimiser = torch.optim.Adam(weights, lr=_RATE)
        decay = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, self.steps)
        for _ in range(self.steps):
            batch = rows if n <= _BATCH else rows[torch.randint(n, (_BATCH,), generator=draw)]
            encode, encode_bias, code, code_bias, expand, expand_bias, decode, decode_bias = weights
            codes = torch.tanh(batch @ encode.T + encode_bias) @ code.T + code_bias
            mean, log = codes[:, : self.latents], codes[:, self.latents :].clamp(-_LARGEST_LOG, _LARGEST_LOG)
            drawn = mean + torch.exp(log / 2) * _normal(mean.shape, draw)
            rebuilt = torch.tanh(drawn @ expand.T + expand_bias) @ decode.T + decode_bias
            divergence = (torch.exp(log) + mean**2 - 1 - log).sum() / 2
            loss = (((batch - rebuilt) ** 2).sum() / 2 + self.beta * divergence) / len(batch)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            decay.step()
        return weights


@dataclass(frozen=True, eq=False)
class Layers:
    """Weights and biases: d -> hidden -> means and log variances of the code, and latents -> hidden -> d."""

    encode: Array
    encode_bias: Array
    code: Array
    code_bias: Array
    expand: Array
    expand_bias: Array
    decode: Array
    decode_bias: Array

    def __post_init__(self) -> None:
        frozen(*(getattr(self, field.name) for field in fields(self)))

    def errors(self, rows: Array) -> tuple[Array, Array]:
        """Error (n, d) of the reconstruction from the mean code, and divergence (n,) of the code, of rows (n, d)."""
        codes = _layer(self.code, self.code_bias, np.tanh(_layer(self.encode, self.encode_bias, rows)))
        latents = len(self.code) // 2
        mean, log = codes[:, :latents], np.clip(codes[:, latents:], -_LARGEST_LOG, _LARGEST_LOG)
        rebuilt = _layer(self.decode, self.decode_bias, np.tanh(_layer(self.expand, self.expand_bias, mean)))
        return rows - rebuilt, (np.exp(log) + mean**2 - 1 - log).sum(axis=1) / 2


@dataclass(frozen=True, eq=False)
class FittedAutoencoder:
    """A trained autoencoder.

    Args:
        mean: (d,) trusted mean.
        scale: (d,) unit of each column.
        layers: its weights.
        beta: weight of the divergence.
    """

    mean: Array
    scale: Array
    layers: Layers
    beta: float

    def __post_init__(self) -> None:
        frozen(self.mean, self.scale)

    def score_samples(self, X: npt.ArrayLike) -> Array:
        """Normality (n,) of the rows of ``X`` (n, d): less the reconstruction error and the divergence of the code.

        Raises:
            InputsError: where ``X`` is no table of finite numbers with the trusted columns.
        """
        scores: Array = -self.contributions(X).sum(axis=1)
        return scores

    def contributions(self, X: npt.ArrayLike) -> Array:
        """Half the squared error of each column (n, d), and the divergence spread evenly: they sum to the score.

        Raises:
            InputsError: where ``X`` is no table of finite numbers with the trusted columns.
        """
        rows = as_rows(X, what="rows to score", columns=len(self.mean), error=InputsError)
        units = Spread(self.mean, self.scale, np.ones_like(self.scale), 0.0)
        errors, divergences = self.layers.errors(units.standardised(rows))
        parts: Array = errors**2 / 2 + self.beta * divergences[:, None] / len(self.mean)
        return parts

    def state(self) -> dict[str, Array]:
        """Arrays that `VariationalAutoencoder.restore` takes."""
        weights = {field.name: getattr(self.layers, field.name) for field in fields(Layers)}
        return {"mean": self.mean, "scale": self.scale, **weights}


def _layer(weight: Array, bias: Array, rows: Array) -> Array:
    """A linear layer, one matrix-vector product per row, so that no last bit depends on the other rows."""
    return np.ascontiguousarray(np.matmul(weight, rows[:, :, None])[:, :, 0] + bias)


def _normal(shape: tuple[int, ...], draw: torch.Generator) -> Tensor:
    return torch.randn(shape, generator=draw, dtype=torch.float64)
