"""A user's own code inside an nnsight trace of an opened model, of which nothing is left afterwards."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from causalmad.errors import SpecError
from causalmad.inputs import Batch
from causalmad.models.base import OpenModel
from causalmad.models.nnsight import Traces, shipped, wrapped
from causalmad.models.places import fresh


def traced(model: OpenModel, batch: Batch, function: Callable[[Any, Any], Any], gradients: bool) -> Any:
    """What ``function(model, tracer)`` returns inside a trace of the model on a batch.

    Args:
        model: the opened model; the user's own wrapper is used where there is one, otherwise one is made for this run.
        batch: what the model is called with.
        function: the user's code.
        gradients: whether autograd is on.

    Raises:
        SpecError: when the code asks for values in another order than they run, or never returns; any other error is
            the code's or the model's own, and stays what it is.
    """
    import nnsight
    from nnsight.intervention.interleaver import OutOfOrderError

    handle = model.handle if isinstance(model.handle, nnsight.Envoy) else None
    remote = model.engine.remote if isinstance(model.engine, Traces) else False
    options = {"remote": remote} if remote else {}
    found: dict[str, Any] = {}
    with model.quiet(), torch.inference_mode(False), torch.set_grad_enabled(gradients):
        args, named = fresh(*batch.call)
        kwargs: dict[str, Any] = {**named, **({"use_cache": False} if "use_cache" in model.accepts else {})}
        with (
            _differentiable(model.module, gradients),
            wrapped(model.module, handle, marked=bool(remote)) as envoy,
            shipped(bool(remote)),
        ):
            try:
                with envoy.trace(*args, **options, **kwargs) as tracer:
                    found = nnsight.save({})
                    found["result"] = function(envoy, tracer)
            except OutOfOrderError as error:
                order = "values in the order in which the model computes them"
                raise SpecError(f"the trace could not go back: {error}", needed=order) from error
    if "result" not in found:
        raise SpecError("the trace ended before the function returned", causes=["tracer.stop() in the function"])
    return found["result"]


@contextmanager
def _differentiable(module: nn.Module, wanted: bool) -> Iterator[None]:
    """Parameters that make everything after them differentiable, whatever becomes of their own gradients."""
    values = [(value, value.grad) for value in module.parameters() if value.is_floating_point()] if wanted else []
    try:
        for value, _ in values:
            value.grad = None  # a backward() in the user's code adds to a new one
            value.requires_grad_(True)
        yield
    finally:
        for value, grad in values:
            value.requires_grad_(False)  # as quiet() left it
            value.grad = grad
