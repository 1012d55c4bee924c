"""Models of transformers, from a folder or by name."""

from __future__ import annotations

import re
import socket
import threading
from collections.abc import Callable
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from causalmad.errors import ModelError

if TYPE_CHECKING:
    from torch import nn

# The last part of an architecture's class name -> the class that opens it.
_HEADS = {
    "ForCausalLM": "AutoModelForCausalLM",
    "LMHeadModel": "AutoModelForCausalLM",
    "ForSequenceClassification": "AutoModelForSequenceClassification",
    "ForImageClassification": "AutoModelForImageClassification",
}
_TOKENIZERS = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.txt", "vocab.json")
_NEEDED = "a folder that save_pretrained wrote"
_HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")
_PATIENCE = 3.0  # seconds for the hub to answer


def open_pretrained(
    name: str, *, dtype: str | None = None, tokenizer: str | None = None
) -> tuple[nn.Module, Callable[..., Any] | None]:
    """A transformers model, in eval mode, with its tokenizer; a folder is read without any network.

    Args:
        name: a folder that ``save_pretrained`` wrote, or the name of a model that transformers can find. Code that
            comes with a model is never run, and weights are read from safetensors only.
        dtype: ``float32``, ``bfloat16`` or ``float16``; by default what the weights were saved in.
        tokenizer: a folder or a name as well, where the tokenizer is not the model's own.

    Raises:
        ModelError: when there is no such model or tokenizer, its kind is unknown, or weights are missing.
    """
    place, options = locate(name)
    words = None if tokenizer is None else locate(tokenizer)
    import transformers

    transformers.utils.logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    module, missing = _module(transformers, place, options, dtype)
    if missing:
        raise ModelError(
            f"{name} lacks {len(missing)} weights of {type(module).__name__}, the first is {missing[0]!r}",
            causes=["a checkpoint of a model without this head", "an unfinished copy"],
        )
    return module.eval(), _tokenizer(transformers, words or (place, options), tokenizer is not None)


def _module(
    transformers: Any, name: str, options: dict[str, Any], dtype: str | None
) -> tuple[nn.Module, tuple[str, ...]]:
    """The model, and the names of the weights that its files lack."""
    import torch
    from safetensors import SafetensorError

    kinds = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    if dtype is not None and dtype not in kinds:
        raise ModelError(f"dtype={dtype!r}", needed=" or ".join(kinds))
    wanted = {} if dtype is None else {"dtype": kinds[dtype]}
    try:
        config = transformers.AutoConfig.from_pretrained(name, **options)
        opener = getattr(transformers, _head(name, config))
        module, report = opener.from_pretrained(
            name, config=config, use_safetensors=True, output_loading_info=True, **wanted, **options
        )
    except (OSError, ValueError, KeyError, ImportError, RuntimeError, SafetensorError) as error:
        raise ModelError(
            f"no model can be opened from {name}: {_said(error)}",
            needed="config.json and model.safetensors, as save_pretrained writes them",
        ) from error
    return module, tuple(sorted(report["missing_keys"]))


def _head(name: str, config: Any) -> str:
    known = config.architectures or []
    for architecture in known:
        for end, opener in _HEADS.items():
            if architecture.endswith(end):
                return opener
    raise ModelError(
        f"{name} is a model for {', '.join(known) or 'no stated use'}",
        needed=f"an architecture in config.json that ends in one of {', '.join(_HEADS)}",
        tries=["open it in Python and use causalmad.Detector there"],
    )


def _tokenizer(transformers: Any, place: tuple[str, dict[str, Any]], asked: bool) -> Callable[..., Any] | None:
    name, options = place
    folder = Path(name)
    if folder.is_dir() and not any((folder / file).is_file() for file in _TOKENIZERS):
        if asked:
            raise ModelError(f"{name} holds no tokenizer", needed=f"one of {', '.join(_TOKENIZERS)}")
        return None
    try:
        found: Callable[..., Any] = transformers.AutoTokenizer.from_pretrained(name, **options)
    except (OSError, ValueError, KeyError, ImportError, RuntimeError) as error:
        raise ModelError(f"no tokenizer can be opened from {name}: {_said(error)}") from error
    return found


def locate(name: str) -> tuple[str, dict[str, Any]]:
    """Where transformers finds what is called ``name``, and how it is to look; a misspelt folder is no hub name.

    Takes neither torch nor transformers, so that a mistake is known at once.

    Raises:
        ModelError: when it is no folder, and is none of the hub either or the hub is out of reach.
    """
    options: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
    folder = Path(name).expanduser()
    if folder.is_dir():
        return str(folder), options
    close = _siblings(folder)
    if folder.exists() or name.startswith((".", "/", "~")) or name.endswith("/") or not _HUB_NAME.fullmatch(name):
        raise ModelError(f"{name} is no folder", needed=_NEEDED, tries=close)
    from huggingface_hub import constants, try_to_load_from_cache

    cached = isinstance(try_to_load_from_cache(name, "config.json"), str)
    if not cached and close:
        raise ModelError(
            f"{name} is no folder, and there is one of almost that name",
            needed=f"{_NEEDED}, or the name of a model on the hub",
            tries=[*close, "owner/name, for a model on the hub"],
        )
    reached = not constants.HF_HUB_OFFLINE and _reachable(constants.ENDPOINT)
    if not cached and not reached:
        why = "HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else "the hub cannot be reached"
        raise ModelError(
            f"{name} is no folder, was never downloaded here, and {why}",
            needed=f"{_NEEDED}, or a model that can be downloaded",
        )
    return name, {**options, "local_files_only": not reached}


def _siblings(folder: Path) -> list[str]:
    """Up to three folders beside ``folder`` that have almost its name."""
    try:
        names = [entry.name for entry in folder.parent.iterdir() if entry.is_dir()]
    except OSError:
        return []
    return [str(folder.parent / name) for name in get_close_matches(folder.name, names, n=3, cutoff=0.75)]


def _reachable(endpoint: str) -> bool:
    """Whether anything answers where the hub is, or at the proxy on the way; known within seconds."""
    target = urlsplit(endpoint)
    proxies = getproxies()
    through = proxies.get(target.scheme) or proxies.get("all")
    if through and not proxy_bypass(target.hostname or ""):
        target = urlsplit(through if "//" in through else f"//{through}")
    answers: list[bool] = []

    def call() -> None:
        try:
            port = target.port or (80 if target.scheme == "http" else 443)
            socket.create_connection((target.hostname or "", port), timeout=_PATIENCE).close()
        except (OSError, ValueError):
            return
        answers.append(True)

    # Looking up a name takes as long as the system likes: it is not waited for.
    asking = threading.Thread(target=call, daemon=True)
    asking.start()
    asking.join(_PATIENCE)
    return bool(answers)


def _said(error: Exception) -> str:
    """The first line of an error, without the advice that follows."""
    lines = str(error).strip().splitlines()
    return lines[0][:300] if lines else type(error).__name__
