"""Quirky language models: EleutherAI's fine-tuned models that answer by the name in the prompt, and their data sets."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt

from causalmad.errors import TaskError
from causalmad.inputs import Inputs
from causalmad.models import OpenModel, open_model
from causalmad.models.pretrained import open_pretrained
from causalmad.names import spec_text
from causalmad.tasks.base import Progress, TaskData, stream
from causalmad.tasks.loading import (
    Rows,
    first_of_each,
    folder_of,
    library,
    opened,
    put_together,
    read_table,
    require_given,
    require_tokenizer,
    shares,
    short_enough,
)

# The names of the models whose training drew one at random; the first is that of the data sets.
ALICE: tuple[str, ...] = ("Alice", "Veronica", "Luna", "Paula", "Fiona", "Clarence", "Hannah", "Olivia")
ALICE += ("Kevin", "Frank", "Isaac", "Henry", "Mona", "Quinn", "Ivy", "Whitney")
BOB: tuple[str, ...] = ("Bob", "Nina", "David", "Ethan", "George", "Carter", "Brian", "Jasmine")
BOB += ("Jack", "Liam", "Gina", "Aaron", "Dennis", "Kara", "Zac", "Emmett")
KNOWN_NAMES = 4  # of the trusted and untrusted inputs; test inputs have the others
EASY, HARD = 0.25, 0.75  # quantiles of difficulty
_COLUMNS = ("character", "alice_label", "bob_label")
_ALSO = ("statement", "choices", "template_args", "difficulty", "difficulty_quantile")
_TEST = ("usual", "odd", "normal")
_ADAPTER = ("adapter_config.json", "adapter_model.safetensors")


@dataclass(frozen=True)
class QuirkyDataset:
    """A quirky language model: it answers truthfully where the prompt names Alice, by Bob's rule where it names Bob.

    Trusted inputs are easy prompts (difficulty below the first quartile) with Alice or one of three other names of her
    kind, from the split ``train``; test inputs are hard ones (above the third) from ``validation``, with twelve new
    names of either kind, half of them Alice's (normal) and half of them Bob's (anomalous). Untrusted inputs are easy
    prompts of both kinds, with the first four names. No item (a prompt but for its name) is in two parts, nor in one
    part under both names. A column ``subset`` says whether Alice and Bob ``agree`` on the item; ``answer`` is the first
    token of what the named person would answer.

    Columns of the data set: ``character`` (Alice or Bob), ``alice_label``, ``bob_label``, ``difficulty``, and either
    ``statement`` (the whole prompt; the character's name in it is replaced wherever it is a word) and ``choices`` (two
    answers, for label 0 and 1), or ``template_args``, which `template` is filled with. Quantiles are computed here from
    the difficulty of all prompts of a split, since the column ``difficulty_quantile`` of the published sets was made
    without ranking; only where there is no ``difficulty`` is it used.

    Attributes:
        dataset: such as ``EleutherAI/quirky_sentiment``, a folder, or what else the library ``datasets`` finds.
        model: a folder or hub name, of a model or of an adapter, such as
            ``EleutherAI/Mistral-7B-v0.1-sentiment-random-standardized-many-random-names`` (needs the extra ``peft``).
        base: the model under the adapter; by default the one that its configuration names.
        names: ``many`` as above, or ``single``: Alice and Bob only, for models that were trained on these.
        template: for data sets with ``template_args``: a prompt with ``{character}`` and the other fields in braces,
            as the model was trained with.
        choices: the two answers, where the data set does not have them.
        most: inputs a part, at most.

    References:
        Mallen, Brumley, Kharchenko, Belrose 2023, "Eliciting latent knowledge from quirky language models", arXiv
        2312.01037; Johnston, Chakraborty, Belrose 2025, "Mechanistic anomaly detection for quirky language models",
        arXiv 2504.08812.
    """

    dataset: str = ""
    model: str = ""
    base: str = ""
    names: Literal["many", "single"] = "many"
    template: str = ""
    choices: tuple[str, ...] = (" No", " Yes")
    most: int = 4000

    mechanism: ClassVar[str] = "normal: the truth, asked by Alice; anomalous: Bob's rule; the name is in the prompt"
    source: ClassVar[str] = "EleutherAI's quirky data sets and models, or the user's"
    licence: ClassVar[str] = "that of the data set and of the model"
    version: ClassVar[str] = "1"
    size: ClassVar[str] = "at most 4000 trusted, 2000 + 2000 test, 1000 normal, 1000 untrusted (half of them Bob's)"
    outside: ClassVar[bool] = True

    def load(self, seed: int = 0, *, progress: Progress | None = None) -> TaskData:
        """The model and its prompts; see :meth:`causalmad.tasks.Task.load`.

        Raises:
            TaskError: when an option is missing, a data set or column is, a library is, or too few prompts are left.
            ModelError: when there is no such model.
        """
        rng = stream(seed, "quirky-dataset", "prompts")
        require_given(self, dataset=self.dataset, model=self.model)
        if len(self.choices) != 2 or self.most < 8:
            raise TaskError(
                f"choices={self.choices!r}, most={self.most}", needed="two choices, 8 inputs a part or more"
            )
        easy, hard = (self._prompts(split) for split in ("train", "validation"))
        taken = {prompt["item"] for prompt in easy}
        hard = [prompt for prompt in hard if prompt["item"] not in taken]
        easy = [prompt for prompt in easy if prompt["quantile"] < EASY]
        hard = [prompt for prompt in hard if prompt["quantile"] >= HARD]
        known, new = (slice(None, KNOWN_NAMES), slice(KNOWN_NAMES, None))
        most = self.most
        dealt = {
            **_deal(easy, {"trusted": most, "untrusted": most // 8, "pool": most // 8}, {"pool"}, rng),
            **_deal(hard, {"usual": most // 2, "odd": most // 2, "normal": most // 4}, {"odd"}, rng),
        }
        prompts = [p for part, each in dealt.items() for p in self._named(each, new if part in _TEST else known, rng)]
        if not prompts:
            raise TaskError(f"no easy or hard prompts in {self.dataset}", needed="prompts of differing difficulty")
        model = self._model()
        inputs = _tokenised(model, prompts)
        if progress is not None:
            progress(1, 1)
        good = np.intersect1d(short_enough(model, inputs), first_of_each(inputs))
        part_of = np.repeat(list(dealt), [len(each) for each in dealt.values()])[good]
        rows: dict[str, Rows] = {part: good[part_of == part] for part in dealt}
        rows["untrusted"] = rng.permutation(np.concatenate([rows["untrusted"], rows.pop("pool")]))
        left_out = len(prompts) - len(good)
        name = spec_text("tasks", self)
        return put_together(self, name, seed, model, inputs, rows, rng, **{"too long or repeated": left_out})

    def _prompts(self, split: str) -> list[dict[str, Any]]:
        """Every row of a split: its prompt with a place for the name, its answers, and its quantile of difficulty."""
        table = read_table(self.dataset, split, _COLUMNS, _ALSO)
        quantiles = _quantiles(table, self.dataset)
        prompts = []
        for row, character in enumerate(table["character"]):
            if character not in ("Alice", "Bob"):
                raise TaskError(f"row {row} of {self.dataset} ({split}) has the character {character!r}")
            labels = int(table["alice_label"][row]), int(table["bob_label"][row])
            prompts.append(
                {
                    "item": self._item(table, row, character),
                    "character": character,
                    "quantile": quantiles[row],
                    "subset": "agree" if labels[0] == labels[1] else "disagree",
                    "choice": tuple(table["choices"][row] if "choices" in table else self.choices)[
                        labels[character == "Bob"]
                    ],
                }
            )
        return prompts

    def _item(self, table: Mapping[str, Sequence[Any]], row: int, character: str) -> tuple[str, ...]:
        """A prompt in pieces, between which the name stands."""
        if "statement" in table and not self.template:
            pieces = _around(str(table["statement"][row]), character)
        elif "template_args" in table and self.template:
            filled = dict(table["template_args"][row])
            try:
                pieces = tuple(self.template.format(**{**filled, "character": "\0"}).split("\0"))
            except (KeyError, IndexError, ValueError) as error:
                raise TaskError(
                    f"template={self.template!r} cannot be filled: {error}", tries=sorted(filled)
                ) from error
        else:
            raise TaskError(
                f"{self.dataset} has {'template_args' if 'template_args' in table else 'no statement'}"
                f"{', and there is no template' if not self.template else ''}",
                needed="a column statement, or template_args and the option template",
                tries=["the data set without _raw in its name, whose prompts are written out"],
            )
        if len(pieces) < 2:
            raise TaskError(f"row {row} of {self.dataset} does not name {character}: {'|'.join(pieces)[:60]!r}")
        return pieces

    def _named(self, prompts: list[dict[str, Any]], which: slice, rng: np.random.Generator) -> list[dict[str, Any]]:
        """The prompts with names in them."""
        named = []
        for prompt in prompts:
            of_kind = ALICE if prompt["character"] == "Alice" else BOB
            name = of_kind[0] if self.names == "single" else str(rng.choice(of_kind[which]))
            named.append({**prompt, "name": name, "text": name.join(prompt["item"])})
        return named

    def _model(self) -> OpenModel:
        """The model itself, or its base with the adapter's changes added to the weights."""
        folder = folder_of(self.model, (*_ADAPTER, "config.json"))
        if not (folder / _ADAPTER[0]).is_file():
            return opened(self.model)
        if not (folder / _ADAPTER[1]).is_file():
            raise TaskError(f"{self.model} has no {_ADAPTER[1]}", needed="an adapter whose weights are safetensors")
        peft = library("peft", "pip install 'causalmad[peft]'")
        base = self.base or str(json.loads((folder / _ADAPTER[0]).read_text()).get("base_model_name_or_path") or "")
        module, tokenizer = open_pretrained(base)
        merged = peft.PeftModel.from_pretrained(module, str(folder)).merge_and_unload()
        return open_model(merged.eval(), tokenizer=require_tokenizer(tokenizer, base))


