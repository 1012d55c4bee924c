"""A report as one HTML file, which loads nothing and connects to nothing."""

from __future__ import annotations

import base64
import hashlib
import json
import math
from importlib import resources
from typing import Any

from causalmad.errors import CausalmadError
from causalmad.report.contents import Report


def render(report: Report) -> str:
    """The page of a report.

    Its policy forbids every connection and every script but its own, which is named by its hash; ids, tokens and names
    are text wherever they stand, never markup.

    Raises:
        CausalmadError: when jinja2 is not installed.
    """
    try:
        import jinja2
    except ImportError as error:
        raise CausalmadError(
            "jinja2 is not installed", needed="jinja2 >= 3.1 for reports", tries=["pip install 'causalmad[report]'"]
        ) from error
    style, script = _asset("page.css"), _asset("page.js")
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(_asset),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    page = environment.get_template("page.html").render(
        report=report,
        style=style,
        script=script,
        style_hash=_hash(style),
        script_hash=_hash(script),
        data=_data(report),
    )
    # Halves of surrogate pairs, which a broken file may hold, have no UTF-8.
    return page.encode("utf-8", "replace").decode("utf-8")


def _data(report: Report) -> str:
    """JSON that may stand inside a script element: it holds nothing that could end it."""
    text = _json(report.data())
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _json(data: object) -> str:
    try:
        return json.dumps(data, separators=(",", ":"), allow_nan=False)
    except ValueError:
        return json.dumps(_spelt(data), separators=(",", ":"), allow_nan=False)


def _spelt(data: Any) -> Any:
    """The same data with infinite numbers and NaN as text, which JSON has no numbers for."""
    if isinstance(data, float) and not math.isfinite(data):
        return "NaN" if math.isnan(data) else "Infinity" if data > 0 else "-Infinity"
    if isinstance(data, dict):
        return {key: _spelt(value) for key, value in data.items()}
    return [_spelt(value) for value in data] if isinstance(data, (list, tuple)) else data


def _asset(name: str) -> str:
    return resources.files("causalmad.report").joinpath("assets", name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"
