"""A token for each byte: the tokenizer of models without weights."""

from zoo.nn import ByteTokenizer


def byte_tokenizer(vocabulary: int) -> ByteTokenizer | None:
    """The tokenizer of bytes for a model whose vocabulary is its own, else None: another has a tokenizer that came with it."""
    return ByteTokenizer() if vocabulary == ByteTokenizer.vocabulary else None
