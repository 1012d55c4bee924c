"""Evaluation: how well a detector does on a task, beside the surface controls."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
