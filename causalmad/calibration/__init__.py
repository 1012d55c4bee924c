"""From anomaly scores to p-values."""

from causalmad.lazy import attach

__getattr__, __dir__, __all__ = attach(__name__, __file__)
