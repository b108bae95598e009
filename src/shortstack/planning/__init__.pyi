from . import exactness as exactness
from . import layer_sets as layer_sets
from . import measured as measured
from .measured import select as select
from .plans import Plan as Plan
from .plans import plan as plan
