"""Attacks on detectors: during training, on inputs, and on thresholds; what each leaves of a detector's power."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
