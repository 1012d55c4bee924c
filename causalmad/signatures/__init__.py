"""Signatures: how an output came about, as one row of named numbers per input."""

from causalmad.lazy import attach

__getattr__, __dir__, __all__ = attach(__name__, __file__)
