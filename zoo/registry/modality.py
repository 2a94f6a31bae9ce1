"""Modalities, and the one legend for shapes used in every docstring and variable suffix.

    B  batch items          T  tokens or time steps      D  width of an encoder
    L  latents              W  width of the decoder      E  width of a shared embedding space
    H  heads                C  classes or channels       V  vocabulary

`tokens_BTD` is a tensor `float[B, T, D]`. Pixels are written `[B, 3, height, width]`.
"""

TEXT = "text"
IMAGE = "image"
AUDIO = "audio"
VIDEO = "video"
SERIES = "series"

MODALITIES = (TEXT, IMAGE, AUDIO, VIDEO, SERIES)

SUFFIXES = {  # of files, by which a command tells a medium from a text
    IMAGE: (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp"),
    AUDIO: (".wav", ".flac", ".mp3", ".ogg", ".oga", ".opus", ".m4a", ".aac", ".aiff", ".aif"),
    VIDEO: (".mp4", ".webm"),
}
