from .base import Task as Task
from .base import TaskData as TaskData
from .gate_digits import GateDigits as GateDigits
from .gate_digits_obfuscated import GateDigitsObfuscated as GateDigitsObfuscated
from .induction_lookup import InductionLookup as InductionLookup
from .ioi import Ioi as Ioi
from .modular_sum import ModularSum as ModularSum
from .planted_routes import PlantedRoutes as PlantedRoutes
