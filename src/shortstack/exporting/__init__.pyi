from . import hub as hub
from .converter import export_gguf as export_gguf
from .converter import ollama_modelfile as ollama_modelfile
from .hub import push_to_hub as push_to_hub
