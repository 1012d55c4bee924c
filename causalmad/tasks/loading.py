"""What tasks share whose models and inputs are loaded from where people put them."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from causalmad.errors import TaskError, nearest
from causalmad.inputs import Inputs
from causalmad.models import OpenModel, open_model
from causalmad.models.pretrained import open_pretrained
from causalmad.rows import read_rows
from causalmad.tasks.base import Task, TaskData, describe_card

Rows = npt.NDArray[np.int64]

FEWEST = 10  # test inputs of either kind
_DATA = "a file.jsonl, a folder that Dataset.save_to_disk wrote, a folder of train.jsonl and so on, or a hub name"


def require_given(task: Task, **options: str) -> None:
    """Nothing, where every option has a value.

    Raises:
        TaskError: with the options that are needed.
    """
    missing = [name for name, value in options.items() if not isinstance(value, str) or not value]
    if missing:
        raise TaskError(
            f"{type(task).__name__} without {', '.join(missing)}",
            needed=", ".join(f"{name}=..." for name in options),
            tries=["the options are described in help(causalmad.tasks." + type(task).__name__ + ")"],
        )


def opened(name: str) -> OpenModel:
    """A model of transformers with its tokenizer, from a folder or by its name; its own code is never run.

    Raises:
        ModelError: when there is no such model.
        TaskError: when there is no tokenizer.
    """
    module, tokenizer = open_pretrained(name)
    return open_model(module, tokenizer=require_tokenizer(tokenizer, name))


def require_tokenizer(tokenizer: Any, name: str) -> Callable[..., Any]:
    """The tokenizer itself.

    Raises:
        TaskError: when it is None.
    """
    if tokenizer is None:
        raise TaskError(
            f"{name} has no tokenizer, and the task's inputs are texts",
            tries=["AutoTokenizer.from_pretrained(...).save_pretrained(folder)"],
        )
    found: Callable[..., Any] = tokenizer
    return found


def library(name: str, install: str) -> Any:
    """An optional library, imported now.

    Raises:
        TaskError: when it is not installed, with what installs it.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise TaskError(
            f"the library {name!r} is needed and cannot be imported: {error}",
            tries=[install],
        ) from error


def folder_of(name: str, patterns: Sequence[str]) -> Path:
    """A folder of this machine with the files of a model: the one of this name, or fetched from the hub.

    Args:
        name: a folder, or a model on the Hugging Face hub.
        patterns: which files are fetched, such as ``*.json``.

    Raises:
        TaskError: when there is no such model.
    """
    if Path(name).is_dir():
        return Path(name)
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, allow_patterns=list(patterns)))
    except (OSError, ValueError) as error:
        raise TaskError(
            f"no model can be fetched from {name}: {error}",
            needed="a folder, or the name of a model on the Hugging Face hub",
            causes=["no such model", "no connection to the hub"],
        ) from error


def read_table(name: str, split: str, columns: Sequence[str], also: Sequence[str] = ()) -> dict[str, list[Any]]:
    """Columns of one split of a data set; no code that comes with it is run.

    Args:
        name: a file of JSON lines, which is one split, whichever is asked for; a folder with a file ``SPLIT.jsonl``; a
            folder that ``save_to_disk`` of the library ``datasets`` wrote; otherwise whatever its ``load_dataset``
            finds under that name: a folder of data files, or a data set on the Hugging Face hub.
        split: such as ``train``.
        columns: which must be there.
        also: which are read where they are there.

    Raises:
        TaskError: when there is no such data set, split or column.
    """
    path = Path(name)
    file = path / f"{split}.jsonl" if path.is_dir() else path
    found: Any
    if file.is_file() and file.suffix in (".jsonl", ".json"):
        rows = [row.values for row in read_rows(str(file))]
        found = {key: [row[key] for row in rows] for key in rows[0] if all(key in row for row in rows)}
        known = list(found)
    else:
        found = _from_library(name, split)
        known = list(found.column_names)
    missing = [key for key in columns if key not in known]
    if missing:
        raise TaskError(
            f"{name} ({split}) has no column {', '.join(map(repr, missing))}",
            needed=f"the columns {', '.join(columns)}",
            tries=nearest(missing[0], known),
        )
    return {key: list(found[key]) for key in (*columns, *also) if key in known}


def _from_library(name: str, split: str) -> Any:
    """A data set of the library ``datasets``."""
    datasets, folder = library("datasets", "pip install 'causalmad[datasets]'"), Path(name)
    try:
        if not any((folder / file).is_file() for file in ("dataset_dict.json", "state.json")):
            return datasets.load_dataset(name, split=split)
        found = datasets.load_from_disk(name)
    except (OSError, ValueError, RuntimeError) as error:
        raise TaskError(
            f"no data set can be read from {name}: {error}",
            needed=_DATA,
            causes=["no such folder, data set or split", "no connection to the Hugging Face hub"],
        ) from error
    if isinstance(found, Mapping) and split not in found:
        raise TaskError(f"{name} has no split {split!r}", tries=[repr(key) for key in found])
    return found[split] if isinstance(found, Mapping) else found


