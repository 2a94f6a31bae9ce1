"""Our Whisper against openai-whisper on the same numbers: every layer, every rule, whole transcripts."""

import os
from collections.abc import Iterator

import numpy as np
import pytest
import torch
import whisper
from openai_reference import openai_model
from sounds import RATE_HZ, cases, speech
from whisper.audio import log_mel_spectrogram
from whisper.model import ModelDimensions
from zoo_whisper.decoding import decode
from zoo_whisper.hearing import hear
from zoo_whisper.log_mel import LogMel, log_mel
from zoo_whisper.openai_package import alignment_heads
from zoo_whisper.rules import Rules
from zoo_whisper.tokens import controls, language_code
from zoo_whisper.vocabulary import Vocabulary
from zoo_whisper.words import cheapest_path

import zoo
from zoo.api import apply_kernel
from zoo.errors import UsageError, WeightsMissingError
from zoo.media.audio import Sound, open_audio, open_reader
from zoo.models.transcript import TranscriptionOptions

pytestmark = [  # of openai-whisper's own code
    pytest.mark.filterwarnings("ignore:__array_wrap__ must accept context:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning"),
]
MOMENT_S = 0.021  # one step of the times, and a bit
PROBABILITY = 1e-4
slow = pytest.mark.skipif(
    os.environ.get("ZOO_SLOW_TESTS") != "1", reason="three minutes of the reference: ZOO_SLOW_TESTS=1"
)
QUICK = ("speech", "silence", "0.2 s")


@pytest.fixture(scope="module")
def tiny():
    torch.manual_seed(5)
    ours = zoo.build("whisper/random", weights=None)
    with torch.no_grad():  # random biases and gains, so that none is forgotten
        for name, parameter in ours.named_parameters():
            if parameter.ndim == 1:
                parameter.add_(0.1 * torch.randn(parameter.shape))
            if name.endswith("position_embedding.weight"):
                parameter.mul_(0.1)
    return ours, openai_model(ours)


@pytest.fixture(scope="module")
def base():
    try:
        ours = zoo.build("whisper/base")
    except WeightsMissingError as missing:
        pytest.skip(f"needs the published weights: {str(missing).splitlines()[0][:80]} (zoo fetch whisper/base)")
    theirs = openai_model(ours)
    apply_kernel(ours, "float32")  # as the command runs it
    return ours, theirs


