"""openai-whisper's own model, with the weights of one of ours; its vocabularies are read before a test looks for open files."""

import warnings

import whisper
from zoo_whisper.openai_engine import openai_model

__all__ = ["openai_model"]

with warnings.catch_warnings():  # they leave the files of their vocabularies to the garbage collector
    warnings.simplefilter("ignore", ResourceWarning)
    for name, languages in (("gpt2", 99), ("multilingual", 99), ("multilingual", 100)):
        whisper.tokenizer.get_encoding(name=name, num_languages=languages)