def answers(model: OpenModel, inputs: Inputs) -> Rows:
    """(n,) the class, or the next token, that the model thinks likeliest."""
    found = np.empty(len(inputs), dtype=np.int64)
    for batch in model.batches(inputs):
        found[batch.rows] = model.logits(batch).argmax(-1).cpu().numpy()
    return found


def short_enough(model: OpenModel, inputs: Inputs) -> Rows:
    """Rows of the inputs that have no more tokens than the model has positions: nothing is ever cut off."""
    config = getattr(model.module, "config", None)
    limits = [getattr(config, "max_position_embeddings", None), getattr(model.tokenizer, "model_max_length", None)]
    most = min((limit for limit in limits if isinstance(limit, int)), default=2**31)
    return np.flatnonzero(inputs.lengths <= most)


def first_of_each(inputs: Inputs) -> Rows:
    """Rows of the first input of every content."""
    seen: dict[str, int] = {}
    for row, digest in enumerate(inputs.digests):
        seen.setdefault(digest, row)
    return np.array(sorted(seen.values()), dtype=np.int64)


def require_apart(parts: Mapping[str, Inputs]) -> None:
    """Nothing, where no content stands in two parts.

    Raises:
        TaskError: with the ids of inputs that do.
    """
    seen: dict[str, tuple[str, str]] = {}
    for part, inputs in parts.items():
        shared = []
        for key, digest in zip(inputs.ids, inputs.digests):
            other, twin = seen.setdefault(digest, (part, key))
            if other != part:
                shared.append(f"{key!r} is {twin!r} of the {other} inputs")
        if shared:
            raise TaskError(
                f"{len(shared)} of the {part} inputs stand among others: {', '.join(shared[:3])}",
                needed="no input in two parts: what was fitted on may not be asked about",
                tries=["drop them from one of the two"],
            )


def put_together(
    task: Task,
    name: str,
    seed: int,
    model: OpenModel,
    inputs: Inputs,
    parts: Mapping[str, Rows],
    rng: np.random.Generator,
    **made: object,
) -> TaskData:
    """A task's data from one table of inputs.

    Args:
        task: whose card is written.
        name: of the task with its options.
        seed: of everything random.
        model: the network.
        inputs: all of them; a column ``answer`` (right classes), where there is one, gives the card's accuracy.
        parts: rows of the ``trusted``, ``normal`` and ``untrusted`` (may be empty) inputs, and of ``usual`` and ``odd``
            test inputs.
        rng: shuffles the test inputs.
        made: what else the card says.

    Raises:
        TaskError: when a part is too small, or an input stands in two.
    """
    few = [f"{len(rows)} {key}" for key, rows in parts.items() if key != "untrusted" and len(rows) < FEWEST]
    if few:
        raise TaskError(
            f"too few inputs: {', '.join(few)}", needed=f"{FEWEST} of each at least", causes=["a small data set"]
        )
    test = rng.permutation(np.concatenate([parts["usual"], parts["odd"]]))
    labels = np.isin(test, parts["odd"])
    given = {key: inputs[parts[key]] for key in ("trusted", "normal", "untrusted") if len(parts[key])}
    given["test"] = inputs[test]
    require_apart(given)
    return TaskData(
        name,
        seed,
        model.module,
        given["trusted"],
        given["test"],
        labels,
        given["normal"],
        given.get("untrusted"),
        describe_card(
            task,
            {"fingerprint": model.fingerprint(), **made},
            sizes={key: len(part) for key, part in given.items()},
            accuracy=accuracy(model, given["test"], labels),
        ),
    )


def accuracy(model: OpenModel, test: Inputs, labels: npt.NDArray[np.bool_]) -> dict[str, float]:
    """Share of the normal and of the anomalous test inputs whose column ``answer`` the model gives; {} without one."""
    wanted = test.columns.get("answer")
    if wanted is None or wanted.dtype.kind not in "iu":
        return {}
    right = answers(model, test) == wanted
    return {"normal": float(right[~labels].mean()), "anomalous": float(right[labels].mean())}


def shares(rows: Rows, sizes: Mapping[str, int]) -> dict[str, Rows]:
    """Rows dealt out to parts of these sizes; fewer of each, in proportion, where there are not enough."""
    scale = min(1.0, len(rows) / sum(sizes.values()))
    ends = np.cumsum([int(size * scale) for size in sizes.values()])
    return {name: rows[end - int(size * scale) : end] for (name, size), end in zip(sizes.items(), ends)}
