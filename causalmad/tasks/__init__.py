"""Tasks: a model, inputs on which it is trusted, and test inputs of which some are answered for another reason."""

from causalmad.lazy import attach

__getattr__, __dir__, __all__ = attach(__name__, __file__)
