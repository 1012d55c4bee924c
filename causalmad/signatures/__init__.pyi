from .activations import Activations as Activations
from .attribution_patching import AttributionPatching as AttributionPatching
from .base import Column as Column
from .base import FittedSignature as FittedSignature
from .base import Signature as Signature
from .base import Signatures as Signatures
from .path_patching import PathPatching as PathPatching
from .resampling_profile import ResamplingProfile as ResamplingProfile
