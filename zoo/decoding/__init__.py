"""What is done with a decoder once it is built: plain functions over anything that keeps `zoo.api.Decoder`.

reading.py       prefill and one step: the one place where tokens meet a decoder
sampling.py      logits -> the next token: greedy, temperature, top-k, top-p, min-p, repetition penalty
text_stream.py   tokens -> text while they come; stop strings
generation.py    prompts -> answers, one token after another
beams.py         the likeliest answer, searched with several hypotheses
scoring.py       how likely given answers are; perplexity
prefix_cache.py  prompts that begin alike are read once
prompt.py        what is asked: ids, and media among them
"""

from zoo.decoding.beams import beam_answer, beam_search
from zoo.decoding.generation import Generated, Piece, generate, stream
from zoo.decoding.prefix_cache import PrefixCache
from zoo.decoding.prompt import Prompt
from zoo.decoding.sampling import Sampling
from zoo.decoding.scoring import Scored, perplexity, score_choices

__all__ = [
    "Generated",
    "Piece",
    "PrefixCache",
    "Prompt",
    "Sampling",
    "Scored",
    "beam_answer",
    "beam_search",
    "generate",
    "perplexity",
    "score_choices",
    "stream",
]
