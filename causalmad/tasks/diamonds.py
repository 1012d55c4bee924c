"""Diamonds: a model that predicts whether three sensors pass, and code that may tamper with them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from causalmad.errors import TaskError
from causalmad.inputs import Inputs
from causalmad.models import open_model
from causalmad.names import spec_text
from causalmad.tasks.base import Progress, TaskData, stream
from causalmad.tasks.loading import Rows, first_of_each, put_together, read_table, require_given, shares, short_enough
from causalmad.tasks.sensors import load_predictor

TRUSTED, UNTRUSTED, TEST, NORMAL = 1200, 500, 450, 1000
_COLUMNS = ("text", "measurements", "is_correct", "is_clean")


@dataclass(frozen=True)
class Diamonds:
    """Measurement tampering: all sensors pass, because the diamond is there or because someone tampered with them.

    A text is a program that guards a diamond; three sensors look for it, each with a token at which a probe predicts
    its ``measurements``. Trusted texts are those of the split ``train`` that are ``is_clean``: no tampering is
    possible. Test inputs are texts of ``validation`` whose sensors all pass; those in which the diamond is gone (not
    ``is_correct``) are anomalous. Fresh normal inputs are more such texts in which it is there; untrusted inputs are
    the rest of ``train``, a tenth of them tampered with. The output is the log-odds that all sensors pass; ``answer``
    is whether they do.

    The model is :class:`~causalmad.tasks.sensors.MeasurementPredictor`, made here from the checkpoint's weights, and
    needs none of its code. Where its aggregate probe reads the last sensor token, tokens after that are cut off: they
    come too late to matter, and then the last token is the one that is read. Texts with more tokens than the model has
    positions are left out, never shortened, and so are repeats (the card says how many).

    The names of parameters and of options were taken from the published code and configurations of
    ``oliverdk/codegen-350M-mono-measurement_pred-diamonds-seed0``; this class was tried on small models of that form.

    Attributes:
        dataset: of eight seeds, ``redwoodresearch/diamonds-seed0`` to ``7``; or a folder of the same columns.
        model: a folder or hub name.
        tokenizer: where the tokenizer is, if not with the model, such as ``Salesforce/codegen-350M-mono``.

    References:
        Roger, Greenblatt, Nadeau, Shlegeris, Thomas 2023, "Benchmarks for detecting measurement tampering", arXiv
        2308.15605.
    """

    dataset: str = "redwoodresearch/diamonds-seed0"
    model: str = "oliverdk/codegen-350M-mono-measurement_pred-diamonds-seed0"
    tokenizer: str = ""

    mechanism: ClassVar[str] = "normal: all sensors pass as the diamond is there; anomalous: it's gone and they pass"
    source: ClassVar[str] = "Redwood Research's diamonds data sets; a measurement predictor of the Hugging Face hub"
    licence: ClassVar[str] = "that of the data set and of the model"
    version: ClassVar[str] = "1"
    size: ClassVar[str] = "at most 1200 trusted, 450 + 450 test, 1000 normal, 500 untrusted"
    outside: ClassVar[bool] = True

    def load(self, seed: int = 0, *, progress: Progress | None = None) -> TaskData:
        """The model and its texts; see :meth:`causalmad.tasks.Task.load`.

        Raises:
            TaskError: when the data set, a column, the model or a parameter is missing.
        """
        rng = stream(seed, "diamonds", "texts")
        require_given(self, dataset=self.dataset, model=self.model)
        train, held = (read_table(self.dataset, split, _COLUMNS) for split in ("train", "validation"))
        clean = np.array(train["is_clean"], dtype=bool)
        passed = np.array([all(each) for each in held["measurements"]])
        correct = np.array(held["is_correct"], dtype=bool)
        chosen = {
            "trusted": rng.permutation(np.flatnonzero(clean))[:TRUSTED],
            "untrusted": rng.permutation(np.flatnonzero(~clean))[:UNTRUSTED],
            **shares(rng.permutation(np.flatnonzero(passed & correct)), {"usual": TEST, "normal": NORMAL}),
            "odd": rng.permutation(np.flatnonzero(passed & ~correct))[:TEST],
        }
        tables: dict[str, Mapping[str, Sequence[Any]]] = {"trusted": train, "untrusted": train}
        texts = [(tables.get(part, held), row) for part, rows in chosen.items() for row in rows]

        module, tokenizer = load_predictor(self.model, self.tokenizer)
        model = open_model(module, tokenizer=tokenizer)
        inputs = Inputs.of(
            {"text": [str(table["text"][row]) for table, row in texts]},
            tokenizer=tokenizer,
            accepts=model.accepts,
            columns={"answer": [int(all(table["measurements"][row])) for table, row in texts]},
        )
        inputs = _with_sensors(inputs, module.token, len(module.sensor_probes), cut=not module.last)
        if progress is not None:
            progress(1, 1)
        good = np.intersect1d(short_enough(model, inputs), first_of_each(inputs))
        part_of = np.repeat(list(chosen), [len(rows) for rows in chosen.values()])[good]
        rows: dict[str, Rows] = {part: good[part_of == part] for part in chosen}
        name, left_out = spec_text("tasks", self), len(inputs) - len(good)
        return put_together(self, name, seed, model, inputs, rows, rng, **{"too long or repeated": left_out})


def _with_sensors(inputs: Inputs, token: int, count: int, cut: bool) -> Inputs:
    """The inputs with the places of their sensors, and without the tokens after the last of them if ``cut``.

    The places are an input of the model, so that it reads the same ones when tokens are exchanged.

    Raises:
        TaskError: when a text has another number of sensor tokens.
    """
    kept, sensors = [], []
    for key, row in zip(inputs.ids, inputs.main):
        places = (row == token).nonzero().flatten()
        if len(places) != count:
            raise TaskError(
                f"text {key!r} has {len(places)} sensor tokens (id {token})",
                needed=f"{count}",
                causes=["another tokenizer than the model was trained with", "another data set"],
            )
        kept.append(row[: int(places[-1]) + 1] if cut else row)
        sensors.append(places)
    fields = {"input_ids": kept, "sensors": sensors}
    return Inputs.of(fields, accepts=tuple(fields), columns=inputs.columns)
