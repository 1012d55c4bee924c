"""What the parts of a module gave in one run, to be given again in others; nothing stays on the module."""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import wraps
from typing import Any

import torch
from torch import Tensor, nn

from causalmad.models.state import version
from causalmad.sites import Place


class Recording:
    """When each part ran, and what it gave.

    Args:
        kept: paths of the parts whose outputs may be asked for.
        count: rows of the batch.
    """

    def __init__(self, kept: Collection[str], count: int) -> None:
        self.kept, self.count = frozenset(kept), count
        self.entered: dict[str, int] = {}
        self.left: dict[str, int] = {}
        self.outputs: dict[str, Any] = {}
        self.versions: dict[str, list[int]] = {}
        self.again: set[str] = set()  # called more than once
        self.moments = 0

    @property
    def numbers(self) -> int:
        """How many numbers are held; what several parts handed on counts once."""
        held = {value.data_ptr(): value.numel() for output in self.outputs.values() for value in _tensors(output)}
        return sum(held.values())

    def enter(self, path: str) -> None:
        """A part begins."""
        if path in self.entered:
            self.again.add(path)
        self.entered[path] = self.moments
        self.moments += 1

    def leave(self, path: str, output: Any) -> None:
        """A part has given its output."""
        self.left[path] = self.moments
        self.moments += 1
        if path in self.kept and _by_row(output, self.count):
            self.outputs[path] = output
            self.versions[path] = [version(value) for value in _tensors(output)]

    def finished(self, places: Iterable[Place]) -> Recording:
        """The recording without what cannot be given again, or is done after all places.

        A part that was called twice, or whose output was overwritten later, is not given again.
        """
        last = max((self._moment(place) or 0 for place in places), default=0)
        for path, output in list(self.outputs.items()):
            found = [version(value) for value in _tensors(output)]
            written = found != self.versions[path] or -1 in found  # -1: nobody counts what is written to it
            if path in self.again or written or self.left[path] > last:
                del self.outputs[path]
        return self

    def _moment(self, place: Place) -> int | None:
        return (self.entered if place.side == "input" else self.left).get(place.path)

    def before(self, places: Iterable[Place], cut: bool = False, still: Collection[str] = ()) -> dict[str, Any]:
        """Path -> output of the largest parts that were done before the first of some places, and of some behind it.

        Args:
            places: what is edited.
            cut: whether the first columns are left out; then those with an axis of heads beside that of the columns,
                such as norms of queries, run again: it stands before the columns in some models and behind in others.
            still: parts behind the first place that give what they gave, if no place is in them.
        """
        wanted = list(places)
        moments = [moment for moment in map(self._moment, wanted) if moment is not None]
        if len(moments) < len(wanted) or not wanted or self.again & {place.path for place in wanted}:
            return {}
        first = min(moments)
        around = {above for place in wanted for above in (place.path, *_above(place.path))}
        done = {
            path: output
            for path, output in self.outputs.items()
            if self.left[path] <= first or (path in still and path not in around)
        }
        if cut:
            done = {path: output for path, output in done.items() if all(x.ndim <= 3 for x in _tensors(output))}
        return {path: output for path, output in done.items() if not any(above in done for above in _above(path))}


def joined(parts: Sequence[Recording]) -> Recording:
    """The recording of several batches of one width as one; without outputs where their runs took other ways."""
    first = parts[0]
    whole = Recording(first.kept, sum(part.count for part in parts))
    whole.entered, whole.left = first.entered, first.left
    whole.again = {path for part in parts for path in part.again}
    if any((part.entered, part.left) != (first.entered, first.left) for part in parts):
        return whole
    for path in first.outputs:
        outputs = [part.outputs.get(path) for part in parts]
        alike = {None if output is None else _form(output) for output in outputs}
        if len(alike) == 1 and None not in alike:
            whole.outputs[path] = _together(outputs)
    return whole


def _form(output: Any) -> Any:
    if isinstance(output, Tensor):
        return output.shape[1:], output.dtype
    return tuple(None if part is None else _form(part) for part in output)


def _together(outputs: Sequence[Any]) -> Any:
    if isinstance(outputs[0], Tensor):
        return torch.cat(list(outputs))
    return tuple(None if parts[0] is None else torch.cat(parts) for parts in zip(*outputs, strict=True))


