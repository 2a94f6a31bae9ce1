"""A composition learns: SmolLM2, frozen, names classes of pictures, then of sounds, once small trained parts show them to it.

With ZOO_SLOW_TESTS=1 alone. At each push tests/test_fusion.py shows on a tiny decoder that a sense that is added leaves the others as
they were. The pictures' encoder is a published one, the sounds' one is random; neither has seen these classes, and the words were picked at
will. What is trained is a bridge and gated layers. Sounds are added to the composition that has learnt pictures.
"""

import hashlib
import os
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
from small_senses import PICTURES, SOUNDS, Hearing, Pooling, picture, sound
from torch import nn
from torch.nn.functional import cross_entropy

import zoo
from zoo.decoding.generation import generate
from zoo.decoding.prompt import Prompt
from zoo.decoding.scoring import score_choices
from zoo.models.composition_parts import gated_layer
from zoo.models.fusion.fused import Fused
from zoo.models.fusion.item import Item, Placed, item
from zoo.models.fusion.sense import Sense
from zoo.weights.cache import blobs_dir

PUBLISHED = {
    "smollm/135m-instruct": "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    "timm/efficientnet_lite0": "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
}
pytestmark = pytest.mark.skipif(
    os.environ.get("ZOO_SLOW_TESTS") != "1", reason="minutes of training: ZOO_SLOW_TESTS=1 runs it"
)
SEED = 0
LAYERS = (9, 19, 29)  # of the decoder's 30: those with a gated layer before them
STEPS = {"image": 28, "audio": 40}
TO_LEARN = {"image": 64, "audio": 240}  # items; sounds cost nothing
TO_ASK = 20  # other items, drawn for the questions alone
BATCH, RATE, WARM_UP, GATE = 8, 1e-3, 8, 0.5  # gates that begin at zero learn too slowly for a test
QUESTIONS = {"image": " This is a", "audio": " I hear a"}

Pair = tuple[Item, str]  # an item and the word for it
Lesson = tuple[Prompt, str]


@dataclass
class Learnt:
    """A composition after training, the items that it has not met, what was trained and what it was like before."""

    model: Fused
    met: list[Pair]
    unmet: list[Pair]
    trained: dict[str, nn.Parameter]
    frozen_sha256: dict[str, str]
    before: dict[str, torch.Tensor]
    steepest: dict[str, float]  # of each parameter, the largest gradient of any step
    losses: list[float] = field(default_factory=list)
    share_right: float = 0.0  # of the items that it has not met, each asked alone


@dataclass
class Logits:
    """What pictures gave before there were sounds, and when there were and no gate was open."""

    pictures: torch.Tensor
    closed_pictures: torch.Tensor
    beside_a_marker: torch.Tensor
    beside_a_closed_sound: torch.Tensor


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def decoder() -> Any:
    for name, sha256 in PUBLISHED.items():
        if not (blobs_dir() / sha256).is_file():
            pytest.skip(f"the weights are not on this machine; bring them with: zoo fetch {name}")
    return zoo.open_model("smollm/135m-instruct").module.requires_grad_(False)


