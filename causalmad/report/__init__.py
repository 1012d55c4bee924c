"""The report: one HTML file that shows what was flagged and why, and needs nothing from anywhere else."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
