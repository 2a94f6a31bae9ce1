"""What a built module of each kind offers. Structural: a plugin satisfies a contract by having the methods, and imports
nothing from here. Shapes follow the legend in `zoo.registry.modality`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import torch

from zoo.media.audio_reader import AudioReader
from zoo.models.encoded import Encoded
from zoo.models.transcript import TranscriptionOptions, Window
from zoo.nn.cache import Cache


@runtime_checkable
class Encoder(Protocol):
    """Raw items of one modality -> token features.

    `preprocess` takes a list of raw items (RGB `PIL.Image.Image` for images, `str` for text) and returns what `forward`
    takes: a tensor, or a tuple of tensors, whose first axis is the batch. Each row depends on its own item alone, so rows
    may be prepared one by one and concatenated (after padding, for text). It runs on the CPU and is safe in threads.
    """

    def preprocess(self, items: Sequence[Any], /) -> Any: ...

    def forward(self, inputs: Any, /) -> Encoded:
        """Prepared inputs -> tokens float[B, T, D], mask bool[B, T], pooled float[B, D]."""
        ...


@runtime_checkable
class Classifier(Encoder, Protocol):
    """An encoder with a trained classification layer. `labels[i]` names class `i`; `classifier` maps pooled features to
    logits.
    """

    labels: Sequence[str]
    classifier: torch.nn.Module

    def logits(self, inputs: Any, /) -> torch.Tensor:
        """Prepared inputs -> float[B, C]."""
        ...


@runtime_checkable
class DualEncoder(Protocol):
    """Two modalities into one space.

    `embed` and `encode` return unit vectors float[B, E]; the score of a pair is the dot product, and
    `softmax(logit_scale * scores)` over a set of labels is the model's probability. `encode(modality, inputs)` takes what
    `preprocess(modality, items)` returned; `embed` is one after the other. `features` are what a probe is trained on for
    few-shot work, float[B, D]: the embedding itself where a model has nothing richer. `logit_scale` is a number, or a scalar
    tensor where it is trained.
    """

    logit_scale: float | torch.Tensor

    def preprocess(self, modality: str, items: Sequence[Any], /) -> Any: ...

    def encode(self, modality: str, inputs: Any, /) -> torch.Tensor: ...

    def embed(self, modality: str, items: Sequence[Any], /) -> torch.Tensor: ...

    def features(self, modality: str, inputs: Any, /) -> torch.Tensor: ...


@runtime_checkable
class Bridge(Protocol):
    """Encoder features -> latents that a decoder looks at, or reads among its tokens.

    The builder takes `input_width`, the width of the encoder's tokens, and `output_width`, which is the decoder's where latents
    stand among its tokens; None leaves it to the bridge. `output_width` of the module is what came of it.
    """

    output_width: int

    def forward(self, encoded: Encoded, /, *, frames: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
        """Features of B items -> latents float[B, L, W], mask bool[B, L] (True where a latent is real).

        `tokens_BTD` holds the tokens of all frames of an item, one frame after another; an image has one. Padding changes nothing,
        and an item of nothing but padding gives finite numbers.
        """
        ...


@runtime_checkable
class Tokenizer(Protocol):
    """Text -> token ids and back.

    `encode` takes any text and never makes a control token of what a user wrote, whatever it looks like. The bytes of a text
    are those of its tokens, one after another (`token_bytes`; none for a control token), so that text can be shown while it
    is generated; `decode` is that, with U+FFFD for what is no UTF-8. Generation ends at one of `end_ids`; `start_id` stands
    for the empty prompt, where there is one. `chat` turns (role, text) pairs into the ids of a conversation whose next words
    are the model's; it is None for a model that was not trained on conversations.
    """

    vocabulary: int
    start_id: int | None
    end_ids: tuple[int, ...]
    chat: Callable[[Sequence[tuple[str, str]]], list[int]] | None

    def encode(self, text: str, /) -> list[int]: ...

    def decode(self, ids: Sequence[int], /) -> str: ...

    def token_bytes(self, token: int, /) -> bytes: ...


@runtime_checkable
class Decoder(Protocol):
    """Token ids -> the logits of the token that comes next.

    `context` is the most tokens that it reads and writes together. `new_cache(batch, capacity)` makes the memory of what was
    read (`zoo.nn.cache.Cache`); a call with it adds its tokens to it, and only they are computed. Padding, on either side and
    of any amount, changes nothing for the real tokens of a row.

    A decoder that can be given senses (`zoo.compose`) also has `width` and `layers`, and its forward takes `before_layer`, a function
    (number of a layer, tokens float[B, T, W]) -> tokens that it calls before each of its layers, and `inserted` (rows int[N],
    columns int[N], float[N, W]), what stands in place of the embeddings of some tokens. `zoo.nn.decoder.Decoder` has all of it.
    """

    @property
    def context(self) -> int: ...

    @property
    def vocabulary(self) -> int: ...

    @property
    def tokenizer(self) -> Tokenizer | None: ...

    def new_cache(self, batch: int, capacity: int, /) -> Cache: ...

    def forward(
        self,
        tokens_BT: torch.Tensor,
        /,
        *,
        mask_BT: torch.Tensor | None = None,
        cache: Cache | None = None,
        at_BN: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """int[B, T] -> float[B, T, V]; float[B, N, V] of the tokens at the indices `at_BN` int[B, N] alone, where given.

        mask_BT: bool, True where a token is real; None: all are.
        """
        ...


@runtime_checkable
class Transcriber(Protocol):
    """Speech -> text, window by window.

    `languages` maps the codes that it tells apart to their names; empty where it knows but one. `windows` reads a sound from its
    start, at the transcriber's rate, and gives what is said in order; each Window carries the state from which another call goes
    on after it. `options` names what it can be asked beside the language and the task: `word_timestamps`, `batch_size` and `speech`,
    where it can keep them, and its own. Nothing else is asked of it; a value that it cannot keep is a UsageError, never left out in
    silence. One whose parts suit number formats in ways of their own has `kernel_plan(kernel)` (`zoo.models.kernels.run_by`); one with several implementations has `engines`, its
    usual one first, `engine`, and `use_engine(name)`, which is called before a kernel is chosen.
    """

    sample_rate_hz: int

    @property
    def languages(self) -> Mapping[str, str]: ...

    @property
    def options(self) -> Collection[str]: ...

    def windows(
        self, reader: AudioReader, asked: TranscriptionOptions, /, *, state: Mapping[str, Any] | None = None
    ) -> Iterator[Window]: ...


@runtime_checkable
class VoiceActivity(Protocol):
    """Sound -> how likely somebody speaks, every `hop_samples`.

    `activity(samples, state)` takes the next piece, a multiple of `hop_samples` long but for the last, and gives probabilities
    float[T] and the state to go on from; the state of the start is None.
    """

    sample_rate_hz: int
    hop_samples: int

    def activity(self, samples_N: torch.Tensor, state: Any = None, /) -> tuple[torch.Tensor, Any]: ...