@pytest.fixture(scope="module")
def seeing(decoder: Any) -> Learnt:
    """The decoder with a sense for pictures, trained. The features of each picture are computed once."""
    torch.manual_seed(SEED)
    chance = np.random.default_rng(SEED)
    encoder = zoo.open_model("timm/efficientnet_lite0").module.requires_grad_(False)
    sense = Sense(encoder=encoder, bridge=Pooling(1280), layers=gated_layers(decoder, gate=GATE), marker="<image>")
    words = PICTURES * ((TO_LEARN["image"] + TO_ASK) // 2)
    drawn = [picture(word, chance) for word in words]
    pairs = [(item("image", one, features=sense.encode([[one]])[0]), word) for one, word in zip(drawn, words, strict=True)]
    model = Fused(decoder, {"image": sense}).eval()

    def lessons(pairs: Sequence[Pair]) -> list[Lesson]:
        return [(prompt(model, one), word) for one, word in pairs]

    return learn(model, "image", pairs, lessons, chance)


@pytest.fixture(scope="module")
def hearing(seeing: Learnt) -> tuple[Learnt, Logits]:
    """The same decoder and sense for pictures, trained no more, with a sense for sounds beside it, which is trained."""
    torch.manual_seed(SEED + 1)
    chance = np.random.default_rng(SEED + 1)
    seeing.model.requires_grad_(False)
    encoder = Hearing(seed=SEED).requires_grad_(False)
    sense = Sense(
        encoder=encoder, bridge=Pooling(64), layers=gated_layers(seeing.model.decoder, gate=0.0), marker="<audio>"
    )
    model = Fused(seeing.model.decoder, {"image": seeing.model.senses["image"], "audio": sense}).eval()
    pairs = [(item("audio", sound(word, chance)), word) for word in SOUNDS * ((TO_LEARN["audio"] + TO_ASK) // 2)]

    pictures = [prompt(model, one) for one, _ in seeing.unmet]
    both = [prompt(model, one, pairs[0][0]) for one, _ in seeing.unmet[:4]]
    logits = Logits(
        pictures=logits_of(seeing.model, pictures),
        closed_pictures=logits_of(model, pictures),
        beside_a_marker=logits_of(seeing.model, [Prompt(asked.ids, asked.media[:1]) for asked in both]),
        beside_a_closed_sound=logits_of(model, both),
    )
    for gated in sense.gated.values():
        nn.init.constant_(gated.attention_gate, GATE)
        nn.init.constant_(gated.feed_forward_gate, GATE)

    def lessons(pairs: Sequence[Pair]) -> list[Lesson]:
        """Of four sounds one alone and three before or after a picture: the question is about the sound once, the picture twice."""
        found = []
        for number, (one, word) in enumerate(pairs):
            if number % 4 == 0:
                found.append((prompt(model, one), word))
                continue
            shown, its_word = seeing.met[chance.integers(len(seeing.met))]
            items = (shown, one) if chance.integers(2) else (one, shown)
            about, wanted = ("audio", word) if number % 4 == 1 else ("image", its_word)
            found.append((prompt(model, *items, about=about), wanted))
        return found

    return learn(model, "audio", pairs, lessons, chance), logits


def test_pictures_are_named(seeing: Learnt) -> None:
    assert seeing.share_right > 0.95


def test_raw_pictures_are_read_as_their_features_are(seeing: Learnt) -> None:
    pictures = [one for one, _ in seeing.unmet[:4]]
    raw = [item("image", *one.frames) for one in pictures]
    given, encoded = (logits_of(seeing.model, [prompt(seeing.model, one) for one in many]) for many in (pictures, raw))
    assert torch.allclose(given, encoded, atol=1e-2)


def test_without_the_picture_every_answer_is_the_same(seeing: Learnt) -> None:
    """The composition is then the decoder to the bit, whatever was trained: of two classes of one size it gets half."""
    model = seeing.model
    texts = [Prompt(prompt(model, one).ids) for one, _ in seeing.unmet]
    assert len(set(texts)) == 1
    assert torch.equal(logits_of(model, texts[:1]), logits_of(model.decoder, texts[:1]))
    answer = answered(model, texts[0], PICTURES)
    assert sum(word == answer for _, word in seeing.unmet) == len(seeing.unmet) / 2


def test_sounds_are_named(hearing: tuple[Learnt, Logits]) -> None:
    """By the whole path: the encoder is given samples."""
    assert hearing[0].share_right > 0.95


def test_sounds_are_named_without_a_sense_for_pictures(hearing: tuple[Learnt, Logits]) -> None:
    learnt, _ = hearing
    prompts = [asked for asked, _ in alone(learnt)[:4]]
    deaf_to_none = Fused(learnt.model.decoder, {"audio": learnt.model.senses["audio"]})
    assert torch.equal(logits_of(deaf_to_none, prompts), logits_of(learnt.model, prompts))


def test_the_words_are_written_too(seeing: Learnt) -> None:
    """Not chosen among two: greedy, from the whole vocabulary."""
    must_be_written(seeing.model, alone(seeing)[:8])


def test_the_words_of_pictures_and_sounds_are_written_in_one_batch(seeing: Learnt, hearing: tuple[Learnt, Logits]) -> None:
    for lessons in zip(alone(seeing)[:8], alone(hearing[0])[:8], strict=True):
        must_be_written(hearing[0].model, lessons)


def test_a_sense_that_is_added_changes_nothing_while_its_gates_are_zero(hearing: tuple[Learnt, Logits]) -> None:
    _, logits = hearing
    assert torch.equal(logits.closed_pictures, logits.pictures)
    assert torch.equal(logits.beside_a_closed_sound, logits.beside_a_marker)


def test_a_sense_that_is_added_and_trained_leaves_the_other_as_it_was(
    seeing: Learnt, hearing: tuple[Learnt, Logits]
) -> None:
    learnt, logits = hearing
    assert torch.equal(logits_of(learnt.model, [asked for asked, _ in alone(seeing)]), logits.pictures)
    assert share_right(learnt.model, alone(seeing)) == seeing.share_right


def test_of_a_picture_and_a_sound_either_is_named(seeing: Learnt, hearing: tuple[Learnt, Logits]) -> None:
    learnt, _ = hearing
    for about in ("image", "audio"):
        lessons = []
        for number, ((shown, its_word), (heard, word)) in enumerate(pairs_of(seeing, learnt)):
            items = (shown, heard) if number % 4 < 2 else (heard, shown)
            lessons.append((prompt(learnt.model, *items, about=about), its_word if about == "image" else word))
        assert share_right(learnt.model, lessons) > 0.95


def test_the_bridge_and_the_gated_layers_alone_are_trained(seeing: Learnt) -> None:
    must_be_trained_alone(seeing, "image")


def test_the_bridge_and_the_gated_layers_of_sounds_alone_are_trained(hearing: tuple[Learnt, Logits]) -> None:
    must_be_trained_alone(hearing[0], "audio")


def must_be_written(model: Fused, lessons: Sequence[Lesson]) -> None:
    texts = [one.text for one in generate(model, [asked for asked, _ in lessons], max_tokens=2)]
    assert all(text.strip().startswith(word) for text, (_, word) in zip(texts, lessons, strict=True)), texts


def must_be_trained_alone(learnt: Learnt, modality: str) -> None:
    """The bridge and the gated layers of a sense, each parameter of them, and nothing else."""
    assert sha256_of(learnt.model, but=learnt.trained) == learnt.frozen_sha256
    assert {tuple(name.split(".")[:3]) for name in learnt.trained} == {
        ("senses", modality, "bridge"),
        ("senses", modality, "gated"),
    }
    assert [name for name, parameter in learnt.trained.items() if torch.equal(parameter, learnt.before[name])] == []
    assert [name for name, gradient in learnt.steepest.items() if not 0 < gradient < float("inf")] == []
    assert max(learnt.losses[-3:]) < 0.7 < learnt.losses[0]  # below picking one of the two words by chance


def gated_layers(decoder: Any, *, gate: float) -> dict[int, Any]:
    return {
        layer: gated_layer(decoder.width, 128, heads=8, head_width=32, hidden_factor=1, gate=gate, feeds_all=False)
        for layer in LAYERS
    }


def prompt(model: Fused, *items: Item, about: str | None = None) -> Prompt:
    """A marker for each item, then the question about one of them: the last, where `about` names no modality."""
    ids: list[int] = []
    media = []
    for one in items:
        marker = model.tokenizer.encode(f"<{one.modality}>")
        media.append(Placed(len(ids), len(marker), one))
        ids += marker
    return Prompt((*ids, *model.tokenizer.encode(QUESTIONS[about or items[-1].modality])), tuple(media))


def alone(learnt: Learnt) -> list[Lesson]:
    return [(prompt(learnt.model, one), word) for one, word in learnt.unmet]


def pairs_of(seeing: Learnt, hearing: Learnt) -> list[tuple[Pair, Pair]]:
    """Pictures beside sounds, every class beside each."""
    return list(zip(seeing.unmet, sorted(hearing.unmet, key=lambda pair: pair[1]), strict=True))


def logits_of(model: Any, prompts: Sequence[Prompt]) -> torch.Tensor:
    """Of every token of prompts of one length, in one call."""
    media = {"media": [asked.media for asked in prompts]} if isinstance(model, Fused) else {}
    with torch.inference_mode():
        found: torch.Tensor = model(torch.tensor([asked.ids for asked in prompts]), **media)
    return found


def answered(model: Fused, asked: Prompt, words: Sequence[str]) -> str:
    """Which of the words is likeliest after a prompt."""
    scores = score_choices(model, asked, [model.tokenizer.encode(f" {word}") for word in words])
    return max(zip(scores, words, strict=True), key=lambda pair: pair[0].logprob)[1]


def share_right(model: Fused, lessons: Sequence[Lesson]) -> float:
    """How many of the prompts are answered by their word and not by the other one of its kind."""
    right = [answered(model, asked, PICTURES if word in PICTURES else SOUNDS) == word for asked, word in lessons]
    return sum(right) / len(right)


def learn(
    model: Fused,
    modality: str,
    pairs: Sequence[Pair],
    lessons: Callable[[Sequence[Pair]], list[Lesson]],
    chance: np.random.Generator,
) -> Learnt:
    """Train what is not frozen on the first items; the others stay unmet."""
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    steps, count = STEPS[modality], TO_LEARN[modality]
    learnt = Learnt(
        model=model,
        met=list(pairs[:count]),
        unmet=list(pairs[count:]),
        trained=trained,
        frozen_sha256=sha256_of(model, but=trained),
        before={name: parameter.detach().clone() for name, parameter in trained.items()},
        steepest=dict.fromkeys(trained, 0.0),
    )
    optimizer = torch.optim.AdamW(trained.values(), lr=RATE)
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = RATE * min((step + 1) / WARM_UP, 2 * (steps - step) / steps, 1.0)
        batch = [learnt.met[number] for number in chance.permutation(count)[:BATCH]]
        loss = loss_of(model, lessons(batch))
        optimizer.zero_grad()
        loss.backward()
        for name, parameter in trained.items():
            gradient: Any = parameter.grad
            learnt.steepest[name] = max(learnt.steepest[name], float(gradient.abs().max()))
        nn.utils.clip_grad_norm_(trained.values(), 1.0)
        optimizer.step()
        learnt.losses.append(float(loss.detach()))
    learnt.share_right = share_right(model, alone(learnt))
    return learnt


def loss_of(model: Fused, lessons: Sequence[Lesson]) -> torch.Tensor:
    """Of the words' tokens alone; all rows in one call, with padding after the shorter ones."""
    words = [model.tokenizer.encode(f" {word}") for _, word in lessons]
    rows = [[*asked.ids, *word[:-1]] for (asked, _), word in zip(lessons, words, strict=True)]
    longest, most = max(map(len, rows)), max(map(len, words))
    tokens_BT = torch.tensor([[*row, *[0] * (longest - len(row))] for row in rows])
    mask_BT = torch.arange(longest) < torch.tensor([[len(row)] for row in rows])
    at_BN = torch.tensor([[min(len(asked) - 1 + step, longest - 1) for step in range(most)] for asked, _ in lessons])
    logits_BNV = model(tokens_BT, mask_BT=mask_BT, at_BN=at_BN, media=[asked.media for asked, _ in lessons])
    wanted_BN = torch.tensor([[*word, *[-100] * (most - len(word))] for word in words])
    return cross_entropy(logits_BNV.flatten(0, 1), wanted_BN.flatten())


def sha256_of(model: nn.Module, *, but: Collection[str]) -> dict[str, str]:
    """Of each tensor of a model."""
    return {
        name: hashlib.sha256(tensor.detach().contiguous().numpy().tobytes()).hexdigest()
        for name, tensor in model.state_dict().items()
        if name not in but
    }
