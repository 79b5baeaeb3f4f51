"""Weights between files and models, wherever wrappers have changed their names.

``names`` knows a model's names without those of ``torch.compile``, ``DataParallel`` and
``DistributedDataParallel``; ``pickles`` reads PyTorch's files without running what is in them;
``files`` loads and saves a model's weights with both.
"""

from kdcache.weights.files import load_weights, save_weights
from kdcache.weights.names import innermost, plain_state, state_for, unwrapped
from kdcache.weights.pickles import read_plain, refused_in

__all__ = [
    "innermost",
    "load_weights",
    "plain_state",
    "read_plain",
    "refused_in",
    "save_weights",
    "state_for",
    "unwrapped",
]
