from .base import Calibrator as Calibrator
from .base import FittedCalibrator as FittedCalibrator
from .calibration_conditional import CalibrationConditional as CalibrationConditional
from .conformal import Conformal as Conformal
from .cross import CrossConformal as CrossConformal
from .mondrian import Mondrian as Mondrian
from .multiple import reject as reject
from .weighted import Weighted as Weighted
