from . import converter as converter
from . import hub as hub
from . import ollama as ollama
from .converter import export_gguf as export_gguf
from .hub import Pushed as Pushed
from .hub import push_to_hub as push_to_hub
from .ollama import modelfile as modelfile
