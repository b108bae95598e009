from . import anatomy as anatomy
from . import config_fields as config_fields
from . import layer_names as layer_names
from . import selfcheck as selfcheck
from .anatomy import Anatomy as Anatomy
