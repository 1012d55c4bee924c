"""``extract``: signatures of any number of inputs."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator
from typing import Any, Literal, TypeAlias

import numpy as np

from causalmad.digests import ABSENT, Keys, first_rows
from causalmad.errors import CacheError, SpecError
from causalmad.extraction.address import row_keys
from causalmad.extraction.cache import Keeps, Kept, opened
from causalmad.extraction.circumstances import main_argument
from causalmad.extraction.engine import Engine, Local, Rows, Work
from causalmad.extraction.ray import Ray
from causalmad.extraction.result import Extraction
from causalmad.extraction.shards import Shard
from causalmad.inputs import Inputs
from causalmad.models import OpenModel, open_model
from causalmad.models.padding import apart
from causalmad.moments import Moments
from causalmad.signatures.base import FittedSignature, Signatures

Progress: TypeAlias = Callable[[str, int, int], None]

SHARD = 1024


def extract(
    signature: Any,
    inputs: Any,
    *,
    cache: Keeps = None,
    engine: Literal["local", "ray"] | Engine = "local",
    moments: bool = False,
    progress: Progress | None = None,
    spec: Any = None,
    model: Any = None,
    shard: int = SHARD,
) -> Extraction:
    """Signatures of any number of inputs, of which none is computed twice.

    With a cache, every ``shard`` rows are on disk before the next are begun: after a kill the same call goes on where
    it was. In memory are one batch and one shard, until the result is asked for ``values``.

    Args:
        signature: a fitted signature, or a fitted detector for the one inside.
        inputs: whatever :meth:`Inputs.of` takes.
        cache: a folder, or an opened :class:`Cache`; several processes may share it.
        engine: ``"local"``, ``"ray"``, or a ``causalmad.extraction.Ray`` with its options.
        moments: whether mean and covariance of all rows are wanted, merged as the rows come.
        progress: called with (what is being done, rows done, rows in all).
        spec: what ``signature`` is the fit of, where it is a signature that does not know (a cache needs it).
        model: the model of ``signature``, where it does not know.
        shard: rows a file of the cache, and all that a kill can cost.

    Raises:
        CacheError: when the folder cannot be used, or the signature is one that cannot be saved.
        SpecError: on an unknown engine, or a signature without its model.

    Example:
        >>> import torch, causalmad as cm
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> data = torch.randn(30, 4, generator=torch.Generator().manual_seed(0))
        >>> opened = cm.open_model(net)
        >>> fitted = cm.signatures.Activations().fit(opened, opened.inputs(data))
        >>> cm.extract(fitted, data)
        Extraction(30 x 8, 30 rows computed, 0 found)
    """
    if isinstance(shard, bool) or not isinstance(shard, int) or shard < 1:
        raise SpecError(f"shard={shard!r}", needed="a number of rows")
    runner = _engine(engine)
    fitted, parts, view = _source(signature, spec, model)
    known, keeps = view.inputs(inputs), opened(cache)
    if keeps is None:
        # Nothing is looked up, so that positions do for keys, whatever the inputs hold.
        keys, kept = _positions(len(known)), Kept(len(fitted.columns))
    else:
        if parts is None:
            raise CacheError(
                f"a {type(fitted).__name__} does not know its spec, which is part of its address",
                tries=["extract(fitted_detector, ...)", "spec=the signature that was fitted"],
            )
        keys, kept = row_keys(known, main_argument(view, known)), keeps.of(fitted, parts, view)
    kept.refresh()
    missing = first_rows(keys)
    missing = missing[kept.find(keys[missing]) == ABSENT]
    said = progress or _silent
    done = len(known) - len(missing)
    said("computing signatures", done, len(known))

    def count(rows: int) -> None:
        nonlocal done
        done += rows
        said("computing signatures", done, len(known))

    seen = Moments.empty(len(fitted.columns)) if moments else None
    others = np.ones(len(known), dtype=bool)
    with kept.first() as first:
        chunks = _chunks(kept, keys, _ordered(view, known, missing), shard, first, count)
        for rows, values in runner.run(Work(fitted, parts, view, known), chunks, count):
            kept.add(Shard(keys[rows], values))
            others[rows] = False
            seen = None if seen is None else seen.update(values)
    computed, where = int((~others).sum()), kept.find(keys)
    if lost := int((where == ABSENT).sum()):
        raise CacheError(
            f"{lost} of {len(known)} rows are missing",
            needed="rows of every chunk from the engine",
            tries=['engine="local"'],
        )
    if seen is not None:
        for start in range(0, len(known), shard):
            seen = seen.update(kept.read(where[start : start + shard][others[start : start + shard]]))
    return Extraction(known.ids, fitted.columns, computed, len(known) - computed, where, kept, seen)


def rows_of(signature: FittedSignature, spec: Any, model: OpenModel, cache: Keeps, inputs: Inputs) -> Signatures:
    """Signatures of inputs, all in memory: through a cache where there is one, and within memory where it is short."""
    if cache is None and not model.batching.auto:
        found: Any = signature(inputs)
        if not isinstance(found, Signatures) or np.shape(found.values) != (len(inputs), len(found.columns)):
            shape = f" with values {np.shape(found.values)}" if isinstance(found, Signatures) else ""
            raise SpecError(
                f"{type(spec).__name__} gave a {type(found).__name__}{shape} for {len(inputs)} inputs",
                needed="causalmad.signatures.Signatures: ids, columns and values (inputs, columns)",
                tries=["docs/how-to/add-a-signature.md", "causalmad check my_package.my_module:MySignature"],
            )
        return found
    return extract(signature, inputs, cache=cache, spec=spec, model=model).signatures


def _source(signature: Any, spec: Any, model: Any) -> tuple[FittedSignature, Any, OpenModel]:
    """The fitted signature, its spec where that is known, and its model."""
    inner = getattr(signature, "signature", None)
    if callable(inner) and hasattr(inner, "columns") and hasattr(signature, "reference"):
        spec, model, signature = spec or signature.spec.signature, model or signature.model, inner
    if not callable(signature) or not hasattr(signature, "columns"):
        raise SpecError(
            f"a {type(signature).__name__} is no fitted signature",
            tries=["detector.fit(model, trusted)", "signature.fit(open_model(model), trusted)"],
        )
    spec = spec or getattr(signature, "spec", None)
    spec = getattr(spec, "stands_for", spec)  # what only keeps another one's results
    model = model or getattr(signature, "model", None)
    if model is None:
        raise SpecError(f"a {type(signature).__name__} does not know its model", tries=["model=open_model(model)"])
    return signature, spec, open_model(model)


def _engine(engine: str | Engine) -> Engine:
    if engine == "local":
        return Local()
    if engine == "ray":
        return Ray()
    if isinstance(engine, (str, type)) or not hasattr(engine, "run"):
        raise SpecError(f"no engine {engine!r}", tries=['"local"', '"ray"', "causalmad.extraction.Ray(workers=2)"])
    return engine


def _ordered(model: OpenModel, inputs: Inputs, rows: Rows) -> Rows:
    """Rows in the order in which they are computed: by length where inputs of one length share a batch."""
    if inputs.tokens and (model.batching.auto or apart(model, inputs)):
        return rows[np.argsort(inputs.lengths[rows], kind="stable")]
    return rows


def _chunks(kept: Kept, keys: Keys, rows: Rows, size: int, first: bool, count: Callable[[int], None]) -> Iterator[Rows]:
    """Rows to compute, a shard at a time, less what other processes have computed in the meantime."""
    parts = [rows[start : start + size] for start in range(0, len(rows), size)]
    if not first:  # another process goes from the start to the end: whoever joins it goes another way
        random.Random(os.getpid()).shuffle(parts)
    for part in parts:
        kept.refresh()
        missing = part[kept.find(keys[part]) == ABSENT]
        if len(missing) < len(part):
            count(len(part) - len(missing))
        if len(missing):
            yield missing


def _positions(count: int) -> Keys:
    pairs = np.zeros((count, 2), dtype=np.uint64)
    pairs[:, 0] = np.arange(count)
    return pairs.view(np.uint8).reshape(count, 16)


def _silent(what: str, done: int, total: int) -> None:
    """Progress that nobody asked for."""
