"""Signatures of any number of inputs: kept on disk, resumed after a kill, computed here or on many machines."""

from causalmad.lazy import attach

__getattr__, __dir__, __all__ = attach(__name__, __file__)
