"""Claims about a circuit, and the trusted donors with which they are tested."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
