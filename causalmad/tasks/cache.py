"""Models that are trained once: weights and a card in the user's cache, checked before each use."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeAlias

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from causalmad.models.fingerprint import digest, parameter_digests, value_digest

logger = logging.getLogger(__name__)

Card: TypeAlias = dict[str, Any]


def cache_folder() -> Path:
    """Where trained models are kept: ``$CAUSALMAD_CACHE``, otherwise ``~/.cache/causalmad``."""
    given = os.environ.get("CAUSALMAD_CACHE")
    return Path(given).expanduser() if given else Path.home() / ".cache" / "causalmad"


def cached(
    name: str,
    options: Mapping[str, object],
    version: str,
    seed: int,
    model: nn.Module,
    train: Callable[[nn.Module], Card],
) -> Card:
    """The card of ``model``, into which the weights are put: from the cache, otherwise by training.

    A damaged entry, or one that does not fit, is never used: the model is trained again and the entry replaced. Two
    processes may do this at once; both end with the weights of whichever finished first.

    Args:
        name: of the task.
        options: those of the task's options on which the weights depend.
        version: of the task; another one is another entry.
        seed: of the task.
        model: an untrained module, changed in place.
        train: trains ``model`` in place and gives what is to be remembered about that (JSON data).
    """
    text = json.dumps(options, sort_keys=True)
    key = {"name": name, "options": json.loads(text), "version": version, "seed": seed}
    code = hashlib.sha256(text.encode()).hexdigest()[:8]
    folder = cache_folder() / "tasks" / f"{name}-{version}-{code}-{seed}"
    if folder.exists():
        try:
            return _read(folder, key, model)
        except Exception as error:  # whatever a damaged file makes a reader raise
            logger.warning("%s is damaged and is made again: %s", folder, error)
    card = train(model)
    card = {**card, **key, "fingerprint": _fingerprint(model)}
    try:
        return _write(folder, key, model, card)
    except (OSError, SafetensorError) as error:  # the latter says of a full disk what the former says elsewhere
        logger.warning("the trained model of %s could not be kept in %s: %s", name, folder, error)
        return card


def _fingerprint(model: nn.Module) -> str:
    return digest(parameter_digests(model))


def _read(folder: Path, key: Mapping[str, object], model: nn.Module) -> Card:
    """The card of a good entry; the weights go into ``model`` only when everything fits."""
    card: Card = json.loads((folder / "card.json").read_text(encoding="utf-8"))
    for name, value in key.items():
        if card[name] != value:
            raise ValueError(f"it is for {name} {card[name]!r}, not {value!r}")
    if _sha256(folder / "model.safetensors") != card["sha256"]:
        raise ValueError("the weights are not those that the card names")
    weights = load_file(folder / "model.safetensors")
    wanted = {name: (tuple(value.shape), value.dtype) for name, value in model.state_dict().items()}
    if {name: (tuple(value.shape), value.dtype) for name, value in weights.items()} != wanted:
        raise ValueError("the weights are of another network")
    if digest({name: value_digest(weights[name]) for name in wanted}) != card["fingerprint"]:
        raise ValueError("the parameters have another fingerprint than the card names")
    model.load_state_dict(weights)
    return card


def _write(folder: Path, key: Mapping[str, object], model: nn.Module, card: Card) -> Card:
    """Puts an entry in place whole or not at all, and reads back what is there now."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as scratch:
        new = Path(scratch) / "new"
        new.mkdir()
        # Copies, because safetensors refuses tensors that share memory (tied embeddings).
        weights = {name: value.detach().cpu().clone() for name, value in model.state_dict().items()}
        save_file(weights, new / "model.safetensors")
        card = {**card, "sha256": _sha256(new / "model.safetensors")}
        (new / "card.json").write_text(json.dumps(card, indent=1), encoding="utf-8")
        for path in (*new.iterdir(), new):
            _flush(path)
        for turn in range(3):
            try:
                os.rename(new, folder)
                return card
            except OSError:
                if not folder.exists():
                    raise
            try:
                return _read(folder, key, model)  # another process was faster
            except Exception:  # the damaged entry that was found at first
                aside = Path(scratch) / f"damaged-{turn}"
                try:
                    os.rename(folder, aside)
                except FileNotFoundError:  # another process has just moved it
                    continue
                shutil.rmtree(aside, ignore_errors=True)
    raise OSError(f"{folder} could not be replaced")


def _flush(path: Path) -> None:
    """Makes sure that a file or folder is on the disk before its new name is."""
    if path.is_dir() and os.name == "nt":  # Windows opens no folders
        return
    handle = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