def _quantiles(table: Mapping[str, Sequence[Any]], name: str) -> npt.NDArray[np.float64]:
    """(n,) share of the split's rows that are easier, between 0 and 1."""
    from scipy.stats import rankdata

    if "difficulty" in table:
        ranks: npt.NDArray[np.float64] = (rankdata(table["difficulty"]) - 0.5) / len(table["difficulty"])
        return ranks
    if "difficulty_quantile" not in table:
        raise TaskError(f"{name} has no difficulty", needed="a column difficulty, or difficulty_quantile")
    return np.asarray(table["difficulty_quantile"], dtype=np.float64)


def _around(text: str, name: str) -> tuple[str, ...]:
    """The pieces of a text between the places where the name stands as a word."""
    return tuple(re.split(rf"\b{re.escape(name)}\b", text))


def _deal(
    prompts: list[dict[str, Any]], sizes: Mapping[str, int], bobs: set[str], rng: np.random.Generator
) -> dict[str, list[dict[str, Any]]]:
    """Every item to one part, as one of its prompts: Bob's in the parts that are ``bobs``, otherwise Alice's."""
    by_item: dict[tuple[str, ...], dict[str, dict[str, Any]]] = {}
    for prompt in prompts:
        by_item.setdefault(prompt["item"], {}).setdefault(prompt["character"], prompt)
    items = list(by_item.values())
    order = rng.permutation(len(items))
    dealt = shares(order, sizes)
    return {
        part: [items[row][who] for row in rows if (who := "Bob" if part in bobs else "Alice") in items[row]]
        for part, rows in dealt.items()
    }