@pytest.mark.parametrize("count", [1, 100, 3_200, 16_000, 479_999, 480_000, 481_601, 1_100_000])
@pytest.mark.parametrize("bands", [80, 128])
def test_the_log_mel_is_theirs(count, bands) -> None:
    samples = np.random.default_rng(count).standard_normal(count).astype(np.float32) * 0.1
    samples[count // 2 :] *= 3
    theirs = log_mel_spectrogram(samples, bands, padding=480_000)
    frames = theirs.shape[-1] - 3_000
    with open_reader(Sound(samples, RATE_HZ)) as reader:
        ours = LogMel(reader, bands)
        assert ours.frames == frames
        for first in range(0, max(1, frames), 2_777):
            window = ours.window(first, 3_000)
            wanted = theirs[:, first : min(first + 3_000, frames)]
            assert window.shape == wanted.shape
            assert_same_log_mel(window, wanted)
    if count <= 480_000:
        whole = log_mel_spectrogram(whisper.pad_or_trim(samples), bands)
        assert_same_log_mel(log_mel(torch.from_numpy(samples)[None], bands)[0], whole)


@pytest.mark.parametrize("click_s", [1.3, 65.537, 90.00003, 119.99])
def test_the_loudest_moment_is_found_wherever_it_is(click_s) -> None:
    """The quietest level that counts lies below it: what is wrong there is wrong everywhere."""
    samples = (1e-4 * np.random.default_rng(0).standard_normal(120 * RATE_HZ)).astype(np.float32)
    samples[int(click_s * RATE_HZ)] = 0.9
    theirs = log_mel_spectrogram(samples, 80, padding=480_000)
    with open_reader(Sound(samples, RATE_HZ)) as reader:
        ours = LogMel(reader, 80)
        assert ours.loudest == pytest.approx(float(theirs.max()) * 4 - 4, abs=1e-5)
        assert float((ours.window(3_000, 3_000) - theirs[:, 3_000:6_000]).abs().max()) < 1e-4


def assert_same_log_mel(found, expected) -> None:
    """Equal where it is loud; a band that hears next to nothing has the rounding of the transform in its logarithm."""
    if found.numel():
        rounding = 1e-7 * (10 ** (4 * expected - 4)).amax(0)
        differs = (10 ** (4 * found - 4) - 10 ** (4 * expected - 4)).abs() > rounding
        assert not (differs & ((found - expected).abs() > 2e-5)).any()


def test_every_layer_is_theirs_forward_and_backward(tiny) -> None:
    ours, theirs = tiny
    mel = torch.randn(2, 80, 3_000)
    tokens = torch.randint(0, 51_865, (2, 9))
    for model in tiny:
        model.zero_grad()
    found, expected = ours(mel, tokens), theirs(mel, tokens)
    assert float((found - expected).detach().abs().max()) < 1e-5
    assert float((ours.encoder.features(mel) - theirs.encoder(mel)).detach().abs().max()) < 1e-5
    found.square().mean().backward()
    expected.square().mean().backward()
    pairs = [
        (ours.encoder.conv1, theirs.encoder.conv1),
        (ours.encoder.stack.blocks[1].attention.key, theirs.encoder.blocks[1].attn.key),
        (ours.encoder.stack.norm, theirs.encoder.ln_post),
        (ours.decoder.stack.blocks[0].cross_attention.value, theirs.decoder.blocks[0].cross_attn.value),
        (ours.decoder.stack.blocks[1].feed_forward.up, theirs.decoder.blocks[1].mlp[0]),
        (ours.decoder.embedding, theirs.decoder.token_embedding),
    ]
    for mine, reference in pairs:
        scale = float(reference.weight.grad.abs().max())
        assert float((mine.weight.grad - reference.weight.grad).abs().max()) < 1e-4 * scale


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"without_timestamps": True},
        {"beam_size": 3},
        {"beam_size": 2, "patience": 1.5, "length_penalty": 0.4},
        {"max_initial_timestamp": None},
        {"suppress_tokens": (220, 50_000)},
        {"temperature": 0.7, "best_of": 3},
        {"prompt": [440, 1002, 2425] * 100},
        {"task": "translate", "language": "de"},
    ],
)
def test_a_window_is_decoded_as_theirs(tiny, options) -> None:
    ours, theirs = tiny
    mel = torch.randn(80, 3_000)
    named = {"language": "en", "suppress_tokens": (-1,), **options}
    with torch.inference_mode():
        torch.manual_seed(11)
        wanted = theirs.decode(
            mel, whisper.DecodingOptions(fp16=False, **{**named, "suppress_tokens": list(named["suppress_tokens"])})
        )
        suppressed = [token for token in named["suppress_tokens"] if token >= 0]
        suppressed += ours.vocabulary.unspoken() if -1 in named["suppress_tokens"] else []
        rules = Rules(
            language=named["language"],
            task=named.get("task", "transcribe"),
            beam_size=named.get("beam_size"),
            patience=named.get("patience"),
            best_of=named.get("best_of"),
            length_penalty=named.get("length_penalty"),
            suppressed=tuple(suppressed),
            without_moments=named.get("without_timestamps", False),
            latest_first_moment_s=named.get("max_initial_timestamp", 1.0),
        )
        heard = hear(ours.decoder, ours.encoder.features(mel[None]))
        torch.manual_seed(11)
        (found,) = decode(ours, heard, rules, prompt=named.get("prompt", ()), temperature=named.get("temperature", 0.0))
    assert found.tokens == wanted.tokens
    assert found.average_log_probability == pytest.approx(wanted.avg_logprob, abs=PROBABILITY)
    assert found.no_speech_probability == pytest.approx(wanted.no_speech_prob, abs=PROBABILITY)


@pytest.fixture
def _numba_takes_all_cores() -> Iterator[None]:
    """It gives OpenMP, and so torch, as many threads: given back, for the tests that follow."""
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.mark.usefixtures("_numba_takes_all_cores")
def test_the_cheapest_path_is_theirs() -> None:
    from whisper.timing import dtw_cpu

    generator = np.random.default_rng(0)
    for rows, columns in ((1, 1), (1, 9), (7, 3), (12, 60), (60, 12)):
        cost = generator.standard_normal((rows, columns))
        theirs = dtw_cpu(cost)
        assert np.array_equal(np.stack(cheapest_path(cost)), theirs)


def asked(options):
    """Options of openai-whisper as ours; samples are drawn from torch's own state, as there."""
    shared = {name: value for name, value in options.items() if name in ("language", "task", "word_timestamps")}
    own = {name: value for name, value in options.items() if name not in shared}
    return TranscriptionOptions(**shared, own={**own, "seed": None})


def transcripts(models, sound, **options):
    """(ours, theirs) of the same samples."""
    ours, theirs = models
    samples = open_audio(sound, sample_rate_hz=RATE_HZ).samples
    given = {"clip_timestamps": list(options.pop("clip_timestamps"))} if "clip_timestamps" in options else {}
    wanted = theirs.transcribe(samples, fp16=False, **options, **given)
    if given:
        options["clip_timestamps"] = given["clip_timestamps"]
    with open_reader(sound, sample_rate_hz=RATE_HZ) as reader:
        windows = list(ours.windows(reader, asked(options)))
    return windows, wanted


