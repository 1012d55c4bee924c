"""Models that misbehave: each case ends in the right scores or in a named error, and nothing is left on the model."""

from __future__ import annotations

import copy
import threading
import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from scipy.stats import spearmanr
from torch import Tensor, nn

import causalmad as cm
from causalmad import Detector
from causalmad.catalogue import catalogue
from causalmad.errors import CausalmadError
from causalmad.testing.toys import toy
from causalmad.testing.traces import untouched
from tests.faults.watch import Fault

INPUTS = toy("mlp", trusted=60, fresh=12)
SIGNATURES: tuple[Any, ...] = (
    cm.signatures.Activations(),
    cm.signatures.AttributionPatching(units="blocks"),
    cm.signatures.ResamplingProfile(donors=2, units="blocks"),
)


def network() -> nn.Module:
    """The toy's network, a fresh copy in training mode, with dropout."""
    return copy.deepcopy(INPUTS.model).train()


def scores(model: Any, signature: Any, **options: Any) -> np.ndarray:
    """Anomaly scores of the fresh inputs."""
    fitted = Detector(signature).fit(model, INPUTS.trusted, **options)
    return fitted.score(INPUTS.fresh)


def require_equal(found: np.ndarray, wanted: np.ndarray, what: str, tolerance: float = 1e-4) -> None:
    if not np.allclose(found, wanted, rtol=tolerance, atol=1e-6):
        raise Fault(f"{what}: scores differ by up to {np.abs(found - wanted).max():g}")


def require_named(run: Callable[[], Any], what: str) -> None:
    """The run raises one of causalmad's own errors."""
    try:
        run()
    except CausalmadError:
        return
    raise Fault(f"{what}: no error")


class Late(nn.Module):
    """Raises in a run of its own choice."""

    def __init__(self, error: BaseException, after: int) -> None:
        super().__init__()
        self.inner, self.error, self.left = network(), error, [after]

    def forward(self, x: Tensor) -> Tensor:
        half = self.inner[1](self.inner[0](x))
        self.left[0] -= 1
        if self.left[0] < 0:
            raise self.error
        return self.inner[5](self.inner[4](self.inner[3](self.inner[2](half))))


def raises_in_the_middle() -> None:
    for signature in SIGNATURES:
        for error in (ValueError("broken"), KeyError("x"), torch.cuda.OutOfMemoryError("none left"), StopIteration()):
            for after in (0, 1, 3):
                model = Late(error, after)
                with untouched(model, "after an error"):
                    require_named(lambda m=model, s=signature: scores(m, s), f"{type(error).__name__} in run {after}")
        model = Late(KeyboardInterrupt(), 1)
        with untouched(model, "after an interrupt"):
            try:
                scores(model, signature)
            except KeyboardInterrupt:
                continue
            raise Fault("an interrupt was swallowed")


def gives_nan_or_infinity() -> None:
    for number in (float("nan"), float("inf"), -float("inf")):
        for place in ("output", "middle", "one row"):
            model = network().eval()

            class Broken(nn.Module):
                def forward(self, x: Tensor, number: float = number, place: str = place) -> Tensor:
                    return torch.where(x[:, :1] > 1.5, number, x) if place == "one row" else x + number

            at = 2 if place == "middle" else len(model)
            broken = nn.Sequential(*list(model)[:at], Broken(), *list(model)[at:])
            for signature in SIGNATURES:
                with untouched(broken, "after NaN"):
                    try:
                        found = scores(broken, signature)
                    except CausalmadError:
                        continue
                if not np.isfinite(found).all():  # what is read before the output may well be right
                    raise Fault(f"{number} in the {place}: scores {found[:3]}")


def overflows_in_half_precision() -> None:
    for kind in (torch.float16, torch.bfloat16):
        model = network().to(kind)
        with torch.no_grad():
            model[0].weight.mul_(3e4)
        for signature in SIGNATURES:
            with untouched(model, "after an overflow"):
                try:
                    found = scores(model, signature)
                except CausalmadError:
                    continue
            if not np.isfinite(found).all():
                raise Fault(f"{kind}: scores {found[:3]}")


def is_in_training_mode() -> None:
    for signature in SIGNATURES:
        model = network()
        with untouched(model, "in training mode"):
            found = scores(model, signature)
        require_equal(found, scores(network().eval(), signature), "training mode", 0)


