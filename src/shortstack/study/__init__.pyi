from . import grid as grid
from . import progress as progress
from . import runner as runner
from . import step_counts as step_counts
from . import workers as workers
from .grid import read_study as read_study
from .runner import run_study as run_study
