"""How far a peer's next-token distributions are from those of float32: the Kullback-Leibler divergence in nats, and the same first choice.

The text is the first 256 tokens of a decision of this project, which changes no more. The reference is transformers in float32 on the
dequantised weights of the GGUF file; it is kept as log-probabilities in the folder of the weights.
"""

from pathlib import Path

import numpy as np
from decoder_engines import Logits, Peer

TEXT = Path(__file__).parents[1] / "docs/decisions/0001-plugins-are-data-first.md"
LENGTH = 256
REFERENCE = "transformers-fp32"


def divergence(peer: Peer, name: str, reference: Path, *, at_once: bool) -> dict[str, float]:
    """Mean over the positions of the text, read at once or token by token. The reference itself, read at once, is written.

    Raises RuntimeError where the reference is missing or the peer reads the text as other tokens.
    """
    ids = peer.encode(TEXT.read_text(encoding="utf-8"))[:LENGTH]
    found = _log_probabilities(peer.logits(ids, LENGTH if at_once else 1))
    if name == REFERENCE and at_once:
        np.savez(reference, ids=np.array(ids), expected=found)
    if not reference.exists():
        raise RuntimeError(f"{reference} is missing: run --peer {REFERENCE} --task kl first")
    kept = np.load(reference)
    if kept["ids"].tolist() != ids:
        raise RuntimeError(f"{name} reads {TEXT.name} as other tokens than {REFERENCE}")
    expected = kept["expected"]
    each = (np.exp(expected, dtype=np.float64) * (expected.astype(np.float64) - found)).sum(-1)
    same = expected.argmax(-1) == found.argmax(-1)
    return {"kl": float(f"{each.mean():.4g}"), "same_top1": round(float(same.mean()), 4)}


def _log_probabilities(logits: Logits) -> Logits:
    shifted = logits.astype(np.float64) - logits.max(-1, keepdims=True)
    return (shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))).astype(np.float32)
