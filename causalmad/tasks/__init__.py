"""Tasks: a model, inputs on which it is trusted, and test inputs of which some are answered for another reason."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