@contextmanager
def recorded(module: nn.Module, places: Iterable[Place], count: int) -> Iterator[Recording]:
    """Records a run: the parts on the ways to some places and beside them, each once.

    Args:
        module: the plain module.
        places: before which parts will be skipped.
        count: rows of the batch that is run.
    """
    wanted = list(places)
    inside = {above for place in wanted for above in _above(place.path)}
    parts = dict(module.named_modules())
    # What holds a place is given again where a later place is edited.
    near = {path for path in parts if path and path.rpartition(".")[0] in inside}
    ends = {place.path for place in wanted if place.path and place.path in parts}
    # A part without parameters costs little, and may hold what does not go by rows.
    kept = {path for path in near | ends if next(parts[path].parameters(), None) is not None}
    recording = Recording(kept, count)

    def noting(path: str, run: Callable[..., Any]) -> Callable[..., Any]:
        def forward(*args: Any, **kwargs: Any) -> Any:
            recording.enter(path)
            result = run(*args, **kwargs)
            recording.leave(path, result)
            return result

        return forward

    with _instead({path: noting(path, parts[path].forward) for path in kept | ends}, parts):
        yield recording


@contextmanager
def replayed(
    module: nn.Module, outputs: Mapping[str, Any], rows: Tensor, column: int, width: int, through: Collection[str]
) -> Iterator[None]:
    """Parts give what they gave before, for some rows and from a column on, instead of running.

    Args:
        module: the plain module.
        outputs: path -> what the part gave.
        rows: (variants,) rows of the recorded run.
        column: the first column that is run.
        width: columns of the recorded run.
        through: parts whose output nobody reads; they hand on what they are given.
    """

    def giving(output: Any) -> Callable[..., Any]:
        return lambda *_, **__: _picked(output, rows, column, width)

    def handing(output: Any) -> Callable[..., Any]:
        single = isinstance(output, Tensor)

        def forward(*args: Any, **kwargs: Any) -> Any:
            first = args[0] if args else next(iter(kwargs.values()))
            return first if single else (first, *[None] * (len(output) - 1))

        return forward

    instead = {path: (handing if path in through else giving)(output) for path, output in outputs.items()}
    with _instead(instead, {path: module.get_submodule(path) for path in instead}):
        yield


@contextmanager
def narrowed(module: nn.Module, paths: Iterable[str]) -> Iterator[None]:
    """Parts read the last position alone; what is added to their output carries its values to all others."""
    thread = threading.get_ident()

    def last(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if threading.get_ident() == thread and args and isinstance(args[0], Tensor) and args[0].ndim == 3:
            return (args[0][:, -1:], *args[1:]), kwargs
        return None

    handles = []
    try:
        for path in paths:
            handles.append(module.get_submodule(path).register_forward_pre_hook(last, with_kwargs=True))
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def _instead(forwards: Mapping[str, Callable[..., Any]], parts: Mapping[str, nn.Module]) -> Iterator[None]:
    """Other functions in place of the ``forward`` of some parts; what an instance had of its own is put back.

    Another thread that calls the model meanwhile gets what the parts themselves give.
    """
    before = [(parts[path], dict(parts[path].__dict__)) for path in forwards]
    thread = threading.get_ident()

    def here(forward: Callable[..., Any], own: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(own)
        def either(*args: Any, **kwargs: Any) -> Any:
            return (forward if threading.get_ident() == thread else own)(*args, **kwargs)

        return either

    try:
        for path, forward in forwards.items():
            parts[path].__dict__["forward"] = here(forward, parts[path].forward)
        yield
    finally:
        for part, own in before:
            if "forward" in own:
                part.__dict__["forward"] = own["forward"]
            else:
                part.__dict__.pop("forward", None)


def _above(path: str) -> list[str]:
    """The parts around a part, from the model itself on."""
    names = path.split(".")
    return [".".join(names[:count]) for count in range(len(names))] if path else []


def _tensors(output: Any) -> list[Tensor]:
    return [output] if isinstance(output, Tensor) else [part for part in output if isinstance(part, Tensor)]


def _by_row(output: Any, count: int) -> bool:
    """Whether an output is a tensor, or a plain tuple of tensors and nothings, with a row for every input."""
    plain = type(output) is tuple and all(part is None or isinstance(part, Tensor) for part in output)
    if not isinstance(output, Tensor) and not plain:
        return False
    tensors = _tensors(output)
    return bool(tensors) and all(value.ndim and value.shape[0] == count for value in tensors)


def _picked(output: Any, rows: Tensor, column: int, width: int) -> Any:
    if isinstance(output, Tensor):
        sequence = column and output.ndim == 3 and output.shape[1] == width
        return (output[:, column:] if sequence else output)[rows.to(output.device)]
    return tuple(None if part is None else _picked(part, rows, column, width) for part in output)
