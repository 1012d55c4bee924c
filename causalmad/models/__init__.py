"""Opening a model: one protocol, its engines, and where things are in the architectures people use."""

from causalmad.lazy import attach

__getattr__, __dir__, __all__ = attach(__name__, __file__)
