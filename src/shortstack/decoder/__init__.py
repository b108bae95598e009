"""The one walk through a decoder's layers, and what is computed on the way: losses, likelihoods, generation.

`Decoder` visits layers in order, one layer's weights resident if the model is streamed. Every measurement of shortstack
feeds on it; a second loop over layers is not to be written.
"""

from lazy_loader import attach_stub

__getattr__, __dir__, __all__ = attach_stub(__name__, __file__)
