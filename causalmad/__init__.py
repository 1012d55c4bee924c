"""Mechanistic anomaly detection: tell when a network produced an output for an unusual reason."""

from causalmad.lazy import attach

__version__ = "0.1.0"

__getattr__, __dir__, __all__ = attach(__name__, __file__)
