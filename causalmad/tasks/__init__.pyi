from .base import Task as Task
from .base import TaskData as TaskData
from .gate_digits import GateDigits as GateDigits
from .gate_digits_obfuscated import GateDigitsObfuscated as GateDigitsObfuscated
from .induction_lookup import InductionLookup as InductionLookup
