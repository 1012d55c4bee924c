"""The model of a command: a transformers folder, or the one that a task comes with."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from causalmad.cli.console import Step
from causalmad.errors import ModelError, SpecError

if TYPE_CHECKING:
    from torch import nn

    from causalmad.inputs import Block, Inputs

# The last part of an architecture's class name -> the class that opens it.
_HEADS = {
    "ForCausalLM": "AutoModelForCausalLM",
    "LMHeadModel": "AutoModelForCausalLM",
    "ForSequenceClassification": "AutoModelForSequenceClassification",
    "ForImageClassification": "AutoModelForImageClassification",
}
_TOKENIZERS = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.txt", "vocab.json")


@dataclass(frozen=True)
class Chosen:
    """A model, and what comes with it.

    Attributes:
        module: the network.
        tokenizer: for texts, where there is one.
        trusted: a task's trusted inputs.
        test: a task's test inputs.
        blocks: named parts of a task's inputs.
        hypothesis: a task's hypothesis, where it ships one.
    """

    module: nn.Module
    tokenizer: Callable[..., Any] | None = None
    trusted: Inputs | None = None
    test: Inputs | None = None
    blocks: Mapping[str, Block] = field(default_factory=dict)
    hypothesis: object | None = None


def choose(model: str | None, task: str | None, seed: int, device: str, step: Step) -> Chosen:
    """The model that ``--model`` or ``--task`` names.

    Raises:
        SpecError: when not exactly one of them is given.
        ModelError: when the folder holds no model that can be opened.
    """
    if (model is None) == (task is None):
        raise SpecError("one of --model and --task is needed", tries=["--model FOLDER", "--task gate-digits"])
    if task is not None:
        from causalmad.config import parse_spec

        data = parse_spec("tasks", task).load(seed, progress=lambda done, total: step("training", done, total))
        model_on = data.model.to(device)
        return Chosen(model_on, None, data.trusted, data.test, data.trusted.blocks, data.hypothesis)
    step("opening the model", 0, 0)
    chosen = open_folder(str(model))
    chosen.module.to(device)
    step("opening the model", 1, 1)
    return chosen


def open_folder(name: str) -> Chosen:
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
    return Chosen(module.eval(), tokenizer)


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
