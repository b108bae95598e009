from . import profiler as profiler
from . import speed as speed
from .options import Timing as Timing
from .profiler import Profile as Profile
from .profiler import profile as profile