def has_batch_norm() -> None:
    made = toy("conv", trusted=60, fresh=12)
    for signature in (cm.signatures.Activations(), cm.signatures.GradientNorms(), cm.signatures.ResamplingProfile()):
        found = []
        for mode in (True, False):
            model = copy.deepcopy(made.model).train(mode)
            with untouched(model, "with batch norm"):
                found.append(Detector(signature).fit(model, made.trusted).score(made.fresh))
        require_equal(found[0], found[1], "batch norm", 0)


class Shared(nn.Module):
    """One layer in two places, under two names."""

    def __init__(self, shared: bool) -> None:
        super().__init__()
        parts = network().eval()
        self.first, self.act, self.middle, self.last = parts[0], parts[1], parts[3], parts[5]
        self.again = self.middle if shared else copy.deepcopy(self.middle)
        self.tanh, self.other = nn.Tanh(), nn.Tanh()

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.other(self.again(self.tanh(self.middle(self.act(self.first(x)))))))


def shares_a_module() -> None:
    """A module called twice is named, or read at its first call where the run ends there, or plays no part."""
    shared = Shared(True)
    with untouched(shared, "with a shared module"):
        require_named(lambda: scores(shared, cm.signatures.Activations(("middle", "other"))), "a shared module")
        first, alone = (scores(Shared(kind), cm.signatures.Activations("middle")) for kind in (True, False))
        require_equal(first, alone, "the first call of a shared module")
        require_equal(
            scores(shared, cm.signatures.Activations(("act", "tanh", "other"))),
            scores(Shared(False), cm.signatures.Activations(("act", "tanh", "other"))),
            "a shared module",
        )
        for signature in SIGNATURES[1:]:
            require_equal(scores(shared, signature), scores(Shared(False), signature), "a shared module")


class Twice(nn.Module):
    """Calls itself a second time in one run, and a third time on some inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.net = network()
        self.step = nn.Linear(12, 12)

    def forward(self, x: Tensor) -> Tensor:
        x = self.step(self.step(x))
        return self.net(self.step(x) if float(x.sum()) > 0 else x)


def calls_a_module_twice() -> None:
    model = Twice()
    with untouched(model, "with a module called twice"):
        sites = cm.signatures.Activations(("step", "net.1"))
        require_named(lambda: scores(model, sites), "a module called twice")
        if not np.isfinite(scores(model, cm.signatures.Activations("net.1"))).all():
            raise Fault("scores that are not finite")


def is_compiled() -> None:
    """Compiled without a backend, which is what tells hooks from no hooks; in place, and as a wrapper."""
    for wrapped in (True, False):
        for signature in SIGNATURES:
            plain = network().eval()
            wanted = scores(plain, signature)
            if wrapped:
                model: Any = torch.compile(plain, backend="eager")
            else:
                plain.compile(backend="eager")
                model = plain
            for warm in (False, True):
                if warm:
                    model(INPUTS.fresh.main)
                with untouched(plain, "when compiled"):
                    require_equal(scores(model, signature), wanted, f"compiled, wrapped={wrapped}, warm={warm}", 1e-3)


def is_quantised() -> None:
    for signature in SIGNATURES:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model = torch.ao.quantization.quantize_dynamic(network().eval(), {nn.Linear}, dtype=torch.qint8)
        try:
            found = scores(model, signature)
        except CausalmadError:
            continue
        alike = spearmanr(found, scores(network().eval(), signature)).statistic
        if not np.isfinite(found).all() or alike < 0.8:
            raise Fault(f"quantised: {found[:3]}, rank correlation {alike:.2f} with the plain network's")


def is_quantised_and_saved() -> None:
    """A quantised model that differs in one weight is another model."""
    from causalmad.models import open_model

    prints = []
    for changed in (False, True):
        plain = nn.Sequential(nn.Linear(200, 200), nn.ReLU(), nn.Linear(200, 3))
        with torch.no_grad():
            for number, value in enumerate(plain.parameters()):
                value.copy_(torch.randn(value.shape, generator=torch.Generator().manual_seed(number)))
            if changed:
                plain[0].weight[100, 100] += 1
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            prints.append(
                open_model(torch.ao.quantization.quantize_dynamic(plain, {nn.Linear}, dtype=torch.qint8)).fingerprint()
            )
    if prints[0] == prints[1]:
        raise Fault("two quantised models that differ have one fingerprint")


class Changing(nn.Module):
    """Its output has another width, or another number of rows, from some run on."""

    def __init__(self, how: str, after: int) -> None:
        super().__init__()
        self.net, self.how, self.left = network(), how, [after]

    def forward(self, x: Tensor) -> Any:
        out = self.net(x)
        self.left[0] -= 1
        if self.left[0] >= 0:
            return out
        return {"wider": torch.cat([out, out], 1), "fewer": out[:-1], "none": None, "text": "x", "flat": out.sum()}[
            self.how
        ]


def changes_its_output_shape() -> None:
    for how in ("wider", "fewer", "none", "text", "flat"):
        for after in (0, 1, 2, 4, 8):
            for signature in (*SIGNATURES, cm.signatures.OutputOnly()):
                _try_changing(signature, how, after)


def changes_its_output_shape_under_every_signature() -> None:
    """All of the catalogue, with what each needs."""
    made = replace(INPUTS, places=("net.1", "net.4"))
    for entry in catalogue("signatures"):
        spec = made.ready(entry.load()())
        for how in ("wider", "fewer", "flat"):
            for after in (1, 3, 10, 30):
                _try_changing(spec, how, after)


def _try_changing(signature: Any, how: str, after: int) -> None:
    model = Changing(how, after)
    with untouched(model, "after another shape"):
        try:
            found = scores(model, signature)
        except CausalmadError:
            return
        except Exception as error:
            raise Fault(f"{type(signature).__name__}, {how} after {after}: {type(error).__name__}: {error}") from error
    if not np.isfinite(found).all():
        raise Fault(f"{how} after {after}: {found[:3]}")


class Wrapper(nn.Module):
    """Another view of the same model."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x)


