"""What this plugin asks of its own models."""

import torch
from PIL import Image
from zoo.testing import CheckFailed, Subject


def black_is_black(subject: Subject) -> None:
    module = subject.module
    with torch.inference_mode():
        pooled_BD = module(module.preprocess([Image.new("RGB", (4, 4))])).pooled_BD
    if bool(pooled_BD.any()):
        raise CheckFailed(f"a black image has {pooled_BD.tolist()}")
