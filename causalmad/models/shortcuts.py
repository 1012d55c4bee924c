"""Runs that go on from a clean one: what an edit cannot have changed is looked up, and not computed again."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from itertools import pairwise
from typing import Any, TypeAlias
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor

from causalmad.errors import CausalmadError
from causalmad.inputs import Batch
from causalmad.models.alike import CLOSE, HALF, alike
from causalmad.models.base import OpenModel, Run
from causalmad.models.batching import out_of_memory
from causalmad.models.clean import Clean, beside, clean_of, joined_runs, keys_of, without
from causalmad.models.last_position import alone, behind_attention, from_last, in_last_block
from causalmad.models.recording import Recording, narrowed, recorded, replayed
from causalmad.sites import Place

Patch: TypeAlias = Callable[[Tensor], Tensor]
EditBatch: TypeAlias = Callable[[Batch], tuple[Batch, dict[Place, Patch]]]

_NUMBERS = 2**20  # of the residual stream in one run on a CPU: more of them leave its caches and take longer each


class Shortcuts:
    """Runs variants of clean runs, and computes again only what their edits can have changed.

    Three things are looked up in the clean run: what parts gave that were done before the first edited place; under a
    causal mask the keys and values of positions before the first edited one; and in the last block nothing but the last
    position goes on, where the logits are read. The first such run at every place carries one row without edits. When
    it does not come out as in the clean run, or a model raises, everything is computed again, from then on.

    Args:
        model: the opened model; plain runs are all there is for the nnsight engine, and under standing edits.
        places: where edits may come.
    """

    def __init__(self, model: OpenModel, places: Iterable[Place] = ()) -> None:
        self.model, self.places = model, tuple(dict.fromkeys(places))
        self.usable = alone(model)
        family = model.architecture
        decoder = (
            family is not None
            and family.wiring is not None
            and {"past_key_values", "use_cache"}.issubset(model.accepts)
        )
        self.tried: set[tuple[frozenset[Place], frozenset[str], bool, bool]] = set()  # what came out as it should
        self.company: WeakKeyDictionary[Clean, Clean] = WeakKeyDictionary()  # of lone inputs, while these are in use
        # Whether a token reaches none before it: tried out on the first batch.
        self.causal: bool | None = None if decoder and from_last(model) else False

    def stacks(self, widths: Tensor) -> Iterator[Tensor]:
        """Variants by number, in their order, in stacks of which each makes one run.

        Args:
            widths: (variants,) columns that each of them changes, of which only the largest counts in a run.
        """
        most, numbers = self._most
        start, known = 0, widths.tolist()
        while start < len(known):
            stop, widest = start, 0
            while stop < len(known) and stop - start < most:
                widest = max(widest, known[stop])
                if stop > start and (stop - start + 1) * widest > numbers:
                    break
                stop += 1
            # As many again as there are left, and not a full stack and a rest.
            left = -(-(len(known) - start) // max(stop - start, 1))
            stop = min(stop, start + -(-(len(known) - start) // left))
            yield torch.arange(start, stop)
            start = stop

    def rows(self, width: int) -> int:
        """Rows of one run, at most, of which each changes some columns."""
        most, numbers = self._most
        return int(max(1, min(most, numbers // width)))

    @property
    def _most(self) -> tuple[int, float]:
        most, numbers = self.model.batching.stack, float("inf")
        size = getattr(getattr(self.model.module, "config", None), "hidden_size", None)
        if isinstance(size, int) and self.model.device.type == "cpu":
            numbers = _NUMBERS / size
        return most, numbers

    def clean(self, batch: Batch, read: Sequence[Place] = (), size: int | None = None) -> Clean:
        """The clean run of a batch.

        Args:
            batch: the inputs.
            read: places to read.
            size: rows of one run, by default all.
        """
        if size is not None and size < len(batch):
            parts = np.split(np.arange(len(batch)), range(size, len(batch), size))
            return joined_runs(batch, [self.clean(batch.take(part), read) for part in parts])
        if not self.usable:
            return clean_of(batch, self.model.run(batch, read=read))
        cache = self._cache() if self._causal(batch) else None
        try:
            with self.model.held(), recorded(self.model.module, self.places, len(batch)) as recording:
                run = self.model.run(batch, read=read, extra={} if cache is None else {"past_key_values": cache})
        except CausalmadError as error:
            if out_of_memory(error):
                raise
            self.usable = False  # the plain run says what is wrong, if it is not the recording
            return self.clean(batch, read)
        return clean_of(batch, run, recording.finished(self.places), () if cache is None else keys_of(cache, batch))

    def logits(
        self, clean: Clean, rows: Tensor, edit: EditBatch, column: int = 0, still: Collection[str] = ()
    ) -> Tensor:
        """(variants, classes) logits of some rows of a clean run's batch under an edit; see :meth:`run`."""
        logits = self.run(clean, rows, edit, column, still).logits
        if logits is None:
            raise RuntimeError("a run with its output has logits")
        return logits

    def run(
        self,
        clean: Clean,
        rows: Tensor,
        edit: EditBatch,
        column: int = 0,
        still: Collection[str] = (),
        *,
        read: Sequence[Place] = (),
        output: bool = True,
    ) -> Run:
        """A run of some rows of a clean run's batch under an edit.

        Args:
            clean: the clean run.
            rows: (variants,) rows of its batch, as often as wanted.
            edit: from the batch of these rows to the edited one, and patches in the model; called again with the last
                columns alone where no others are run.
            column: of the padded rows, the first that a patch in the model changes.
            still: parts behind the first edited place that are known to give what they gave in the clean run.
            read: places to read, whole.
            output: whether the logits are wanted.
        """
        if self.usable and clean.recording is not None:
            try:
                found = self._short(clean, clean.recording, rows, edit, column, still, tuple(read), output)
            except CausalmadError as error:
                if out_of_memory(error):
                    raise
                found = None
            if found is not None:
                return found
            self.usable = False
        stacked, patches = edit(clean.batch.take(rows.numpy()))
        return self.model.run(stacked, edits=patches, read=read, output=output)

    def _short(
        self,
        clean: Clean,
        recording: Recording,
        rows: Tensor,
        edit: EditBatch,
        column: int,
        still: Collection[str],
        read: tuple[Place, ...],
        output: bool,
    ) -> Run | None:
        """The run; None when the row without edits did not come out as it should."""
        whole = clean.batch.take(rows.numpy())
        edited, patches = edit(whole)
        if patches and edited.main is not whole.main and not torch.equal(edited.main, whole.main):
            # Nothing before the patched places is as it was, either.
            return self.model.run(edited, edits=patches, read=read, output=output)
        # What is read is wanted at all columns, and computed again, so that it is as it stands in this run.
        column = 0 if read else self._first(clean, whole, edited, patches, column)
        if column:
            edited, patches = edit(without(whole, column)) if patches else (without(edited, column), patches)
        skipped = recording.before((*patches, *read), column > 0, still)
        width = clean.batch.main.shape[-1]
        narrow = self._narrow(patches) if from_last(self.model) and width - column > 1 and not read else ()
        if not (column or skipped or narrow):
            return self.model.run(edited, edits=patches, read=read, output=output)
        kind = (frozenset((*patches, *read)), frozenset(skipped), bool(column), bool(narrow))
        trial = kind not in self.tried
        if trial and self.model.batching.stack == 1:
            edited, patches = edit(whole)  # there is no memory for a row more
            return self.model.run(edited, edits=patches, read=read, output=output)
        if trial and len(clean.batch) == 1 and (company := self._company(clean)) is not None:
            if company.recording is None:
                return None
            mine = rows + len(company.batch) - 1
            return self._short(company, company.recording, mine, edit, column, still, read, output)
        # Another row each time: a part that is not run may have left something of the last trial for a later part.
        others = clean.others or len(clean.batch)
        known = torch.tensor([len(self.tried) % others] * int(trial), dtype=rows.dtype)
        index = torch.cat([rows, known]).to(clean.batch.main.device)
        batch = beside(edited, without(clean.batch.take(known.numpy()), column)) if trial else edited
        with self.model.held(), ExitStack() as stack:
            stack.enter_context(replayed(self.model.module, skipped, index, column, width, self._chain(skipped)))
            stack.enter_context(narrowed(self.model.module, narrow))
            extra = self._past(clean, index, column, skipped) if column else {}
            edits = {place: _but_last(patch) for place, patch in patches.items()} if trial else patches
            run = self.model.run(batch, edits=edits, read=read, output=output or trial, extra=extra)
        if run.logits is None or not trial:
            return run
        if not alike(run.logits[-1], clean.logits[int(known)], self.model.dtype):
            return None
        self.tried.add(kind)
        return Run(run.logits[:-1], {place: value[:-1] for place, value in run.values.items()})

    def _company(self, clean: Clean) -> Clean | None:
        """A clean run of a lone input behind two others that are made of it; None where its columns are too alike.

        What a part leaves for a later one is right for the only row there is, until a part runs under an edit.
        """
        if clean not in self.company:
            main = clean.batch.main
            made = [main.flatten(1).roll(step, 1).reshape(main.shape) for step in (1, 2)]
            if any(torch.equal(*pair) for pair in ((made[0], main), (made[1], main), made)):
                return None
            batch = clean.batch.take(np.zeros(3, dtype=np.int64)).with_main(torch.cat([*made, main]))
            self.company[clean] = replace(self.clean(batch), others=2)
        return self.company[clean]

    def _first(self, clean: Clean, whole: Batch, edited: Batch, patches: Mapping[Place, Patch], column: int) -> int:
        """The first column of the padded rows that has to be run."""
        if not clean.keys:
            return 0
        width = whole.main.shape[1]
        if not patches:
            changed = (whole.main != edited.main).any(0).nonzero()
            return int(changed[0]) if len(changed) else width - 1
        # Beyond the attention of the last block every position stands alone, and only the last one is read.
        return width - 1 if all(map(self._beyond, patches)) else column

    def _beyond(self, place: Place) -> bool:
        """Whether a place is behind the attention of the last block, or its last map."""
        family = self.model.architecture
        if family is None:
            return False
        last, wiring = family.layers - 1, family.wiring
        if place == Place(family.path(last, family.projection), "input"):
            return True
        behind = [family.path(last, family.mlp)]
        if wiring is not None:
            behind += [family.path(last, wiring.mlp_norm), wiring.final_norm]
        if any(place.path == path or place.path.startswith(f"{path}.") for path in behind):
            return True
        return place.side == "output" and place.path in (
            family.path(last),
            family.path(last, family.attention),
            family.path(last, family.projection),
        )

    def _narrow(self, patches: Mapping[Place, Patch]) -> tuple[str, ...]:
        """Parts of the last block that need the last position alone, where none of them is edited."""
        return () if in_last_block(self.model, patches) else behind_attention(self.model)

    def _chain(self, skipped: Mapping[str, Any]) -> tuple[str, ...]:
        """Skipped blocks whose output only the next skipped block reads."""
        family = self.model.architecture
        if family is None:
            return ()
        blocks = [family.path(layer) for layer in range(family.layers)]
        return tuple(path for path, after in pairwise(blocks) if {path, after} <= skipped.keys())

    def _causal(self, batch: Batch) -> bool:
        """Whether another last token leaves all positions before it as they are."""
        if self.causal is None:
            self.causal = self._tried(batch)
        return self.causal

    def _tried(self, batch: Batch) -> bool:
        if batch.mask is None or not bool(batch.mask[:, -1].all()):
            return False
        row = int(batch.mask.sum(-1).argmax())
        two = batch.take(torch.tensor([row, row]).numpy())
        tokens = two.main.clone()
        others = batch.main[batch.mask]
        others = others[others != tokens[0, -1]]
        if not len(others) or tokens.shape[1] < 2:
            return False
        tokens[1, -1] = others[0]
        family = self.model.architecture
        if family is None:
            return False
        place = Place(family.path(family.layers - 1))
        try:
            value = self.model.run(two.with_main(tokens), read=[place], output=False).values[place]
        except CausalmadError:
            return False  # the plain run that follows says why
        if value.shape[:2] != tokens.shape or value.ndim != 3:
            return False  # several streams beside each other (Gemma 3n), or columns of the model's own
        real = value[:, :-1][:, two.mask[0, :-1]] if two.mask is not None else value[:, :-1]
        close = CLOSE.get(value.dtype, HALF) * real.abs().amax()
        return bool((real[0] - real[1]).abs().amax() <= close) if real.shape[1] else False

    def _cache(self) -> Any:
        from transformers import DynamicCache

        return DynamicCache()

    def _past(self, clean: Clean, index: Tensor, column: int, skipped: Mapping[str, Any]) -> dict[str, Any]:
        """The keys and values before the first column that is run, and the mask of all columns."""
        cache, family = self._cache(), self.model.architecture
        for layer, (keys, values) in enumerate(clean.keys):
            cache.update(keys[:1, :, :1], values[:1, :, :1], layer)
            known, idle = cache.layers[layer], family is not None and family.path(layer) in skipped
            for name, value in (("keys", keys[:, :, :column]), ("values", values[:, :, :column])):
                # A block that does not run only says how many columns there are.
                setattr(
                    known, name, value[:1].expand(len(index), -1, -1, -1) if idle else value[index.to(value.device)]
                )
        mask = {"attention_mask": clean.batch.extra["attention_mask"][index]}
        return {"past_key_values": cache, **(mask if "attention_mask" in clean.batch.extra else {})}


def _but_last(patch: Patch) -> Patch:
    """A patch of all rows but the last."""

    def edit(value: Tensor) -> Tensor:
        return torch.cat([patch(value[:-1]), value[-1:]])

    return edit