def assert_same(windows, wanted, *, words=False, ends_s=()) -> None:
    """The same segments; ends_s: of the clips, after which theirs may go on and ours never do."""
    segments = [segment for window in windows for segment in window.segments]
    theirs = [segment for segment in wanted["segments"] if segment["text"]]
    assert [segment.text for segment in segments] == [segment["text"] for segment in theirs]
    for mine, reference in zip(segments, theirs, strict=True):
        end_s = min((end_s for end_s in ends_s if end_s > reference["start"]), default=reference["end"])
        assert mine.start_s == pytest.approx(reference["start"], abs=MOMENT_S)
        assert mine.end_s == pytest.approx(min(reference["end"], end_s), abs=MOMENT_S)
        assert list(mine.tokens) == reference["tokens"]
        assert mine.temperature == reference["temperature"]
        assert mine.average_log_probability == pytest.approx(reference["avg_logprob"], abs=PROBABILITY)
        assert mine.no_speech_probability == pytest.approx(reference["no_speech_prob"], abs=PROBABILITY)
        assert mine.compression_ratio == pytest.approx(reference["compression_ratio"])
        if words:
            assert [word.text for word in mine.words] == [word["word"] for word in reference["words"]]
            for word, other in zip(mine.words, reference["words"], strict=True):
                assert word.start_s == pytest.approx(other["start"], abs=MOMENT_S)
                assert word.end_s == pytest.approx(other["end"], abs=MOMENT_S)
                assert word.probability == pytest.approx(other["probability"], abs=10 * PROBABILITY)


@pytest.mark.parametrize("name", [name if name in QUICK else pytest.param(name, marks=slow) for name in cases()])
def test_real_weights_write_what_theirs_write(base, name) -> None:
    sound = cases()[name]
    windows, wanted = transcripts(base, sound, language="en", temperature=0.0)
    assert_same(windows, wanted, ends_s=[open_audio(sound, sample_rate_hz=RATE_HZ).duration_s])


@slow
def test_the_whole_ladder_is_theirs(base) -> None:
    """No window is probable enough here: the next temperature is tried, with the same samples drawn, and the last is kept."""
    options = {"language": "en", "no_speech_threshold": None, "logprob_threshold": -0.01}
    options |= {"temperature": (0.0, 0.3), "best_of": 2}
    sound = Sound(speech(2.5), RATE_HZ)
    torch.manual_seed(3)
    wanted = base[1].transcribe(sound.samples, fp16=False, **options)
    torch.manual_seed(3)
    with open_reader(sound) as reader:
        windows = list(base[0].windows(reader, asked(options)))
    assert {segment["temperature"] for segment in wanted["segments"]} == {0.3}
    assert_same(windows, wanted, ends_s=[2.5])


@pytest.mark.parametrize(
    "options",
    [
        {"word_timestamps": True},
        pytest.param(
            {"beam_size": 2, "initial_prompt": "Mr. John Dashwood, a novel.", "clip_timestamps": (1.0, 4.0)}, marks=slow
        ),
        pytest.param({"beam_size": 3, "patience": 1.0}, marks=slow),
        pytest.param({"clip_timestamps": (1.0, 4.0, 4.5)}, marks=slow),
        pytest.param({"word_timestamps": True, "hallucination_silence_threshold": 1.0}, marks=slow),
        pytest.param({"initial_prompt": "Mr. John Dashwood, a novel.", "carry_initial_prompt": True}, marks=slow),
        pytest.param({"condition_on_previous_text": False, "initial_prompt": "Elinor"}, marks=slow),
        pytest.param({"task": "translate", "language": "fr"}, marks=slow),
        pytest.param({"without_timestamps": True}, marks=slow),
    ],
)
def test_every_option_means_what_it_means_there(base, options) -> None:
    quiet = np.zeros(8_000, np.float32)
    sound = Sound(np.concatenate((quiet, speech(4), quiet)), RATE_HZ)
    given = {"language": "en", "temperature": 0.0, **options}
    windows, wanted = transcripts(base, sound, **given)
    ends_s = [*options.get("clip_timestamps", ())[1::2], len(sound.samples) / RATE_HZ]
    assert_same(windows, wanted, words="word_timestamps" in options, ends_s=ends_s)


def test_the_language_is_heard(base) -> None:
    windows, wanted = transcripts(base, Sound(speech(3), RATE_HZ), temperature=0.0)
    assert windows[0].language == wanted["language"] == "en"
    assert_same(windows, wanted, ends_s=[3])


