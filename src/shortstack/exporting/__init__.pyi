from . import hub as hub
from .converter import export_gguf as export_gguf
from .converter import modelfile as modelfile
from .hub import push_to_hub as push_to_hub
