"""A token for each byte: the tokenizer of models without weights."""

from zoo.nn import tokenizer
from zoo.nn.tokenizer import END


class ByteTokenizer(tokenizer.ByteTokenizer):
    """Ids 0 to 255 are bytes of UTF-8, 256 is the start and 257 the end (`zoo.nn.tokenizer`), and a name for padding."""

    pad_id = END  # which one it is means nothing: masks say what is padding


def byte_tokenizer(vocabulary: int) -> ByteTokenizer | None:
    """The tokenizer of bytes for a model whose vocabulary is its own, else None: another has a tokenizer that came with it."""
    return ByteTokenizer() if vocabulary == ByteTokenizer.vocabulary else None
