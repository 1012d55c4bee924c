"""Opening a model: one protocol, its engines, and where things are in the architectures people use."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
