"""Models of transformers, from a folder or by name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import nn

from causalmad.errors import ModelError

# The last part of an architecture's class name -> the class that opens it.
_HEADS = {
    "ForCausalLM": "AutoModelForCausalLM",
    "LMHeadModel": "AutoModelForCausalLM",
    "ForSequenceClassification": "AutoModelForSequenceClassification",
    "ForImageClassification": "AutoModelForImageClassification",
}
_TOKENIZERS = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.txt", "vocab.json")


def open_pretrained(name: str) -> tuple[nn.Module, Callable[..., Any] | None]:
    """A transformers model, in eval mode, with its tokenizer; a folder is read without any network.

    Args:
        name: a folder that ``save_pretrained`` wrote, or the name of a model that transformers can find. Code that
            comes with a model is never run, and weights are read from safetensors only.

    Raises:
        ModelError: when there is no such model, its kind is unknown, or weights are missing.
    """
    import transformers
    from safetensors import SafetensorError

    folder = Path(name)
    if not folder.is_dir() and (folder.exists() or name.startswith((".", "/", "~")) or name.count("/") > 1):
        raise ModelError(f"{name} is no folder", needed="a folder that save_pretrained wrote")
    options: dict[str, Any] = {"local_files_only": folder.is_dir(), "trust_remote_code": False}
    transformers.utils.logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        config = transformers.AutoConfig.from_pretrained(name, **options)
        opener = getattr(transformers, _head(name, config))
        module, report = opener.from_pretrained(
            name, config=config, use_safetensors=True, output_loading_info=True, **options
        )
        tokenizer = _tokenizer(transformers, name, folder, options)
    except (OSError, ValueError, KeyError, ImportError, RuntimeError, SafetensorError) as error:
        raise ModelError(
            f"no model can be opened from {name}: {error}",
            needed="config.json and model.safetensors, as save_pretrained writes them",
        ) from error
    missing = sorted(report["missing_keys"])
    if missing:
        raise ModelError(
            f"{name} lacks {len(missing)} weights of {type(module).__name__}, the first is {missing[0]!r}",
            causes=["a checkpoint of a model without this head", "an unfinished copy"],
        )
    return module.eval(), tokenizer


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


def _tokenizer(transformers: Any, name: str, folder: Path, options: dict[str, Any]) -> Callable[..., Any] | None:
    if folder.is_dir() and not any((folder / file).is_file() for file in _TOKENIZERS):
        return None
    found: Callable[..., Any] = transformers.AutoTokenizer.from_pretrained(name, **options)
    return found