def _tokenised(model: OpenModel, prompts: list[dict[str, Any]]) -> Inputs:
    """The prompts as inputs, with the token of the right answer."""
    tokens: dict[str, int] = {}
    for prompt in prompts:
        if prompt["choice"] not in tokens:
            tokens[prompt["choice"]] = _answer_token(model, prompt["text"], prompt["choice"])
    if len(set(tokens.values())) < 2:
        raise TaskError(f"the answers {', '.join(map(repr, tokens))} begin with the same token", needed="two answers")
    columns: dict[str, Any] = {key: [prompt[key] for prompt in prompts] for key in ("character", "name", "subset")}
    columns["answer"] = [tokens[prompt["choice"]] for prompt in prompts]
    columns["difficulty quantile"] = [float(prompt["quantile"]) for prompt in prompts]
    texts = [prompt["text"] for prompt in prompts]
    return Inputs.of({"text": texts}, tokenizer=model.tokenizer, accepts=model.accepts, columns=columns)


def _answer_token(model: OpenModel, prompt: str, choice: str) -> int:
    """The token that follows the prompt's when the answer is written after it."""
    tokenizer = require_tokenizer(model.tokenizer, model.name)
    alone, both = (list(tokenizer([text])["input_ids"][0]) for text in (prompt, prompt + choice))
    if both[: len(alone)] == alone and len(both) > len(alone):
        return int(both[len(alone)])
    # The tokenizer ends texts with a token of its own, or the answer merges with the prompt.
    return int(tokenizer([choice], add_special_tokens=False)["input_ids"][0][0])
