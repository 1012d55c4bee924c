"""An opened model: one protocol, whatever the model is and whichever engine runs it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor, nn

from causalmad.errors import CausalmadError, ModelError
from causalmad.inputs import Batch, Inputs
from causalmad.models.batching import Batching
from causalmad.models.fingerprint import digest, parameter_digests
from causalmad.models.logits import read_logits
from causalmad.models.padding import way_of
from causalmad.models.quiet import apart, contiguous, held, quiet
from causalmad.models.resolve import resolve
from causalmad.sites import Place, Site, position_index
from causalmad.targets import Readout, Target, as_target

if TYPE_CHECKING:
    from causalmad.models.architectures import Architecture

Patch = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Run:
    """What one run of the model gave.

    Attributes:
        logits: (batch, classes) at the position that was read; None when the run was stopped before the output.
        values: place -> activation as the rest of the model saw it, after edits.
        grads: place -> gradient of the summed target; only where a target was asked for.
    """

    logits: Tensor | None
    values: Mapping[Place, Tensor]
    grads: Mapping[Place, Tensor] = field(default_factory=dict)


class Engine(Protocol):
    """How a module is run with reads, edits and gradients; it leaves nothing behind."""

    name: str

    def run(
        self,
        module: nn.Module,
        args: tuple[Tensor, ...],
        kwargs: dict[str, Any],
        *,
        read: Sequence[Place],
        sloped: Sequence[Place],
        edits: Mapping[Place, Patch],
        objective: Callable[[Any], tuple[Tensor, Tensor]] | None,
        output: bool,
    ) -> tuple[Any, dict[Place, Tensor], dict[Place, Tensor]]:
        """The module's output, values and gradients.

        Args:
            module: the plain module.
            args: positional arguments of the model, which gets copies of its own.
            kwargs: keyword arguments of the model, likewise.
            read: places to read, each a whole tensor.
            sloped: those of them at which the gradient is wanted.
            edits: place -> what it is replaced by; reads see the edited value.
            objective: from the module's output to (logits, scalar), the scalar's gradient being wanted at ``sloped``.
            output: whether the output is wanted; without it the run may stop after the last read.
        """
        ...


@dataclass(frozen=True, eq=False, repr=False)
class OpenModel:
    """A model that signatures can read, differentiate and intervene on; made by :func:`causalmad.open_model`.

    Attributes:
        module: the plain ``torch.nn.Module``.
        handle: what was opened: the module, or nnsight's wrapper of it, which the nnsight engine then runs.
        engine: ``hooks`` or ``nnsight``.
        architecture: where blocks, heads and MLPs are, if the model is of a known family.
        tokenizer: turns texts into token ids, if there is one.
        accepts: names of the arguments of the model's ``forward``, in its order.
        needs: those of them that have no default.
        positional: whether token ids are passed as the first positional argument (TransformerLens).
        side: where token rows are padded, ``left`` or ``right``.
        batching: how many inputs share a batch.
        standing: edits under which every run of this view of the model stands, from the batch; None on the plain model.
    """

    module: nn.Module
    handle: Any
    engine: Engine
    architecture: Architecture | None = None
    tokenizer: Callable[..., Any] | None = None
    accepts: tuple[str, ...] = ()
    needs: frozenset[str] = frozenset()
    positional: bool = False
    side: str = "left"
    batching: Batching = field(default_factory=Batching)
    standing: Callable[[Batch], Mapping[Place, Patch]] | None = None

    def __repr__(self) -> str:
        """The model, its family and its engine, in a line."""
        family = self.architecture.name if self.architecture else "no known family"
        return f"OpenModel({self.name}, {family}, engine={self.engine.name!r})"

    @property
    def batch_size(self) -> int:
        """Inputs a batch, at most; with ``batch_size="auto"`` it falls where memory runs out."""
        return self.batching.size

    @property
    def plain(self) -> OpenModel:
        """The model without standing edits: what donors run on."""
        return replace(self, standing=None)

    @property
    def name(self) -> str:
        """The class of the module."""
        return type(self.module).__name__

    @property
    def device(self) -> torch.device:
        """Where the first parameter lives."""
        device = next((p.device for p in self.module.parameters()), torch.device("cpu"))
        return torch.device("cpu") if device.type == "meta" else device  # the weights of a remote model are elsewhere

    @property
    def dtype(self) -> torch.dtype:
        """What floating-point inputs are cast to: the type of the first floating-point parameter."""
        return next((p.dtype for p in self.module.parameters() if p.is_floating_point()), torch.float32)

    def inputs(self, data: Any) -> Inputs:
        """Inputs for this model from texts, tensors, dicts, data sets or loaders; see :meth:`Inputs.of`."""
        if isinstance(data, Inputs):
            return replace(data)  # hashed anew: the tensors are the user's, who may have written to them
        return Inputs.of(data, tokenizer=self.tokenizer, accepts=self.accepts, dtype=self.dtype)

    def sites(self, what: str | Site | Sequence[str | Site]) -> tuple[Site, ...]:
        """The sites that a path, a glob, a role or a list of them means on this model, in the order of the layers.

        Raises:
            SiteError: for what the model does not have, with the nearest three names.
        """
        return resolve(self.module, self.architecture, what)

    def batches(self, inputs: Inputs, size: int | None = None) -> Iterator[Batch]:
        """Batches of the inputs on the model's device, padded and masked as the model takes them.

        Args:
            inputs: the inputs.
            size: inputs a batch, where not ``batch_size``.
        """
        # Classifiers of sequences look for the padding by its token.
        fill = getattr(getattr(self.module, "config", None), "pad_token_id", None)
        way = way_of(self, inputs)
        found = inputs.batches(
            size or self.batch_size,
            side=self.side,
            accepts=[name for name in self.accepts if name != "position_ids" or name in way],
            needs=self.needs,
            device=self.device,
            dtype=self.dtype,
            fill=fill if isinstance(fill, int) and fill >= 0 else 0,
            by_length=self.batching.auto,
            together=bool(way),
        )
        return self.batching.counted(found, len(inputs))

    def quiet(self) -> AbstractContextManager[None]:
        """Eval mode, frozen parameters and a lock, for as long as it lasts; afterwards all is as it was."""
        return quiet(self.module)

    def held(self) -> AbstractContextManager[None]:
        """The same, for a block in which nothing but :meth:`run` runs the model: within another it costs nothing."""
        return held(self.module)

    def run(
        self,
        batch: Batch,
        *,
        read: Sequence[Place] = (),
        edits: Mapping[Place, Patch] | None = None,
        target: Target | Readout | None = None,
        output: bool = True,
        position: int | str = -1,
        extra: Mapping[str, Any] | None = None,
        sloped: Sequence[Place] | None = None,
    ) -> Run:
        """One run of the model: capture, gradients and edits are all this.

        Args:
            batch: what the model is called with.
            read: places to read.
            edits: place -> function of its activation, applied before anything later in the model runs.
            target: read-out whose gradient is wanted at ``read``, bound to this run's own logits; or any function of
                the logits (batch, classes) -> (batch,).
            output: whether the logits are wanted; without them the run stops after the last read.
            position: token position at which a sequence of logits is read.
            extra: more keyword arguments of the model, such as ``past_key_values``.
            sloped: where the gradient is wanted, by default at all of ``read``; they are read as well.

        Raises:
            SiteError: when a place is never reached, or has no tensor.
            ModelError: when the output holds no logits.
        """
        objective, read_already = None, list[Tensor]()
        slopes: tuple[Place, ...] = ()
        if target is not None:
            slopes = tuple(read if sloped is None else sloped)
            question = as_target(target)

            def objective(result: Any) -> tuple[Tensor, Tensor]:
                logits = read_logits(result, batch, position, columns)
                read_already[:] = [logits]
                return logits, question.bind(logits)(logits).sum()

        # Tensors of an enclosing inference mode can be neither differentiated nor watched for in-place changes.
        with self.quiet(), torch.inference_mode(False):
            columns = self._columns(batch, position) if output or target is not None else None
            args, kwargs = self._call(batch, position, columns, extra or {})
            standing = {} if self.standing is None else self.standing(batch)
            try:
                narrow = "logits_to_keep" in kwargs and (output or target is not None)
                with contiguous(self.module if narrow else None):
                    result, values, grads = self.engine.run(
                        self.module,
                        args,
                        kwargs,
                        read=tuple(dict.fromkeys((*read, *slopes))),
                        sloped=slopes,
                        edits=_after(standing, edits or {}),
                        objective=objective,
                        output=output,
                    )
            except CausalmadError:
                raise
            except Exception as error:
                raise _failed(self.name, batch, error, self.batching.auto) from error
            logits = None
            if output or objective is not None:
                # A copy: some models hand out memory of their own, which the next run writes to.
                logits = (read_already or [read_logits(result, batch, position, columns)])[0].detach().clone()
            values = {place: apart(self.module, value) for place, value in values.items()}
        return Run(logits, values, grads)

    def logits(self, batch: Batch, edits: Mapping[Place, Patch] | None = None, position: int | str = -1) -> Tensor:
        """(batch, classes) logits, possibly under edits.

        Args:
            batch: the inputs.
            edits: place -> what becomes of its activation.
            position: token whose logits they are, where there is one for each token.

        Raises:
            ModelError: when the model's output has no logits.
        """
        logits = self.run(batch, edits=edits, position=position).logits
        if logits is None:
            raise ModelError("the run gave no logits")
        return logits

    def fingerprint(self) -> str:
        """A hash of every parameter and buffer that a checkpoint holds."""
        return digest(self.parameter_fingerprints())

    def parameter_fingerprints(self) -> dict[str, str]:
        """Name of a parameter or buffer that a checkpoint holds -> hash of its shape, type and values."""
        return parameter_digests(self.module)

    def _call(
        self, batch: Batch, position: int | str, columns: Tensor | None = None, extra: Mapping[str, Any] | None = None
    ) -> tuple[tuple[Tensor, ...], dict[str, Any]]:
        args, named = batch.call
        kwargs: dict[str, Any] = {**named, **(extra or {})}
        if self.positional and "input_ids" in kwargs:
            args = (kwargs.pop("input_ids"), *args)
        if "use_cache" in self.accepts:
            kwargs["use_cache"] = "past_key_values" in kwargs  # otherwise one would be filled for nothing
        if self._last(batch, position):
            kwargs["logits_to_keep"] = 1  # the vocabulary is the largest matrix; only one position is read
        elif columns is not None:
            kwargs["logits_to_keep"] = columns
        return args, kwargs

    def _last(self, batch: Batch, position: int | str) -> bool:
        """Whether the logits that are wanted are those of the last column, and the model can leave out all others."""
        return batch.mask is not None and "logits_to_keep" in self.accepts and position == -1 and self.side == "left"

    def _columns(self, batch: Batch, position: int | str) -> Tensor | None:
        """Columns of the padded rows at which logits are wanted, where the model can leave out all others.

        The vocabulary is the largest matrix. None where the model keeps them all, or the last alone.
        """
        if batch.mask is None or "logits_to_keep" not in self.accepts or self._last(batch, position):
            return None
        if not type(self.module).__module__.startswith("transformers."):
            return None  # a number of last positions is all that others need to know
        columns: Tensor = position_index(position, batch.decoded).unique()
        return columns


def _failed(name: str, batch: Batch, error: Exception, auto: bool) -> ModelError:
    """What to say when a model raises; its own error is the cause."""
    shape = f"{tuple(batch.main.shape)} {str(batch.main.dtype).removeprefix('torch.')}"
    smaller = (
        "cm.extract(fitted, inputs), which makes batches smaller" if auto else 'open_model(model, batch_size="auto")'
    )
    first = f", the first of them {batch.ids[0]!r}" if batch.ids else ""
    what = f"{name} raised {type(error).__name__} on {len(batch)} inputs {shape}{first}: {error}"
    if "Inference tensor" in str(error):
        return ModelError(
            what,
            causes=["a model that was made under torch.inference_mode(): no gradient goes through its weights"],
            tries=["copy.deepcopy(model), outside of that mode", "a signature without gradients: activations"],
        )
    return ModelError(
        what,
        causes=[
            "inputs of another width or type than the model takes",
            "token ids outside the vocabulary, or more tokens than positions",
            "too little memory for a batch",
        ],
        tries=["model(inputs[:1]) outside of causalmad, to see it alone", smaller],
    )


def _after(first: Mapping[Place, Patch], then: Mapping[Place, Patch]) -> dict[Place, Patch]:
    """Edits one after the other where both touch a place."""

    def both(place: Place) -> Patch:
        return lambda value: then[place](first[place](value))

    return {**first, **then, **{place: both(place) for place in first.keys() & then.keys()}}
