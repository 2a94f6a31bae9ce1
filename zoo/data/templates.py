"""Sentences to put labels into, as named sets: a label is read in each of them, and the mean of the unit embeddings counts.

openai-80  the templates of the ImageNet results of Radford et al. 2021 (arXiv:2103.00020, section 3.1.4), published with their
           code: for encoders that were trained on captions.
openai-7   the seven of them that were chosen one after the other, each the one that helped most; near the eighty in accuracy.
zoo-9      ours, for everyday photos: what a person would write under one, near and far, sharp and not, one and many. It has no
           sketch, toy or video game, which only pull labels towards drawings when the inputs are photos.
plain      the label alone, which is what `zoo.classify` does when it is given no templates.
"""

from __future__ import annotations

from zoo.errors import UsageError
from zoo.registry.suggest import did_you_mean, nearest

TEMPLATE_SETS: dict[str, tuple[str, ...]] = {
    "openai-80": (
        "a bad photo of a {}.",
        "a photo of many {}.",
        "a sculpture of a {}.",
        "a photo of the hard to see {}.",
        "a low resolution photo of the {}.",
        "a rendering of a {}.",
        "graffiti of a {}.",
        "a bad photo of the {}.",
        "a cropped photo of the {}.",
        "a tattoo of a {}.",
        "the embroidered {}.",
        "a photo of a hard to see {}.",
        "a bright photo of a {}.",
        "a photo of a clean {}.",
        "a photo of a dirty {}.",
        "a dark photo of the {}.",
        "a drawing of a {}.",
        "a photo of my {}.",
        "the plastic {}.",
        "a photo of the cool {}.",
        "a close-up photo of a {}.",
        "a black and white photo of the {}.",
        "a painting of the {}.",
        "a painting of a {}.",
        "a pixelated photo of the {}.",
        "a sculpture of the {}.",
        "a bright photo of the {}.",
        "a cropped photo of a {}.",
        "a plastic {}.",
        "a photo of the dirty {}.",
        "a jpeg corrupted photo of a {}.",
        "a blurry photo of the {}.",
        "a photo of the {}.",
        "a good photo of the {}.",
        "a rendering of the {}.",
        "a {} in a video game.",
        "a photo of one {}.",
        "a doodle of a {}.",
        "a close-up photo of the {}.",
        "a photo of a {}.",
        "the origami {}.",
        "the {} in a video game.",
        "a sketch of a {}.",
        "a doodle of the {}.",
        "a origami {}.",
        "a low resolution photo of a {}.",
        "the toy {}.",
        "a rendition of the {}.",
        "a photo of the clean {}.",
        "a photo of a large {}.",
        "a rendition of a {}.",
        "a photo of a nice {}.",
        "a photo of a weird {}.",
        "a blurry photo of a {}.",
        "a cartoon {}.",
        "art of a {}.",
        "a sketch of the {}.",
        "a embroidered {}.",
        "a pixelated photo of a {}.",
        "itap of the {}.",
        "a jpeg corrupted photo of the {}.",
        "a good photo of a {}.",
        "a plushie {}.",
        "a photo of the nice {}.",
        "a photo of the small {}.",
        "a photo of the weird {}.",
        "the cartoon {}.",
        "art of the {}.",
        "a drawing of the {}.",
        "a photo of the large {}.",
        "a black and white photo of a {}.",
        "the plushie {}.",
        "a dark photo of a {}.",
        "itap of a {}.",
        "graffiti of the {}.",
        "a toy {}.",
        "itap of my {}.",
        "a photo of a cool {}.",
        "a photo of a small {}.",
        "a tattoo of the {}.",
    ),
    "openai-7": (
        "itap of a {}.",
        "a bad photo of the {}.",
        "a origami {}.",
        "a photo of the large {}.",
        "a {} in a video game.",
        "art of the {}.",
        "a photo of the small {}.",
    ),
    "zoo-9": (
        "{}",
        "a photo of a {}.",
        "a photo of the {}.",
        "a photo of several {}.",
        "a close-up photo of a {}.",
        "a {} seen from far away.",
        "a blurry photo of a {}.",
        "a photo of part of a {}.",
        "a {} in its usual place.",
    ),
    "plain": ("{}",),
}


def template_set(name: str) -> tuple[str, ...]:
    """The sentences of a set, each with one `{}` where the label goes.

    Raises UsageError for a name that no set has, with the nearest ones.
    """
    try:
        return TEMPLATE_SETS[name]
    except KeyError:
        hint = did_you_mean(nearest(name, TEMPLATE_SETS, cutoff=0.5), f"there are {', '.join(TEMPLATE_SETS)}")
        raise UsageError(f"there is no template set {name!r}; {hint}") from None
