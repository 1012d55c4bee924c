import hashlib
import json

import numpy as np
import pytest
import torch
from torch import nn

import causalmad as cm
from causalmad import Detector, FittedDetector, Inputs, Monitor
from causalmad.calibration import CalibrationConditional, CrossConformal, Mondrian
from causalmad.calibration.martingale import log_capitals
from causalmad.errors import CalibrationError, InputsError, StoreError
from causalmad.monitor import first_alarm
from causalmad.signatures import Activations
from causalmad.testing.toys import toy

MADE = toy("mlp", trusted=300, fresh=60)
FITTED = Detector(Activations(), calibration_share=0.6).fit(MADE.model, MADE.trusted)
STRANGE = Inputs.of(MADE.fresh.main * 4)


def stream(monitor, inputs, size=1):
    return [event for start in range(0, len(inputs), size) for event in monitor(inputs[start : start + size])]


def test_events_are_what_detect_says():
    events = stream(Monitor(FITTED, alpha=0.05), MADE.fresh)
    found = FITTED.detect(MADE.fresh, alpha=0.05)
    assert [event.id for event in events] == list(found.ids)
    np.testing.assert_allclose([event.score for event in events], found.scores, rtol=1e-4)
    assert [event.p_value for event in events] == found.p_values.tolist()
    assert [event.flag for event in events] == found.flags.tolist()


def test_the_size_of_the_batches_plays_no_part():
    one, many = Monitor(FITTED), Monitor(FITTED)
    assert [e.p_value for e in stream(one, MADE.fresh)] == [e.p_value for e in stream(many, MADE.fresh, 17)]
    assert one.state() == many.state() and one.steps == 60


@pytest.mark.parametrize("calibrator", [CalibrationConditional(), Mondrian("length")], ids=str)
def test_capital_is_that_of_calibration_conditional_p_values(calibrator):
    fitted = Detector(Activations(), calibrator=calibrator, calibration_share=0.6).fit(MADE.model, MADE.trusted)
    monitor = Monitor(fitted, alpha=0.1, alarm=0.02)
    events = stream(monitor, MADE.fresh, 20)
    covariates = {"covariates": {"length": MADE.fresh.lengths}} if isinstance(calibrator, Mondrian) else {}
    p = fitted.calibrator.conditional(0.01).p_values(fitted.score(MADE.fresh), **covariates)
    np.testing.assert_allclose(np.log([event.capital for event in events]), log_capitals(p))
    assert monitor.threshold == 100


def test_an_alarm_is_raised_where_inputs_change_and_stays():
    monitor = Monitor(FITTED)
    assert not any(event.alarm for event in stream(monitor, MADE.fresh)) and not monitor.alarmed
    events = monitor(STRANGE)
    step = first_alarm(events)
    assert step is not None and 1 < step < 40
    assert all(event.alarm for event in events[step - 1 :]) and monitor.alarmed
    assert all(event.alarm for event in monitor(MADE.fresh))
    assert "alarm" in repr(monitor)
    assert first_alarm(Monitor(FITTED)(MADE.fresh)) is None
    with pytest.raises(InputsError):
        first_alarm(())


def test_it_learns_nothing():
    monitor = Monitor(FITTED)
    before = [event.p_value for event in Monitor(FITTED)(MADE.fresh)]
    monitor(STRANGE)
    assert [event.p_value for event in monitor(MADE.fresh)] == before


def test_saved_and_loaded_it_goes_on(tmp_path):
    whole, first = Monitor(FITTED, alpha=0.05), Monitor(FITTED, alpha=0.05)
    stream(whole, MADE.fresh), first(MADE.fresh[:25])
    first.save(tmp_path / "monitor.json")
    FITTED.save(tmp_path / "detector")
    detector = FittedDetector.load(tmp_path / "detector", MADE.model)
    again = Monitor.load(tmp_path / "monitor.json", detector)
    assert again.state() == first.state()
    again(MADE.fresh[25:])
    assert again.state() == whole.state() and again.alpha == 0.05
    size = (tmp_path / "monitor.json").stat().st_size
    stream(again, MADE.fresh, 20)
    again.save(tmp_path / "monitor.json")
    assert abs((tmp_path / "monitor.json").stat().st_size - size) < 200
    assert sorted(path.name for path in tmp_path.iterdir()) == ["detector", "monitor.json"]
    Monitor(FITTED).save(tmp_path / "fresh.json")
    assert Monitor.load(tmp_path / "fresh.json", FITTED).capital == 1


