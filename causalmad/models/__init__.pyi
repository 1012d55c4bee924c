from .base import OpenModel as OpenModel
from .open import open_model as open_model
