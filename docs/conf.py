"""Sphinx: `sphinx-build -W --keep-going docs docs/_build/html`, or `make docs`."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parent / "_ext")]

project = "causalmad"
author = "The causalmad developers"
copyright = "the causalmad developers, Apache-2.0"

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "python_pages", "known_names"]
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = "causalmad"

myst_heading_anchors = 3

# Names of annotations that only a type checker sees; all others are links, or exist (see _ext/known_names.py).
nitpicky = True
nitpick_ignore_regex = [("py:class", r"(npt|np|nn|nx|torch)\..*|[A-Z]\w+")]
# Two classes may share a name (`FittedConditional`); annotations of imports for type checkers are not resolved further.
suppress_warnings = ["ref.python"]

# The fields of a dataclass stand under Attributes; a second entry for each would say nothing new.
autodoc_default_options = {"members": True, "special-members": "__call__", "member-order": "bysource"}
autodoc_typehints = "signature"
autodoc_preserve_defaults = True
python_use_unqualified_type_names = True
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True
napoleon_use_rtype = False
