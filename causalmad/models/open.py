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
from causalmad.models.batching import Batching
from causalmad.models.hooks import Hooks


def open_model(
    model: Any,
    *,
    tokenizer: Callable[..., Any] | None = None,
    engine: Literal["hooks", "nnsight"] | None = None,
    remote: bool | Literal["local"] = False,
    side: Literal["left", "right"] | None = None,
    batch_size: int | Literal["auto"] | None = None,
) -> OpenModel:
    """A model that every function of this library takes; nothing stays on the model itself.

    Args:
        model: an ``nn.Module``, a transformers model, an ``nnsight.NNsight``, ``TransformersModel`` or
            ``LanguageModel``, a ``pyvene.IntervenableModel``, a TransformerLens model, or an opened model.
        tokenizer: turns a list of texts into ``{"input_ids": ...}``; taken from an nnsight or TransformerLens model.
        engine: ``hooks`` (plain PyTorch, the default) or ``nnsight`` (through ``trace``).
        remote: where the nnsight engine runs: here (False), here after being serialised as for a server (``"local"``),
            or on NDIF's servers (True); the last two take a ``TransformersModel``.
        side: where token rows are padded; by default left for causal language models, and for classifiers that read
            the last column of a row (XLNet), and right for others.
        batch_size: inputs a batch, at most; 64 by default. ``"auto"`` sorts inputs by length, starts at 64, and halves
            the batches whenever memory runs out; no score depends on it.

    Returns:
        The opened model.

    Raises:
        ModelError: when there is no module in ``model``, no such engine, or ``tokenizer`` cannot be called.

    Example:
        >>> from torch import nn
        >>> open_model(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))).sites("layers")
        (Site(path='1', side='output', element=None, heads=(), neurons=(), position=None, head_count=0, subspace=None),)
    """
    if tokenizer is not None and not callable(tokenizer):
        raise ModelError(
            f"tokenizer={tokenizer!r}",
            needed="something that turns a list of texts into {'input_ids': ...}",
            causes=["its name or folder in place of the tokenizer"] if isinstance(tokenizer, str) else [],
            tries=[f"AutoTokenizer.from_pretrained({tokenizer if isinstance(tokenizer, str) else 'path'!r})"],
        )
    if isinstance(model, OpenModel):
        same = engine in (None, model.engine.name) and not remote
        return replace(
            model,
            engine=model.engine if same else _engine(engine or model.engine.name, remote, model.handle),
            tokenizer=tokenizer or model.tokenizer,
            side=side or model.side,
            batching=model.batching if batch_size is None else Batching.of(batch_size),
        )
    module, found = _unwrap(model, remote)
    accepts, needs, positional = _arguments(module)
    causal = "logits_to_keep" in accepts and getattr(module.config, "is_encoder_decoder", None) is False
    architecture = recognise(module)
    last = getattr(getattr(module, "config", None), "summary_type", None) == "last"
    if side == "left" and architecture is not None and architecture.name == "bert":
        raise ModelError("side='left' on a model that reads its first token", tries=["side='right'", "side=None"])
    return OpenModel(
        module=module,
        handle=model if isinstance(model, _envoys()) else module,
        engine=_engine(engine, remote, model),
        architecture=architecture,
        tokenizer=tokenizer or found,
        accepts=accepts,
        needs=needs,
        positional=positional,
        side=side or ("left" if causal or positional or last else "right"),
        batching=Batching() if batch_size is None else Batching.of(batch_size),
    )


def _unwrap(model: Any, remote: bool | str) -> tuple[nn.Module, Callable[..., Any] | None]:
    """The plain module inside a wrapper, and the wrapper's tokenizer."""
    tokenizer = getattr(model, "tokenizer", None)
    tokenizer = tokenizer if callable(tokenizer) else None
    # Neither library is imported here: a model of theirs can only exist once they are.
    pyvene = sys.modules.get("pyvene")
    if isinstance(model, _envoys()):
        if getattr(model, "dispatched", True) is False and remote is not True:
            model.dispatch()  # nnsight puts off loading the weights until they are needed, which is now
        return model._module, tokenizer
    if pyvene is not None and isinstance(model, pyvene.IntervenableModel):
        return model.model, tokenizer
    if isinstance(model, nn.Module):
        inner = getattr(model, "_orig_mod", None)  # torch.compile's wrapper, which hooks do not reach into
        return inner if isinstance(inner, nn.Module) else model, tokenizer
    raise ModelError(
        f"a {type(model).__name__} is no model",
        needed="an nn.Module, or a model of transformers, nnsight, pyvene or TransformerLens",
        tries=["AutoModelForCausalLM.from_pretrained(path)", "open_model(wrapper.model)"],
    )


def _envoys() -> tuple[type[Any], ...]:
    """The wrapper classes of nnsight, if it was ever imported."""
    nnsight = sys.modules.get("nnsight")
    return () if nnsight is None else (nnsight.Envoy,)


def _arguments(module: nn.Module) -> tuple[tuple[str, ...], frozenset[str], bool]:
    """Names of the arguments of ``forward``, those without a default, and whether tokens are the first positional."""
    try:
        known = list(inspect.signature(type(module).forward).parameters.values())[1:]
    except (AttributeError, TypeError, ValueError):  # a scripted module has no signature that Python can see
        known = []
    names = tuple(each.name for each in known)
    single = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    needs = frozenset(each.name for each in known if each.kind in single and each.default is each.empty)
    lens = hasattr(module, "hook_dict") and hasattr(module, "cfg")
    return names, needs, lens or "input_ids" not in names


def _engine(name: str | None, remote: bool | str, handle: Any) -> Engine:
    if name in (None, "hooks"):
        if remote:
            raise ModelError(f"remote={remote!r} with the hooks engine", tries=["engine='nnsight'"])
        return Hooks()
    if name == "nnsight":
        from causalmad.models.nnsight import Traces

        return Traces(handle, remote)
    raise ModelError(f"no engine {name!r}", tries=["'hooks'", "'nnsight'"])
