"""Attacks on detectors: during training, on inputs, and on thresholds; what each leaves of a detector's power."""

from causalmad.lazy import attach

__getattr__, __dir__, __all__ = attach(__name__, __file__)
