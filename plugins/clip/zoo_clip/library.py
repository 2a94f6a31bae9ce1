"""The library open_clip, imported without a trace.

Its import (and that of transformers, timm and sympy behind it) sets environment variables and warning filters, and its
functions log through the root logger, which installs a handler. A process that builds a model asked for none of that.
"""

import logging
import os
import random
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


@contextmanager
def process_as_found() -> Iterator[None]:
    """Run the body; then environment, warning filters, root handlers, random states and torch's defaults are as before."""
    environment, handlers = dict(os.environ), list(logging.root.handlers)
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()  # noqa: NPY002 - the global state is what must not move
    dtype, threads = torch.get_default_dtype(), torch.get_num_threads()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for name in set(os.environ) - set(environment):
            del os.environ[name]
        os.environ.update(environment)
        logging.root.handlers[:] = handlers
        random.setstate(states[0])
        np.random.set_state(states[1])  # noqa: NPY002 - as above
        torch.set_rng_state(states[2])
        torch.set_default_dtype(dtype)
        if torch.get_num_threads() != threads:
            torch.set_num_threads(threads)


with process_as_found():
    import open_clip
    from open_clip.hf_model import HFTextEncoder
    from open_clip.model import CLIPTextCfg, CLIPVisionCfg
    from open_clip.modified_resnet import ModifiedResNet
    from open_clip.timm_model import TimmModel
    from open_clip.transformer import ResidualAttentionBlock, TextTransformer, VisionTransformer

__all__ = [
    "CLIPTextCfg",
    "CLIPVisionCfg",
    "HFTextEncoder",
    "ModifiedResNet",
    "ResidualAttentionBlock",
    "TextTransformer",
    "TimmModel",
    "VisionTransformer",
    "open_clip",
    "process_as_found",
]
