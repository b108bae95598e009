from . import questions as questions
from . import sources as sources
from . import tokens as tokens
from .examples import Example as Example
from .examples import read_examples as read_examples
from .questions import Question as Question
from .questions import read_questions as read_questions
from .tokens import Tokens as Tokens
