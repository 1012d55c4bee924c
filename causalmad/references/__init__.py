"""Scores of rows of numbers against a fit on trusted rows."""

from causalmad.lazy import attach

__getattr__, __dir__, __all__ = attach(__name__, __file__)
