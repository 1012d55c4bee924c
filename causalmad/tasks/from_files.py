"""From files: your own model, trusted inputs and labelled test inputs as a task."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, cast

import numpy as np
import numpy.typing as npt

from causalmad.errors import TaskError
from causalmad.inputs import Inputs
from causalmad.models import OpenModel, open_model
from causalmad.models.pretrained import open_pretrained
from causalmad.names import spec_text
from causalmad.rows import Row, as_inputs, read_blocks, read_rows
from causalmad.tasks.base import Progress, Task, TaskData, describe_card, stream
from causalmad.tasks.loading import accuracy, require_apart, require_given

HELD_OUT = 4  # one of so many trusted contents is kept for false-alarm rates, where no normal inputs are given


@dataclass(frozen=True)
class FromFiles:
    """Your own model and files: trusted inputs, and test inputs that are labelled normal or anomalous.

    The files are JSON lines, one object a line, as the command line reads them: ``text`` (or ``prompt``, ``input``,
    ``sentence``) goes through the model's tokenizer, ``input_ids`` are tokens, one list of numbers is the first
    argument of the model, lists named like its arguments are those; ``id`` names an input, and all else is a column
    that the model never sees. Test inputs have a ``label``: true where the input is anomalous. A column ``answer`` of
    whole numbers (the right class, or next token) gives the card's accuracy, a column ``subset`` an AUROC for each of
    its values.

    Nothing is matched or balanced: what the test file holds is what is measured. The seed changes which trusted inputs
    are held out, and the detector's own draws; the model is the same for all seeds.

    Attributes:
        model: a folder that ``save_pretrained`` wrote, or a name that transformers can find; in Python also a module,
            or whatever else ``causalmad.open_model`` takes (with its tokenizer, where the files hold texts).
        trusted: file of trusted inputs; a ``label`` in it may not be true.
        test: file of test inputs with a ``label``.
        normal: file of fresh normal inputs for false-alarm rates; without it a fourth of the trusted contents, drawn by
            the seed, is held out for that and no longer trusted.
        untrusted: file of unlabelled inputs, for references that compare with them; a ``label`` is dropped.
        blocks: named parts of an input's last axis, each ``NAME=START:STOP``.
        name: of the task, in tables and logs; by default its text with all options.

    Example:
        ``causalmad evaluate --task "from-files[model=./model,trusted=t.jsonl,test=u.jsonl]" --detector ...``; paths
        with commas or brackets can't be written so, in Python they can.
    """

    model: str = ""
    trusted: str = ""
    test: str = ""
    normal: str = ""
    untrusted: str = ""
    blocks: tuple[str, ...] = ()
    name: str = ""

    mechanism: ClassVar[str] = "as the test file's labels say"
    source: ClassVar[str] = "files of the user"
    licence: ClassVar[str] = "that of the files and of the model"
    version: ClassVar[str] = "1"
    size: ClassVar[str] = "that of the files"
    outside: ClassVar[bool] = True

    def load(self, seed: int = 0, *, progress: Progress | None = None) -> TaskData:
        """The model and the inputs of the files; see :meth:`causalmad.tasks.Task.load`.

        Raises:
            TaskError: when an option is missing, labels are missing or of one kind, or a content stands in two files.
            InputsError: when a line cannot be read.
            ModelError: when there is no such model.
        """
        rng = stream(seed, "from-files", "held out")
        given: Any = self.model
        require_given(self, model=given if isinstance(given, str) else "given", trusted=self.trusted, test=self.test)
        rows = {part: read_rows(path) for part, path in self._files.items()}
        labels = _labels(rows["test"])
        for part in {"trusted", "normal"} & set(rows):
            _require_normal(rows[part], part)
        model = _opened(given)
        blocks = read_blocks(self.blocks)
        parts = {part: as_inputs([_unlabelled(row) for row in each], model, blocks) for part, each in rows.items()}
        _require_alike(parts)
        require_apart(parts)
        held = "normal" not in parts
        if held:
            parts["trusted"], parts["normal"] = _held_out(parts["trusted"], rng)
        if progress is not None:
            progress(1, 1)
        made = {"fingerprint": model.fingerprint(), "files": self._files, "normal held out of trusted": held}
        return TaskData(
            self.name or spec_text("tasks", self),
            seed,
            model.module,
            parts["trusted"],
            parts["test"],
            labels,
            parts["normal"],
            parts.get("untrusted"),
            describe_card(
                self,
                made,
                sizes={part: len(each) for part, each in parts.items()},
                accuracy=accuracy(model, parts["test"], labels),
            ),
        )

    @property
    def _files(self) -> dict[str, str]:
        """The parts for which there is a file, and its path."""
        paths = {part: getattr(self, part) for part in ("trusted", "test", "normal", "untrusted")}
        return {part: path for part, path in paths.items() if path}


def from_files(
    model: Any,
    trusted: str,
    test: str,
    normal: str | None = None,
    untrusted: str | None = None,
    *,
    blocks: Mapping[str, tuple[int, int]] | None = None,
    name: str = "",
) -> Task:
    """A task from your own model and files, in one line; see :class:`FromFiles` for what stands in the files.

    Args:
        model: a folder or name of a transformers model, a module, or whatever else ``causalmad.open_model`` takes.
        trusted: file of trusted inputs.
        test: file of test inputs, with a ``label`` that is true where the input is anomalous.
        normal: file of fresh normal inputs; by default a fourth of the trusted ones is held out.
        untrusted: file of unlabelled inputs.
        blocks: name -> (start, stop) on an input's last axis.
        name: of the task, in tables and logs.

    Example:
        ``evaluate(tasks.from_files(model, "trusted.jsonl", "test.jsonl"), "activations+mahalanobis")``
    """
    ranges = tuple(f"{key}={start}:{stop}" for key, (start, stop) in (blocks or {}).items())
    # The option is text on the command line, and a model itself only here.
    return FromFiles(cast(str, model), str(trusted), str(test), str(normal or ""), str(untrusted or ""), ranges, name)


def _opened(given: Any) -> OpenModel:
    if not isinstance(given, str):
        return open_model(given)
    module, tokenizer = open_pretrained(given)
    return open_model(module, tokenizer=tokenizer)


def _labels(rows: list[Row]) -> npt.NDArray[np.bool_]:
    """(n,) whether each row is anomalous."""
    for row in rows:
        if "label" not in row.values:
            raise TaskError(
                f"{row.place} has no label",
                needed='"label": true in every anomalous line of the test file, "label": false in every normal one',
            )
        if not isinstance(row.values["label"], int) or row.values["label"] not in (0, 1):
            raise TaskError(f"{row.place}: label {row.values['label']!r}", needed="true (anomalous) or false (normal)")
    labels = np.array([bool(row.values["label"]) for row in rows])
    if labels.all() or not labels.any():
        raise TaskError(
            f"all {len(rows)} test inputs are labelled {'anomalous' if labels.all() else 'normal'}",
            needed="inputs of both kinds: true for anomalous, false for normal",
            tries=["causalmad fit and causalmad detect, which need no labels"],
        )
    return labels


def _require_normal(rows: list[Row], part: str) -> None:
    odd = [row.place for row in rows if row.values.get("label")]
    if odd:
        raise TaskError(
            f"{len(odd)} {part} inputs are labelled anomalous, the first in {odd[0]}", needed=f"normal {part} inputs"
        )


def _unlabelled(row: Row) -> Row:
    """The row without its label, which no detector may see."""
    return replace(row, values={name: value for name, value in row.values.items() if name != "label"})


def _require_alike(parts: Mapping[str, Inputs]) -> None:
    wanted = list(parts["trusted"].fields)
    for part, inputs in parts.items():
        if list(inputs.fields) != wanted:
            raise TaskError(
                f"{part} inputs call the model with {list(inputs.fields)}, trusted ones with {wanted}",
                needed="the same fields in all files",
            )


def _held_out(trusted: Inputs, rng: np.random.Generator) -> tuple[Inputs, Inputs]:
    """Trusted inputs that stay trusted, and those held out; repeats of a content stay together."""
    contents = sorted(set(trusted.digests))
    count = len(contents) // HELD_OUT
    if count == 0:
        raise TaskError(
            f"{len(contents)} different trusted inputs", needed=f"{HELD_OUT} at least", tries=["normal=..."]
        )
    held = set(rng.permutation(contents)[:count].tolist())
    out = np.array([digest in held for digest in trusted.digests])
    return trusted[~out], trusted[out]