@slow
def test_five_minutes_are_theirs(base) -> None:
    windows, wanted = transcripts(base, Sound(speech(300), RATE_HZ), temperature=0.0)
    assert_same(windows, wanted, ends_s=[300])


def test_the_vocabulary_is_theirs(base) -> None:
    ours = base[0].vocabulary
    theirs = whisper.tokenizer.get_tokenizer(True, language="en", task="transcribe")
    texts = ["Hello, world!", " Ünïcödé 漢字 🙂", "it's  two  blanks\nand a line", "1234.5 <|en|> <|endoftext|>", ""]
    for text in texts:
        plain = theirs.encoding.encode(text, disallowed_special=())
        assert ours.encode(text) == plain
        assert ours.decode(plain) == text
    assert ours.unspoken() == list(theirs.non_speech_tokens)
    spoken = theirs.encode(" Mr. O'Brien didn't say \"hello\" — twice; naïve 🙂 it was 1,234.5!")
    for language in ("en", "ja"):
        tokenizer = whisper.tokenizer.get_tokenizer(True, language=language, task="transcribe")
        words, tokens = tokenizer.split_to_word_tokens([*spoken, tokenizer.eot])
        assert ours.words(spoken, language) == list(zip(words[:-1], tokens[:-1], strict=True))


def test_languages_are_named_as_there() -> None:
    known = dict.fromkeys(whisper.tokenizer.LANGUAGES, 0)
    for name, code in whisper.tokenizer.TO_LANGUAGE_CODE.items():
        assert language_code(name, known) == code
        assert language_code(name.title(), known) == code
    with pytest.raises(UsageError, match="no language 'germn' among the 100 of this model .*near to it: german"):
        language_code("germn", known)


@torch.inference_mode()
def test_a_window_is_decoded_alike_whatever_is_beside_it(tiny) -> None:
    """Samples, too: each window draws from a generator of its own."""
    ours, _ = tiny
    features = ours.encoder.features(torch.randn(3, 80, 3_000))
    rules = Rules(language="en", suppressed=tuple(range(256, 50_257)), best_of=2)
    for temperature in (0.0, 0.9):
        drawn = [torch.Generator().manual_seed(seed) for seed in range(3)]
        together = decode(ours, hear(ours.decoder, features), rules, temperature=temperature, generators=drawn)
        for number, found in enumerate(together):
            own = [torch.Generator().manual_seed(number)]
            (alone,) = decode(
                ours, hear(ours.decoder, features[number][None]), rules, temperature=temperature, generators=own
            )
            assert alone.tokens == found.tokens
            assert alone.average_log_probability == pytest.approx(found.average_log_probability, abs=1e-5)


def test_control_tokens_are_numbered_as_theirs() -> None:
    for vocabulary, languages, multilingual in ((51_864, 99, False), (51_865, 99, True), (51_866, 100, True)):
        ours = controls(vocabulary)
        theirs = whisper.tokenizer.get_tokenizer(multilingual, num_languages=languages, language="en", task="transcribe")
        numbers = (
            ours.end,
            ours.start,
            ours.translate,
            ours.transcribe,
            ours.no_speech,
            ours.no_moments,
            ours.first_moment,
        )
        reference = (theirs.eot, theirs.sot, theirs.translate, theirs.transcribe, theirs.no_speech, theirs.no_timestamps)
        assert numbers == (*reference, theirs.timestamp_begin)
        assert ours.opening("en", "transcribe") == list(theirs.sot_sequence)
        if multilingual:
            assert dict(ours.languages) == dict(zip(theirs.all_language_codes, theirs.all_language_tokens, strict=True))
        assert Vocabulary(ours).theirs.encoding.n_vocab == vocabulary


def test_the_heads_that_follow_words_are_theirs() -> None:
    for name, layers, heads in (("tiny", 4, 6), ("base", 6, 8), ("medium.en", 24, 16), ("large-v3-turbo", 4, 20)):
        size = ModelDimensions(80, 8, heads, heads, 1, 51_865, 8, heads, heads, layers)
        theirs = whisper.model.Whisper(size)
        theirs.set_alignment_heads(whisper._ALIGNMENT_HEADS[name])
        assert [tuple(pair) for pair in theirs.alignment_heads.indices().T.tolist()] == alignment_heads(name, layers, heads)
    with pytest.raises(UsageError, match="alignment_heads of base are of 48 heads, the model has 4 x 6"):
        alignment_heads("base", 4, 6)
    with pytest.raises(UsageError, match=r"alignment_heads are those of tiny.en, .* got 'bass'"):
        alignment_heads("bass", 6, 8)
