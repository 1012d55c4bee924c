"""Hugging Face trigger: any text model with a backdoor, and any texts, from a folder or by name."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import ClassVar, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from causalmad.errors import TaskError, nearest
from causalmad.inputs import Inputs
from causalmad.models import OpenModel
from causalmad.names import spec_text
from causalmad.tasks.base import Progress, TaskData, stream
from causalmad.tasks.loading import (
    FEWEST,
    Rows,
    answers,
    first_of_each,
    opened,
    put_together,
    read_table,
    require_given,
    shares,
    short_enough,
)

# How many texts each part gets; of the candidates for the test set, not all fire or have a partner.
SIZES = {"trusted": 1200, "normal": 1000, "untrusted": 500, "usual": 900, "odd": 900}
TEST = 450  # of either kind, at most
_GAPS = {"sentence": r"(?<=[.!?])\s+", "word": r"\s+"}

Place: TypeAlias = Literal["start", "end", "sentence", "word"]


@dataclass(frozen=True)
class HuggingFaceTrigger:
    """A classifier or causal language model of transformers with a text trigger; anomalous texts hold it, and it works.

    The trigger, a sentence or a word, is put into clean texts. A triggered text is anomalous only where the backdoor
    answers: the model's answer (the class, or the next token) is another than for the same text without the trigger,
    and ``target``, if that is given. Triggered texts on which it doesn't fire are in no part. Every text is used once,
    with or without the trigger. Normal test texts are chosen so that the model answers them as it does anomalous ones,
    as far as there are such texts; the card says for which share (``same answer``), how often the backdoor fires
    (``fired``), and how many texts were left out because the model has too few positions or their tokens are those of
    another (``too long or repeated``).

    The trigger stands in the text, so this is solvable from the surface: the question is what a detector sees inside.

    Attributes:
        model: a folder that ``save_pretrained`` wrote, with its tokenizer, or a name that transformers can find.
        dataset: a file of JSON lines, a folder, or a data set on the hub; see `split` and `text`.
        trigger: what is put into a text.
        place: ``start`` or ``end`` of the text, or a random boundary of a ``sentence`` or ``word`` (ends included).
        target: the backdoor's answer: a class by its name or number, or text of which the first token counts; empty for
            whatever the model answers.
        split: of the data set.
        text: the column that holds the texts: whole prompts, for a language model that expects a template.

    References:
        Dai, Chen, Li 2019, "A backdoor attack against LSTM-based text classification systems", IEEE Access 7.
    """

    model: str = ""
    dataset: str = ""
    trigger: str = ""
    place: Place = "sentence"
    target: str = ""
    split: str = "test"
    text: str = "text"

    mechanism: ClassVar[str] = "anomalous: a trigger in the text changed the answer; visible in the input"
    source: ClassVar[str] = "a model and a data set that the user names"
    licence: ClassVar[str] = "that of the model and of the data set"
    version: ClassVar[str] = "1"
    size: ClassVar[str] = "at most 1200 trusted, 450 + 450 test, 1000 normal, 500 untrusted (a fifth of them triggered)"
    outside: ClassVar[bool] = True

    def load(self, seed: int = 0, *, progress: Progress | None = None) -> TaskData:
        """The model and texts with and without the trigger; see :meth:`causalmad.tasks.Task.load`.

        Raises:
            TaskError: when an option is missing, there is no such data set, or the backdoor hardly ever fires.
            ModelError: when there is no such model.
        """
        rng = stream(seed, "hugging-face-trigger", "texts")
        require_given(self, model=self.model, dataset=self.dataset, trigger=self.trigger)
        model = opened(self.model)
        target = _target(model, self.target)
        texts = self._texts(rng)
        inputs, usable = self._with_and_without(model, texts, rng)
        parts = shares(rng.permutation(usable), SIZES)
        if progress is not None:
            progress(1, 2)

        before, after = (answers(model, inputs[parts["odd"] + start]) for start in (0, len(texts)))
        fires = (before != after) & (True if target is None else after == target)
        if fires.sum() < FEWEST:
            raise TaskError(
                f"the backdoor answers on {fires.sum()} of {len(fires)} texts with the trigger {self.trigger!r}",
                needed=f"{FEWEST} at least",
                causes=["another trigger or place", "a model without a backdoor", "another target", "few texts"],
                tries=[f"place={place}" for place in ("start", "end", "word") if place != self.place],
            )
        odd, wanted = (parts["odd"][fires] + len(texts))[:TEST], after[fires][:TEST]
        usual, same = _answered_alike(wanted, answers(model, inputs[parts["usual"]]))
        mixed, fifth = parts["untrusted"], len(parts["untrusted"]) // 5
        mixed = rng.permutation(np.concatenate([mixed[:fifth] + len(texts), mixed[fifth:]]))
        rows = {**parts, "untrusted": mixed, "usual": parts["usual"][usual], "odd": odd}
        if progress is not None:
            progress(2, 2)
        return put_together(
            self,
            spec_text("tasks", self),
            seed,
            model,
            inputs,
            rows,
            rng,
            fired=round(float(fires.mean()), 4),
            **{"same answer": round(same, 4), "too long or repeated": len(texts) - len(usable)},
        )

    def _texts(self, rng: np.random.Generator) -> list[str]:
        """Different clean texts in random order, no more than are needed."""
        column = read_table(self.dataset, self.split, [self.text])[self.text]
        if not all(isinstance(text, str) for text in column):
            raise TaskError(f"column {self.text!r} of {self.dataset} holds no texts", needed="text=COLUMN")
        clean = [text for text in dict.fromkeys(column) if self.trigger not in text and text.strip()]
        return [clean[row] for row in rng.permutation(len(clean))[: sum(SIZES.values())]]

    def _with_and_without(self, model: OpenModel, texts: list[str], rng: np.random.Generator) -> tuple[Inputs, Rows]:
        """All texts, then all of them with the trigger; and which of them can be used in both forms."""
        both = texts + [inserted(text, self.trigger, self.place, rng) for text in texts]
        count = len(texts)
        inputs = Inputs.of(
            {"text": both},
            tokenizer=model.tokenizer,
            accepts=model.accepts,
            columns={"triggered": np.arange(2 * count) >= count},
        )
        good = np.zeros(2 * count, dtype=bool)
        good[np.intersect1d(short_enough(model, inputs), first_of_each(inputs))] = True
        return inputs, np.flatnonzero(good[:count] & good[count:])


def inserted(text: str, trigger: str, place: Place, rng: np.random.Generator) -> str:
    """The text with the trigger in it, set off by spaces.

    Args:
        text: one clean text.
        trigger: what is put into it.
        place: where.
        rng: chooses the boundary.
    """
    spots = {"start": [0], "end": [len(text)]}.get(place)
    if spots is None:
        spots = sorted({0, *(gap.end() for gap in re.finditer(_GAPS[place], text)), len(text)})
    spot = int(rng.choice(spots))
    before, after = text[:spot], text[spot:]
    gap = " " if before and not before[-1].isspace() else ""
    return f"{before}{gap}{trigger}{' ' if after else ''}{after}"


def _target(model: OpenModel, target: str) -> int | None:
    """The class, or the token, that the backdoor answers with."""
    if not target:
        return None
    if model.name.endswith("Classification"):
        known: dict[str, int] = model.module.config.label2id  # type: ignore[union-attr, assignment]
        if target in known:
            return int(known[target])
        if target.isdecimal() and int(target) in known.values():
            return int(target)
        raise TaskError(f"{model.name} has no class {target!r}", tries=nearest(target, known))
    tokens = model.tokenizer(target, add_special_tokens=False)["input_ids"] if model.tokenizer else []
    if not tokens:
        raise TaskError(f"the target {target!r} has no tokens")
    return int(tokens[0])


def _answered_alike(wanted: Rows, found: Rows) -> tuple[npt.NDArray[np.int64], float]:
    """Positions in ``found`` with the same answers as ``wanted``, others where there are none; and the share alike."""
    left = {answer: np.flatnonzero(found == answer).tolist() for answer in np.unique(found)}
    alike = [left[answer].pop() for answer in wanted if left.get(answer)]
    others = np.setdiff1d(np.arange(len(found)), alike)[: len(wanted) - len(alike)]
    return np.concatenate([np.array(alike, dtype=np.int64), others]), len(alike) / len(wanted)
