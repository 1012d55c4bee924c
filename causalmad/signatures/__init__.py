"""Signatures: how an output came about, as one row of named numbers per input."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
