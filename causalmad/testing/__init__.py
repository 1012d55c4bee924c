"""The laws that every part of the catalogue keeps, for plug-ins to be held to as well, and toy models to test on."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
