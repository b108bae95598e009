"""Where models run: GGUF for llama.cpp, a Modelfile for Ollama, the hub.

Weights are converted by llama.cpp's own converter, in a process of its own. Another place is one file here and an
option of export.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
