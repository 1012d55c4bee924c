from .base import ExplainedReference as ExplainedReference
from .base import FittedReference as FittedReference
from .base import Reference as Reference
from .mahalanobis import Mahalanobis as Mahalanobis
