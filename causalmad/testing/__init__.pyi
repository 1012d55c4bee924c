from .toys import Toy as Toy
from .toys import toy as toy
