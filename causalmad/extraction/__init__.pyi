from .cache import Cache as Cache
from .engine import Local as Local
from .extract import extract as extract
from .ray import Ray as Ray
from .result import Extraction as Extraction
