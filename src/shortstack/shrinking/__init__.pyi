from . import line as line
from . import measuring as measuring
from . import result as result
from . import stages as stages
from .line import shrink as shrink
from .options import ShrinkOptions as ShrinkOptions
from .result import ShrinkResult as ShrinkResult
