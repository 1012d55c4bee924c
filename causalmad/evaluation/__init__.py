"""Evaluation: how well a detector does on a task, beside the surface controls."""

from causalmad.lazy import attach

__getattr__, __dir__, __all__ = attach(__name__, __file__)
