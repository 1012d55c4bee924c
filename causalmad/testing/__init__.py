"""The laws that every part of the catalogue keeps, for plug-ins to be held to as well, and toy models to test on."""

from causalmad.lazy import attach

__getattr__, __dir__, __all__ = attach(__name__, __file__)
