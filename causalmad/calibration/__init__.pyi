from .base import Calibrator as Calibrator
from .base import FittedCalibrator as FittedCalibrator
from .conformal import Conformal as Conformal
