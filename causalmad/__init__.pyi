from . import calibration as calibration
from . import detectors as detectors
from . import evaluation as evaluation
from . import hypotheses as hypotheses
from . import references as references
from . import signatures as signatures
from . import targets as targets
from . import tasks as tasks
from .auditing import Audit as Audit
from .auditing import audit as audit
from .detection import Detection as Detection
from .detector import Detector as Detector
from .detector import FittedDetector as FittedDetector
from .errors import CausalmadError as CausalmadError
from .explanation import Explanation as Explanation
from .hypotheses import OUTPUT as OUTPUT
from .hypotheses import Hypothesis as Hypothesis
from .hypotheses import interchange_accuracy as interchange_accuracy
from .hypotheses import scrub as scrub
from .inputs import Inputs as Inputs
from .models import OpenModel as OpenModel
from .models import open_model as open_model
from .monitor import Event as Event
from .monitor import Monitor as Monitor
from .sites import Site as Site

__version__: str