def test_a_monitor_goes_on_only_where_the_model_computes_the_same_buffers(tmp_path):
    class Gained(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer, self.act, self.last = nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)
            self.register_buffer("gain", torch.tensor([1.0, 2.0, 3.0]), persistent=False)

        def forward(self, x):
            return self.last(self.act(self.layer(x) * self.gain))

    model, path = Gained(), tmp_path / "monitor.json"
    fitted = Detector(Activations("act"), calibration_share=0.6).fit(model, torch.randn(200, 4))
    Monitor(fitted).save(path)
    model.gain = torch.nextafter(model.gain, torch.full((), 9.0))  # as computed by another processor
    assert Monitor.load(path, fitted).steps == 0
    model.gain = model.gain * 2
    with pytest.raises(StoreError, match="another detector: buffer 'gain'"):
        Monitor.load(path, fitted)
    content = json.loads(path.read_text())
    for buffers, error in ((None, None), ([], "holds no monitor"), ({"gain": 3}, "holds no monitor")):
        other = {key: value for key, value in content.items() if key not in ("checksum", "buffers")}
        other |= {} if buffers is None else {"buffers": buffers}
        checksum = hashlib.sha256(json.dumps(other, sort_keys=True).encode()).hexdigest()
        path.write_text(json.dumps({**other, "checksum": checksum}))
        if error is None:  # of the time when no buffers were recorded
            assert Monitor.load(path, fitted).steps == 0
        else:
            with pytest.raises(StoreError, match=error):
                Monitor.load(path, fitted)


def test_what_was_not_saved_for_this_detector_is_refused(tmp_path):
    path = tmp_path / "monitor.json"
    Monitor(FITTED).save(path)
    other = Detector(Activations(), calibration_share=0.6).fit(MADE.model, MADE.trusted, seed=1)
    with pytest.raises(StoreError, match="another detector"):
        Monitor.load(path, other)
    text = path.read_text()
    for damage in ("", "[]", text[:-20], text.replace('"steps": 0', '"steps": 9'), "3"):
        path.write_text(damage)
        with pytest.raises(StoreError):
            Monitor.load(path, FITTED)
    with pytest.raises(StoreError, match="cannot be read"):
        Monitor.load(tmp_path / "nowhere", FITTED)
    with pytest.raises(StoreError, match="cannot be written"):
        Monitor(FITTED).save(tmp_path / "no folder" / "monitor.json")
    path.write_text(json.dumps({"checksum": "0"}))
    with pytest.raises(StoreError):
        Monitor.load(path, FITTED)


def test_what_cannot_be_monitored_is_named():
    cross = Detector(Activations(), calibrator=CrossConformal()).fit(MADE.model, MADE.trusted)
    with pytest.raises(CalibrationError, match=r"CrossConformal has no p-values(.|\n)*Conformal\(\)"):
        Monitor(cross)
    with pytest.raises(CalibrationError, match="can never flag"):
        Monitor(FITTED, alpha=0.001)
    with pytest.raises(CalibrationError, match="alarm="):
        Monitor(FITTED, alarm=0)
    monitor = Monitor(FITTED)
    with pytest.raises(cm.CausalmadError):
        monitor(torch.full((2, 12), float("nan")))
    assert monitor.steps == 0


def test_batches_get_smaller_where_memory_runs_out():
    made = toy("gpt2", trusted=60, fresh=30)
    most = [1000]

    def limited(module, args, kwargs):
        if len(kwargs["input_ids"]) > most[0]:
            raise RuntimeError("out of memory")

    opened = cm.open_model(made.model, batch_size="auto")
    fitted = Detector(cm.signatures.AttributionPatching()).fit(opened, made.trusted)
    wanted = fitted.detect(made.fresh, alpha=0.2).p_values
    handle = made.model.register_forward_pre_hook(limited, with_kwargs=True)
    try:
        most[0] = 5
        events = Monitor(fitted, alpha=0.2)(made.fresh)
    finally:
        handle.remove()
    assert fitted.model.batch_size == 4 and [event.p_value for event in events] == wanted.tolist()


@pytest.mark.parametrize("alarm", [0, 1, 2, "x"])
def test_an_alarm_that_is_no_probability_is_called_by_its_name(alarm):
    with pytest.raises(CalibrationError, match=f"^alarm={alarm!r}"):
        Monitor(Detector(Activations()).fit(MADE.model, MADE.trusted), 0.2, alarm)