def runs_in_other_threads() -> None:
    """Detectors in several threads on one model, on a wrapper of it and on a part of it."""
    model = network()
    views = [model, Wrapper(model), nn.Sequential(model), Wrapper(Wrapper(model))]
    fitted = [Detector(signature).fit(view, INPUTS.trusted) for view in views for signature in SIGNATURES]
    wanted = [each.score(INPUTS.fresh) for each in fitted]
    found: list[Any] = [None] * len(fitted)

    def work(place: int) -> None:
        try:
            found[place] = [fitted[place].score(INPUTS.fresh) for _ in range(3)]
        except BaseException as error:
            found[place] = error

    with untouched(model, "after threads"):
        threads = [threading.Thread(target=work, args=(place,)) for place in range(len(fitted))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    for place, each in enumerate(found):
        if isinstance(each, BaseException):
            raise Fault(f"in a thread: {type(each).__name__}: {str(each)[:200]}")
        for one in each:
            require_equal(one, wanted[place], "in a thread", 0)


def is_used_by_its_owner_meanwhile() -> None:
    """Whoever calls the model itself in another thread gets its own answers, and disturbs nobody's scores."""
    model = network().eval()
    detectors = [Detector(signature).fit(model, INPUTS.trusted) for signature in SIGNATURES]
    wanted = [each.score(INPUTS.fresh) for each in detectors]
    with torch.no_grad():
        answer = model(INPUTS.fresh.main)
    stop, wrong = threading.Event(), []

    def serve() -> None:
        while not stop.is_set():
            try:
                with torch.no_grad():
                    if not torch.allclose(model(INPUTS.fresh.main), answer, atol=1e-5):
                        wrong.append("another answer")
            except BaseException as error:
                wrong.append(f"{type(error).__name__}: {error}")

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        for _ in range(10):
            for each, scored in zip(detectors, wanted):
                require_equal(each.score(INPUTS.fresh), scored, "while the owner calls", 0)
    finally:
        stop.set()
        thread.join()
    if wrong:
        raise Fault(f"the owner's own call gave {wrong[0][:200]} ({len(wrong)} times)")


CASES: tuple[Callable[[], None], ...] = (
    raises_in_the_middle,
    gives_nan_or_infinity,
    overflows_in_half_precision,
    is_in_training_mode,
    has_batch_norm,
    shares_a_module,
    calls_a_module_twice,
    is_compiled,
    is_quantised,
    is_quantised_and_saved,
    changes_its_output_shape,
    changes_its_output_shape_under_every_signature,
    runs_in_other_threads,
    is_used_by_its_owner_meanwhile,
)
