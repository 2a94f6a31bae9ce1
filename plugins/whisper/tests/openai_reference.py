"""openai-whisper's own model, with the weights of one of ours."""

import re
import warnings

import torch
import whisper
from whisper.model import ModelDimensions
from zoo_whisper.keys import OPENAI, TOPS

with warnings.catch_warnings():  # they leave the files of their vocabularies to the garbage collector
    warnings.simplefilter("ignore", ResourceWarning)
    for name, languages in (("gpt2", 99), ("multilingual", 99), ("multilingual", 100)):
        whisper.tokenizer.get_encoding(name=name, num_languages=languages)

THEIRS = {ours: theirs for theirs, ours in OPENAI.items()}
TOPS_OF_THEIRS = {
    "encoder.stack.norm": "encoder.ln_post",
    "decoder.stack.norm": "decoder.ln",
    "decoder.embedding": "decoder.token_embedding",
}
assert TOPS_OF_THEIRS.items() <= {(ours, theirs) for theirs, ours in TOPS.items()}


def to_openai(state):
    """Our names -> OpenAI's."""
    renamed = {}
    for key, tensor in state.items():
        block = re.fullmatch(r"(encoder|decoder)\.stack\.blocks\.(\d+)\.(.+)\.(weight|bias)", key)
        if block:
            renamed[f"{block[1]}.blocks.{block[2]}.{THEIRS[block[3]]}.{block[4]}"] = tensor
            continue
        if key == "decoder.position_embedding.weight":
            renamed["decoder.positional_embedding"] = tensor
            continue
        top, _, parameter = key.rpartition(".")
        renamed[f"{TOPS_OF_THEIRS.get(top, top)}.{parameter}"] = tensor
    return renamed


def openai_model(ours):
    """`whisper.model.Whisper` with the numbers of our Whisper."""
    first = ours.encoder.stack.blocks[0].attention
    dimensions = ModelDimensions(
        n_mels=ours.encoder.bands,
        n_audio_ctx=1500,
        n_audio_state=ours.decoder.width,
        n_audio_head=first.heads,
        n_audio_layer=len(ours.encoder.stack.blocks),
        n_vocab=ours.decoder.vocabulary,
        n_text_ctx=ours.decoder.context,
        n_text_state=ours.decoder.width,
        n_text_head=first.heads,
        n_text_layer=ours.decoder.layers,
    )
    theirs = whisper.model.Whisper(dimensions)
    state = {key: tensor.clone() for key, tensor in to_openai(ours.state_dict()).items()}
    missing, unexpected = theirs.load_state_dict(state, strict=False)
    assert set(missing) <= {"encoder.positional_embedding"}
    assert not unexpected
    heads = torch.zeros(ours.decoder.layers, first.heads, dtype=torch.bool)
    for layer, head in ours.alignment_heads:
        heads[layer, head] = True
    theirs.register_buffer("alignment_heads", heads.to_sparse(), persistent=False)
    return theirs.eval()
