"""Searches with several hypotheses, beside those of transformers on the same random weights."""

from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, StoppingCriteriaList
from zoo_lm.llama import build, from_transformers

from zoo.decoding.beams import Hypothesis, beam_answer, beam_search
from zoo.models.contracts import Decoder

VOCABULARY, END, MAX_TOKENS = 258, 257, 6
STOP = ("bc", "q")


def pair(seed: int) -> tuple[Decoder, Any]:
    """Ours and theirs with the same weights: few tokens are likely, and the end is often one of them."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=64, bos_token_id=256, eos_token_id=END, pad_token_id=0,
    )  # fmt: skip
    theirs: Any = LlamaForCausalLM(config).eval()
    with torch.no_grad():
        theirs.lm_head.weight.normal_(std=0.02)
        likely = [*b"abcdq", END]
        theirs.lm_head.weight[likely] = torch.randn(len(likely), 32)
    ours: Any = build(layers=2, width=32, heads=4, kv_heads=2, hidden=64, vocabulary=VOCABULARY, context=64, epsilon=1e-6)
    ours.load_state_dict(from_transformers(theirs.state_dict()))
    return ours.eval(), theirs


def of_transformers(
    theirs: Any, prompt: list[int], beams: int, penalty: float, stop: tuple[str, ...] = ()
) -> list[Hypothesis]:
    def meets(ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
        texts = [bytes(token for token in row[len(prompt) :] if token < 256).decode("latin-1") for row in ids.tolist()]
        return torch.tensor([any(one in text for one in stop) for text in texts])

    found = theirs.generate(
        torch.tensor([prompt]),
        num_beams=beams,
        num_return_sequences=beams,
        max_new_tokens=MAX_TOKENS,
        length_penalty=penalty,
        early_stopping="never",
        do_sample=False,
        output_scores=True,
        return_dict_in_generate=True,
        stopping_criteria=StoppingCriteriaList([meets]),
    )
    hypotheses = []
    for row, score in zip(found.sequences.tolist(), found.sequences_scores.tolist(), strict=True):
        answer = row[len(prompt) :]
        ended = END in answer
        answer = answer[: answer.index(END)] if ended else answer
        text = bytes(token for token in answer if token < 256).decode("latin-1")
        stopped = text.endswith(stop) if stop else False  # an end token after a stop string is padding
        hypotheses.append(Hypothesis(tuple(answer), score, ended and not stopped, stopped))
    return hypotheses


@pytest.mark.parametrize("stop", [(), STOP], ids=["ends", "stops"])
@pytest.mark.parametrize("penalty", [0.0, 0.5, 1.0, 2.0])
def test_the_hypotheses_are_those_of_transformers(penalty: float, stop: tuple[str, ...]) -> None:
    finished = empty = 0
    for seed in range(12):
        ours, theirs = pair(seed)
        prompt = [ord(character) for character in "abc"[: 1 + seed % 3]]
        for beams in (2, 4):
            expected = of_transformers(theirs, prompt, beams, penalty, stop)
            found = beam_search(ours, prompt, beams=beams, max_tokens=MAX_TOKENS, length_penalty=penalty, stop=stop)
            assert [(one.ids, one.ended, one.stopped) for one in found] == [
                (one.ids, one.ended, one.stopped) for one in expected
            ]
            assert [one.score(penalty) for one in found] == pytest.approx([one.logprob for one in expected], abs=1e-4)
            finished += sum(one.ended or one.stopped for one in found)
            empty += not found[0].ids
    assert finished > 10  # or nothing was compared
    assert empty < 12


@torch.inference_mode()
def test_a_hypothesis_that_meets_a_stop_string_is_finished_and_scored_as_it_stands() -> None:
    """Before, the search went on through it, and the answer was the cut of whatever was likeliest much later."""
    stopped = 0
    for seed in range(12):
        ours, _ = pair(seed)
        found = beam_search(ours, [ord("a")], beams=3, max_tokens=MAX_TOKENS, length_penalty=1.0, stop=STOP)
        for one in found:
            text = bytes(token for token in one.ids if token < 256).decode("latin-1")
            assert one.stopped == text.endswith(STOP)
            assert not any(stop in text[:-1] for stop in STOP)
            logprobs = ours(torch.tensor([[ord("a"), *one.ids]]))[0].double().log_softmax(-1)  # type: ignore[operator]
            closed = [*one.ids, END] if one.ended else [*one.ids]
            assert one.logprob == pytest.approx(
                sum(float(logprobs[at, token]) for at, token in enumerate(closed)), abs=1e-4
            )
        answer = beam_answer(ours, [ord("a")], beams=3, max_tokens=MAX_TOKENS, stop=STOP)
        assert answer.ids == found[0].ids
        assert (answer.finish == "stop") == found[0].stopped
        assert not any(stop in answer.text for stop in STOP)
        stopped += found[0].stopped
    assert stopped
