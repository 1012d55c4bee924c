"""Tiny natural mechanisms: ARC's pairs of ways in which a one-layer language model comes to the same token."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from causalmad.errors import TaskError
from causalmad.inputs import Inputs
from causalmad.models import OpenModel, open_model
from causalmad.models.pretrained import open_pretrained
from causalmad.names import spec_text
from causalmad.tasks.base import Progress, TaskData, stream
from causalmad.tasks.loading import (
    Rows,
    answers,
    first_of_each,
    library,
    put_together,
    require_given,
    require_tokenizer,
    short_enough,
)

_PARTS = {"train": "trusted", "test_non_anomalous": "usual", "test_anomalous": "odd"}
_MAY_LACK = ("unembed.b_U", "mask", "IGNORE")  # a bias that the published weights leave out, and constants


@dataclass(frozen=True)
class TinyNaturalMechanisms:
    """A one-layer model emits a token of a small set, on trusted inputs for one reason, on anomalous ones for another.

    The file is one of ARC's *distinctions* (``gs://arc-ml-public/distinctions/datasets/NAME_task.json``): lists
    ``train``, ``test_non_anomalous`` and ``test_anomalous`` of ``{"prefix_tokens": [...], "completion_token": ...}``,
    and ``effect_tokens``, the set in question. Trusted inputs are all of ``train``; a third of the non-anomalous ones
    are kept for false-alarm rates and are not in the test set. ``answer`` is the completion; the card says for which
    share of the test inputs the model's likeliest token is an effect token (``effect``).

    Prefixes are never padded here: they stay as long as they are, and padding is made and masked for each batch by the
    rules of the model that runs. With `tokenizer`, prefixes, completions and effect tokens are all decoded by that one
    and encoded again by the model's own.

    Attributes:
        path: the JSON file.
        model: a folder of transformers, or the name of a model of TransformerLens (which has to be installed).
        weights: safetensors that replace that model's own. ARC's are pickled, and pickles are never read here: convert
            them where you trust them.
        tokenizer: a folder or name: of the tokenizer with which the file was made, where the model has another one.

    References:
        ARC's data and models, described by Jacob Hilton; used as a task in cupbearer (Jenner et al. 2024).
    """

    path: str = ""
    model: str = "attn-only-1l"
    weights: str = ""
    tokenizer: str = ""

    mechanism: ClassVar[str] = "normal and anomalous: the same tokens, produced by different parts of one layer"
    source: ClassVar[str] = "ARC, gs://arc-ml-public/distinctions"
    licence: ClassVar[str] = "that of the file and of the model"
    version: ClassVar[str] = "1"
    size: ClassVar[str] = "that of the file"
    outside: ClassVar[bool] = True

    def load(self, seed: int = 0, *, progress: Progress | None = None) -> TaskData:
        """The model and the file's prefixes; see :meth:`causalmad.tasks.Task.load`.

        Raises:
            TaskError: when the file, a list in it, the model or a parameter is missing.
        """
        rng = stream(seed, "tiny-natural-mechanisms", "rows")
        require_given(self, path=self.path, model=self.model)
        found = _read(self.path)
        model = self._model()
        turn = self._turned(model)
        rows = [(part, *pair) for key, part in _PARTS.items() for pair in _pairs(found[key], key)]
        ids = [turn(prefix) for _, prefix, _ in rows]
        columns = {"answer": [turn([completion])[0] for _, _, completion in rows]}
        inputs = Inputs.of({"input_ids": ids}, accepts=("input_ids",), columns=columns)
        good = np.intersect1d(short_enough(model, inputs), first_of_each(inputs))
        part_of = np.array([part for part, _, _ in rows])[good]
        parts: dict[str, Rows] = {part: rng.permutation(good[part_of == part]) for part in _PARTS.values()}
        third = len(parts["usual"]) // 3
        parts |= {"normal": parts["usual"][:third], "usual": parts["usual"][third:]}
        if progress is not None:
            progress(1, 1)
        effect = sorted({turn([token])[0] for token in found["effect_tokens"]})
        test = inputs[np.concatenate([parts["usual"], parts["odd"]])]
        share = float(np.isin(answers(model, test), effect).mean()) if len(test) else 0.0
        name, left_out = spec_text("tasks", self), len(inputs) - len(good)
        made = {"effect tokens": effect, "effect": round(share, 4), "too long or repeated": left_out}
        return put_together(self, name, seed, model, inputs, {**parts, "untrusted": good[:0]}, rng, **made)

    def _model(self) -> OpenModel:
        if Path(self.model).is_dir():
            if self.weights:
                raise TaskError("weights with a folder of transformers", needed="weights of a TransformerLens model")
            module, tokenizer = open_pretrained(self.model)
            return open_model(module, tokenizer=tokenizer)
        lens = library("transformer_lens", "pip install transformer-lens")
        plain = {"fold_ln": False, "center_writing_weights": False, "center_unembed": False, "fold_value_biases": False}
        module = lens.HookedTransformer.from_pretrained(self.model, **plain)
        if self.weights:
            _replace(module, self.weights)
        return open_model(module.eval())

    def _turned(self, model: OpenModel) -> Callable[[Sequence[int]], list[int]]:
        """A function from the file's tokens to the model's."""
        if not self.tokenizer:
            return list
        import transformers

        own: Any = require_tokenizer(model.tokenizer, self.model)
        try:
            theirs = transformers.AutoTokenizer.from_pretrained(self.tokenizer, trust_remote_code=False)
        except (OSError, ValueError, KeyError) as error:
            raise TaskError(f"no tokenizer in {self.tokenizer}: {error}") from error

        def turn(tokens: Sequence[int]) -> list[int]:
            again = own(theirs.decode(list(tokens)), add_special_tokens=False)["input_ids"]
            if not again:
                raise TaskError(f"the tokens {list(tokens)} are nothing to the model's tokenizer")
            return [int(token) for token in again]

        return turn


def _read(path: str) -> dict[str, Any]:
    try:
        found = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise TaskError(f"{path} cannot be read: {error}", needed="a JSON file of ARC's distinctions") from error
    missing = [key for key in (*_PARTS, "effect_tokens") if not isinstance(found, dict) or not found.get(key)]
    if missing:
        raise TaskError(f"{path} has no {', '.join(missing)}", needed=f"{', '.join(_PARTS)} and effect_tokens")
    return dict(found)


def _pairs(rows: Any, key: str) -> list[tuple[list[int], int]]:
    """(prefix, completion) of each row, which is an object or a pair."""
    pairs = []
    for number, row in enumerate(rows):
        try:
            prefix, token = (row["prefix_tokens"], row["completion_token"]) if isinstance(row, Mapping) else row
            pairs.append(([int(each) for each in prefix], int(token)))
        except (KeyError, TypeError, ValueError) as error:
            raise TaskError(
                f"row {number} of {key} is no prefix and completion: {error}",
                needed='{"prefix_tokens": [5, 3], "completion_token": 8}',
            ) from error
    return pairs


def _replace(module: Any, path: str) -> None:
    """Other weights for a TransformerLens model."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        weights = load_file(path)
    except (OSError, SafetensorError) as error:
        raise TaskError(f"{path} cannot be read: {error}", needed="a file of safetensors") from error
    own = module.state_dict()
    lacking = [key for key in own if key not in weights and not key.endswith(_MAY_LACK)]
    wrong = [key for key, value in weights.items() if key not in own or own[key].shape != value.shape]
    if lacking or wrong:
        raise TaskError(f"{path} does not fit the model: {', '.join([*lacking, *wrong][:3])}")
    module.load_state_dict({**own, **weights})
