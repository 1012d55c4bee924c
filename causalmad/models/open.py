"""``open_model``: from whatever people have to one protocol."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Literal

from torch import nn

from causalmad.errors import ModelError
from causalmad.models.architectures import recognise
from causalmad.models.base import Engine, OpenModel
from causalmad.models.hooks import Hooks


def open_model(
    model: Any,
    *,
    tokenizer: Callable[..., Any] | None = None,
    engine: Literal["hooks", "nnsight"] = "hooks",
    side: Literal["left", "right"] | None = None,
    batch_size: int = 64,
) -> OpenModel:
    """A model that every function of this library takes; nothing stays on the model itself.

    Args:
        model: an ``nn.Module``, a transformers model, an ``nnsight.NNsight``, ``TransformersModel`` or
            ``LanguageModel``, a ``pyvene.IntervenableModel``, a TransformerLens model, or an opened model.
        tokenizer: turns a list of texts into ``{"input_ids": ...}``; taken from an nnsight or TransformerLens model.
        engine: ``hooks`` (plain PyTorch) or ``nnsight`` (through ``trace``).
        side: where token rows are padded; by default left for causal language models and right for others.
        batch_size: inputs a batch, at most.

    Returns:
        The opened model.

    Raises:
        ModelError: when there is no module in ``model``, or no such engine.

    Example:
        >>> from torch import nn
        >>> open_model(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))).sites("layers")
        (Site(path='1', side='output', element=None, heads=(), neurons=(), position=None, head_count=0),)
    """
    if isinstance(model, OpenModel):
        return replace(model, tokenizer=tokenizer or model.tokenizer, side=side or model.side)
    module, found = _unwrap(model)
    accepts, positional = _arguments(module)
    causal = getattr(getattr(module, "config", None), "is_encoder_decoder", None) is False and "logits_to_keep" in accepts
    return OpenModel(
        module=module,
        handle=module if engine == "hooks" else _nnsight_handle(model, module),
        engine=_engine(engine),
        architecture=recognise(module),
        tokenizer=tokenizer or found,
        accepts=accepts,
        positional=positional,
        side=side or ("left" if causal or positional else "right"),
        batch_size=batch_size,
    )


def _unwrap(model: Any) -> tuple[nn.Module, Callable[..., Any] | None]:
    """The plain module inside a wrapper, and the wrapper's tokenizer."""
    tokenizer = getattr(model, "tokenizer", None)
    # Neither library is imported here: a model of theirs can only exist once they are.
    nnsight, pyvene = sys.modules.get("nnsight"), sys.modules.get("pyvene")
    if nnsight is not None and isinstance(model, nnsight.Envoy):
        return model._module, tokenizer
    if pyvene is not None and isinstance(model, pyvene.IntervenableModel):
        return model.model, tokenizer
    if isinstance(model, nn.Module):
        return model, tokenizer if callable(tokenizer) else None
    raise ModelError(
        f"a {type(model).__name__} is no model",
        needed="an nn.Module, or a model of transformers, nnsight, pyvene or TransformerLens",
        tries=["AutoModelForCausalLM.from_pretrained(path)", "open_model(wrapper.model)"],
    )


def _arguments(module: nn.Module) -> tuple[frozenset[str], bool]:
    """Names of the arguments of ``forward``, and whether tokens go in as the first positional one."""
    forward = inspect.signature(type(module).forward)
    names = frozenset(forward.parameters) - {"self"}
    lens = hasattr(module, "hook_dict") and hasattr(module, "cfg")
    return names, lens or "input_ids" not in names


def _engine(name: str) -> Engine:
    if name == "hooks":
        return Hooks()
    if name == "nnsight":
        from causalmad.models.nnsight import Traces

        return Traces()
    raise ModelError(f"no engine {name!r}", tries=["'hooks'", "'nnsight'"])


def _nnsight_handle(model: Any, module: nn.Module) -> Any:
    import nnsight

    return model if isinstance(model, nnsight.Envoy) else nnsight.NNsight(module)
