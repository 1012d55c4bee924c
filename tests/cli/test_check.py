"""check on parts of the catalogue, on plug-ins that are right and wrong, and on tasks."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from causalmad.cli.check import check

PLUGIN = '''
from __future__ import annotations

from dataclasses import dataclass, replace

from causalmad.calibration import Conformal
from causalmad.references import Mahalanobis
from causalmad.signatures import Activations
from causalmad.signatures.base import Signatures


@dataclass(frozen=True)
class Good:
    scale: float = 2.0

    def fit(self, model, trusted, seed=0):
        return Scaled(Activations().fit(model, trusted, seed), self.scale)

    def restore(self, model, state):
        return Scaled(Activations().restore(model, state), self.scale)


@dataclass(frozen=True)
class Scaled:
    inner: object
    scale: float
    centred: bool = False

    @property
    def columns(self):
        return self.inner.columns

    def state(self):
        return self.inner.state()

    def __call__(self, inputs):
        found = self.inner(inputs)
        values = found.values * self.scale
        return replace(found, values=values - values.mean(0) if self.centred and len(values) else values)


@dataclass(frozen=True)
class Centred:
    """Rows depend on whatever else is in the batch."""

    def fit(self, model, trusted, seed=0):
        return Scaled(Activations().fit(model, trusted, seed), 1.0, True)

    def restore(self, model, state):
        return Scaled(Activations().restore(model, state), 1.0, True)


@dataclass(frozen=True)
class Picky(Good):
    """Refuses models without attention."""

    def fit(self, model, trusted, seed=0):
        from causalmad.errors import FitError

        if not trusted.tokens:
            raise FitError("no tokens", needed="a language model")
        return super().fit(model, trusted, seed)


@dataclass(frozen=True)
class Needy:
    scale: float

    def fit(self, model, trusted, seed=0):
        raise KeyError("scale")

    def restore(self, model, state):
        raise KeyError("scale")


needy = Needy(1.0)


class Turned:
    """A reference with the other sign, and without a state."""

    def fit(self, X):
        inner = Mahalanobis().fit(X)
        return type("Fitted", (), {"score_samples": lambda self, X: -inner.score_samples(X)})()


class Nothing:
    pass


class Cardless:
    def load(self, seed=0, *, progress=None):
        raise NotImplementedError


calibrator = Conformal()
'''


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """The command in a folder with a plug-in, whose name no other test has."""
    (tmp_path / "plugin_of_check.py").write_text(PLUGIN)
    (tmp_path / "raising_of_check.py").write_text("raise RuntimeError('boom')")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "plugin_of_check", raising=False)
    app = typer.Typer(pretty_exceptions_enable=False)
    app.command()(check)

    def call(*arguments: object) -> Any:
        before = list(sys.path)
        done = CliRunner().invoke(app, [str(part) for part in arguments])
        assert sys.path == before
        return done

    return call


def statuses(path: Path, number: int = 0) -> dict[tuple[str, str], str]:
    laws = json.loads(path.read_text())["targets"][number]["laws"]
    return {(each["law"], each["on"]): each["status"] for each in laws}


def test_a_good_signature_of_ones_own_keeps_every_law(run, tmp_path) -> None:
    done = run("plugin_of_check:Good", "--toys", "mlp,gpt2", "--json", tmp_path / "r.json")
    assert done.exit_code == 0, done.output
    found = statuses(tmp_path / "r.json")
    assert set(found.values()) == {"holds"}
    assert {toy for _, toy in found} == {"mlp", "gpt2"}
    assert "rows stand alone" in done.stdout


def test_a_signature_that_depends_on_the_batch_is_caught(run, tmp_path) -> None:
    done = run("plugin_of_check:Centred", "--toys", "mlp", "--json", tmp_path / "r.json")
    assert done.exit_code == 2
    assert "law_rows_stand_alone on mlp is broken" in done.stdout
    assert "a row's signature depends on its own input only" in done.stdout or "every other input" in done.stdout
    found = statuses(tmp_path / "r.json")
    assert found["law_rows_stand_alone", "mlp"] == "broken"
    assert found["law_nothing_is_left", "mlp"] == "holds"
    assert not json.loads((tmp_path / "r.json").read_text())["targets"][0]["holds"]


def test_what_does_not_apply_is_told_from_what_is_broken(run, tmp_path) -> None:
    done = run("plugin_of_check:Picky", "--toys", "mlp,gpt2", "--json", tmp_path / "r.json")
    assert done.exit_code == 0, done.output
    found = statuses(tmp_path / "r.json")
    assert {status for (_, toy), status in found.items() if toy == "mlp"} == {"does not apply"}
    assert {status for (_, toy), status in found.items() if toy == "gpt2"} == {"holds"}
    assert "a language model" in done.stdout


def test_what_refuses_every_toy_has_not_passed(run) -> None:
    done = run("plugin_of_check:Picky", "--toys", "mlp")
    assert done.exit_code == 2
    assert "No law could be tried" in done.stdout


def test_an_error_that_is_not_named_is_a_broken_law(run) -> None:
    done = run("plugin_of_check:needy", "--toys", "mlp")
    assert done.exit_code == 2
    assert "KeyError: 'scale'" in done.stdout and "Traceback" not in done.output


def test_references_and_calibrators_are_told_apart(run, tmp_path) -> None:
    done = run("plugin_of_check:Turned", "plugin_of_check:calibrator", "--json", tmp_path / "r.json")
    assert done.exit_code == 2
    assert "law_higher_is_more_normal on rows is broken" in done.stdout
    assert statuses(tmp_path / "r.json")["law_contributions_sum_to_the_score", "rows"] == "does not apply"
    assert set(statuses(tmp_path / "r.json", 1).values()) == {"holds"}


def test_parts_of_the_catalogue_with_options_and_excuses(run, tmp_path) -> None:
    targets = ("attribution-patching[units=blocks]", "attention-patterns", "activations+mahalanobis")
    done = run(*targets, "--toys", "mlp", "--json", tmp_path / "r.json")
    assert set(statuses(tmp_path / "r.json").values()) == {"holds"}
    assert set(statuses(tmp_path / "r.json", 1).values()) == {"excused"}
    assert ("law_explanations_sum_to_the_score", "mlp") in statuses(tmp_path / "r.json", 2)
    assert "it reads attention" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "nothing to check"),
        (("atribution-patching",), "attribution-patching"),
        (("plugin_of_check:Goodd",), "plugin_of_check:Good"),
        (("plugin_of_check:Needy",), "cannot be made without options"),
        (("plugin_of_check:Nothing",), "which is no part"),
        (("plugin_of_check:Cardless",), "mechanism"),
        (("no_such_module_of_check:X",), "could not be imported"),
        (("raising_of_check:X",), "RuntimeError: boom"),
        (("activations", "--toys", "gpt3"), "no toy is called"),
        (("activations", "--toys", ","), "no toys"),
        (("mahalanobis", "--toys", "mlp"), "--toys without"),
        (("mahalanobis", "--markdown", "t.md"), "--markdown without a task"),
        (("--suite", "quik"), "quick"),
    ],
)
def test_mistakes_are_one_message(run, tmp_path, arguments: tuple[str, ...], said: str) -> None:
    done = run(*arguments)
    assert done.exit_code == 2
    assert said in done.stderr and "Traceback" not in done.stderr
    assert not done.stdout
    assert not (tmp_path / "t.md").exists()


def test_a_task_is_held_to_the_rules_and_gets_a_card(run, stub, tmp_path) -> None:
    done = run("stub[shift=4]", "--markdown", tmp_path / "new" / "t.md", "--json", tmp_path / "r.json")
    assert done.exit_code == 2  # its card says nothing of the accuracy on anomalies, and the input gives them away
    (found,) = json.loads((tmp_path / "r.json").read_text())["targets"]
    rules = {rule["name"]: rule["holds"] for rule in found["rules"]}
    assert rules["accuracy, normal"] and not rules["accuracy, anomalous"]
    assert not rules["AUROC of input-mahalanobis"] and rules["contents in two parts"]
    page = (tmp_path / "new" / "t.md").read_text()
    assert "| `stub[shift=4]` | anomalous: shifted | tiny | drawn here | Apache-2.0 |" in page
    assert "not accepted: accuracy, anomalous" in page
    assert str(tmp_path) not in page
    assert "BROKEN" in done.stdout


def test_tasks_of_ones_own_are_found_by_their_import_path(run, tmp_path) -> None:
    done = run("tests.stub_task:Stub", "--seeds", 2, "--json", "-")
    (found,) = json.loads(done.stdout)["targets"]
    assert (found["target"], found["seeds"]) == ("stub[shift=4]", [0, 1])


def test_nothing_heavy_is_imported_for_help() -> None:
    code = (
        "import sys, causalmad.cli.check, causalmad.cli.doctor; print('torch' in sys.modules, 'numpy' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.stdout.split() == ["False", "False"], done.stderr
