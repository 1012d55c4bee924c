"""The engine that runs on many machines: Ray Data over actors that each hold a model."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from causalmad import errors
from causalmad.errors import CausalmadError, ModelError, SpecError
from causalmad.extraction.engine import Counted, Rows, Values, Work, chunk_values
from causalmad.inputs import Inputs
from causalmad.models import open_model
from causalmad.models.computed import first_change, record
from causalmad.models.fingerprint import first_difference
from causalmad.signatures.base import State


@dataclass(frozen=True)
class Ray:
    """Computes on the workers of a Ray cluster, or on those of this machine where Ray is not running yet.

    Every worker is an actor with a model of its own, on which the signature is restored as from a saved detector. Rows
    come back chunk by chunk, as soon as they are there; a worker that dies is started again, with the chunk that it
    had. The rows are those of the local engine, and the same bits where workers have as many threads.

    Args:
        workers: how many; by default one for each GPU that the cluster has, where the model is on one or ``gpus`` are
            asked for, and otherwise one for each ``cpus``.
        cpus: processors, and threads, of a worker.
        gpus: of a worker; by default 1 where the model is on a GPU, otherwise none.
        model: makes the model on a worker; without it the model travels there. It has to have the same weights.

    Raises:
        SpecError: when Ray is not installed, or an option is no number of things.

    References:
        Moritz et al. 2018, arXiv 1712.05889 (Ray).
    """

    workers: int | None = None
    cpus: int = 1
    gpus: float | None = None
    model: Callable[[], Any] | None = None

    def __post_init__(self) -> None:
        if self.cpus < 1 or (self.workers is not None and self.workers < 1) or (self.gpus or 0) < 0:
            raise SpecError(f"{self!r}", needed="at least one worker with at least one processor")

    def run(self, work: Work, chunks: Iterable[Rows], done: Counted) -> Iterator[tuple[Rows, Values]]:
        """See :class:`causalmad.extraction.engine.Engine`.

        Raises:
            ModelError: when a worker fails for another reason than an input or the model it makes.
            SpecError: when Ray is not installed, or workers cannot make the signature again.
        """
        ray = _ray()
        parcel = self._parcel(work)
        parts = list(chunks)
        if not parts:
            return
        width = len(work.signature.columns)
        with _running(ray):
            gpus = self.gpus if self.gpus is not None else float(work.model.device.type == "cuda")
            # Chunks stay with this process, so that none is lost with a worker.
            held = [ray.put(work.inputs[rows]) for rows in parts]
            numbers = ray.data.from_items([{"number": i} for i in range(len(parts))], override_num_blocks=len(parts))
            found = numbers.map_batches(
                Worker,
                fn_constructor_args=(ray.put(parcel), held),
                compute=ray.data.ActorPoolStrategy(size=min(self._workers(ray, gpus), len(parts))),
                batch_size=1,
                num_cpus=self.cpus,
                num_gpus=gpus,
            )
            try:
                for batch in found.iter_batches(batch_size=None, batch_format="numpy"):
                    for number, data, error in zip(batch["number"], batch["rows"], batch["error"], strict=True):
                        if error:
                            raise _error_from(str(error))
                        rows = parts[int(number)]
                        values = np.frombuffer(data, dtype=np.float32).reshape(len(rows), width)
                        done(len(rows))
                        yield rows, values
            except ray.exceptions.RayError as error:
                raise ModelError(
                    f"a worker failed: {type(error).__name__}: {error}",
                    causes=["too little memory", "causalmad or the model's code is not installed on a worker"],
                    tries=['engine="local", to see the error alone'],
                ) from error

    def _workers(self, ray: Any, gpus: float) -> int:
        if self.workers is not None:
            return self.workers
        there = ray.cluster_resources()
        return max(int(there.get("GPU", 0) / gpus if gpus else there.get("CPU", 1) / self.cpus), 1)

    def _parcel(self, work: Work) -> Parcel:
        model = work.model
        if work.spec is None:
            raise SpecError(
                f"a {type(work.signature).__name__} does not know its spec, of which workers make it again",
                tries=["extract(fitted_detector, ...)", "spec=the signature that was fitted"],
            )
        if getattr(model.engine, "remote", False):
            raise SpecError("a remote model on Ray's workers", tries=['engine="local"'])
        return Parcel(
            work.spec,
            work.signature.state(),
            self.model or model.module,
            {"engine": model.engine.name, "side": model.side},
            "auto" if model.batching.auto else model.batch_size,
            model.parameter_fingerprints() if self.model else {},
            record(model.module) if self.model else {},
            self.cpus,
        )


@dataclass(frozen=True, eq=False)
class Parcel:
    """What a worker needs to make the fitted signature again.

    Attributes:
        spec: the signature.
        state: what it learned.
        model: the module, or what makes it.
        options: of :func:`causalmad.open_model`.
        batch_size: inputs a batch.
        parameters: fingerprints that a model made there must have.
        buffers: the record of what the model computes itself, likewise.
        threads: of torch.
    """

    spec: Any
    state: State
    model: nn.Module | Callable[[], Any]
    options: dict[str, Any]
    batch_size: Any
    parameters: dict[str, str]
    buffers: dict[str, Any]
    threads: int


class Worker:
    """An actor with a model: from the number of a chunk to its rows.

    Args:
        parcel: reference of a :class:`Parcel`.
        chunks: references of the inputs of every chunk.
    """

    def __init__(self, parcel: Any, chunks: list[Any]) -> None:
        ray = _ray()
        self.chunks, self.get, self.error = chunks, ray.get, ""
        try:
            self.compute = self._prepared(ray.get(parcel), bool(ray.get_gpu_ids()))
        except CausalmadError as error:
            self.error = _error_to(error)

    def _prepared(self, given: Parcel, gpu: bool) -> Callable[[Inputs], Values]:
        torch.set_num_threads(given.threads)
        made = given.model if isinstance(given.model, nn.Module) else given.model()
        opened = open_model(made, **given.options, batch_size=given.batch_size)
        if given.parameters:
            difference = first_difference(given.parameters, opened.parameter_fingerprints())
            difference = difference or first_change(given.buffers, opened.module)
            if difference:
                raise ModelError(
                    f"the model that a worker made is another one: {difference}",
                    needed="the very weights on which the signature was fitted",
                )
        if gpu and opened.device.type == "cpu":
            opened.module.to("cuda")
        signature = given.spec.restore(opened, given.state)
        return lambda inputs: chunk_values(signature, opened, inputs, _uncounted)

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """The rows of each chunk, as bytes; or what went wrong, since Ray would hand on only a text of it."""
        rows, said = [], []
        for number in batch["number"]:
            values, error = b"", self.error
            try:
                if not error:
                    values = self.compute(self.get(self.chunks[int(number)])).tobytes()
            except CausalmadError as raised:
                error = _error_to(raised)
            rows.append(values)
            said.append(error)
        return {"number": batch["number"], "rows": _objects(rows), "error": _objects(said)}


@contextmanager
def _running(ray: Any) -> Iterator[None]:
    """Ray, started where it was not and then ended again, without bars on the screen."""
    started = not ray.is_initialized()
    if started:
        ray.init(include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    context = ray.data.DataContext.get_current()
    before = context.enable_progress_bars
    context.enable_progress_bars = False
    try:
        yield
    finally:
        context.enable_progress_bars = before
        if started:
            ray.shutdown()


def _ray() -> Any:
    try:
        ray = importlib.import_module("ray")
        importlib.import_module("ray.data")
    except ImportError as error:
        raise SpecError(
            f'engine="ray" needs Ray: {error}', tries=["pip install 'causalmad[ray]'", 'engine="local"']
        ) from error
    return ray


def _error_to(error: CausalmadError) -> str:
    parts = {"what": error.what, "needed": error.needed, "causes": error.causes, "tries": error.tries}
    return json.dumps({"class": type(error).__name__, **parts})


def _error_from(text: str) -> CausalmadError:
    data = json.loads(text)
    found = getattr(errors, data.pop("class"), CausalmadError)
    kind = found if isinstance(found, type) and issubclass(found, CausalmadError) else CausalmadError
    return kind(data.pop("what"), **data)


def _objects(values: list[Any]) -> npt.NDArray[Any]:
    """Texts or bytes as an array of objects, whatever their lengths."""
    found = np.empty(len(values), dtype=object)
    found[:] = values
    return found


def _uncounted(rows: int) -> None:
    """Rows are counted where they arrive."""
