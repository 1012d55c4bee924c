"""Claims about a circuit, and the trusted donors with which they are tested."""

from causalmad.lazy import attach

__getattr__, __dir__, __all__ = attach(__name__, __file__)
