from . import folder as folder
from . import records as records
from . import store as store
from .records import Runs as Runs
from .store import Store as Store
