"""Media in a decoder: what a token sees, what it does not, and that cache, batch, padding and other senses change nothing."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_decoder import tiny_decoder
from tiny_fused import TinyEncoder, gated_layer, prompt, sense, thing, tiny_fused

from zoo.decoding.beams import beam_search
from zoo.decoding.generation import generate
from zoo.decoding.prefix_cache import PrefixCache
from zoo.decoding.prompt import Prompt
from zoo.decoding.reading import batch_of, prefill, step
from zoo.decoding.scoring import score_choices
from zoo.errors import UsageError
from zoo.models.encoded import Encoded
from zoo.models.fusion.fused import Fused
from zoo.models.fusion.item import MOST_ITEMS, Item, Placed, item, key_of
from zoo.models.fusion.media_cache import MediaCache
from zoo.nn.seen_media import Place, spans

TOLERANCE = 1e-5
ids = st.integers(0, 255)
media = st.tuples(st.sampled_from(("image", "audio", "series")), st.integers(0, 4), st.integers(1, 4))
films = st.tuples(st.just("video"), st.integers(0, 4), st.just(2), st.integers(2, 3))
parts = st.lists(st.one_of(ids, ids, media, films), min_size=1, max_size=10)
modes = st.sampled_from(("last", "all"))
SENSES = {"image": 0.6, "audio": -0.4, "series": None}


def model(gates=SENSES, **fields):
    return tiny_fused(gates, **fields)


def asked(given):
    """A prompt that begins with a token of text: something must be there to go on from."""
    return prompt([7, *given], spliced=("series",))


def whole(fused, one, **fields):
    with torch.inference_mode():
        return fused(torch.tensor([one.ids]), media=[one.media], **fields)[0]


def near(found, expected, tolerance=TOLERANCE):
    torch.testing.assert_close(found, expected, rtol=0, atol=tolerance)


@given(given=parts, adjacent=modes)
def test_gates_at_zero_leave_the_decoder_as_it_was_to_the_bit(given, adjacent) -> None:
    fused = model({"image": 0.0, "audio": 0.0}, adjacent=adjacent)
    one = prompt([7, *[part for part in given if isinstance(part, int) or part[0] != "series"]])
    with torch.inference_mode():
        assert torch.equal(whole(fused, one), fused.decoder(torch.tensor([one.ids]))[0])


@given(given=parts, adjacent=modes, pieces=st.lists(st.integers(1, 6), min_size=1, max_size=4))
@torch.inference_mode()
def test_cached_equals_uncached_and_a_hot_media_cache_equals_a_cold_one(given, adjacent, pieces) -> None:
    fused, one = model(adjacent=adjacent), asked(given)
    expected = whole(fused, one)
    kept = MediaCache()
    cuts = [cut for cut in _running(pieces) if cut < len(one)]
    for _ in range(2):
        cache, found, start = fused.new_cache(1, 4), [], 0
        for end in [*cuts, len(one)]:
            now = one.after(start)
            inside = [placed for placed in now.media if placed.position < end - start]
            found.append(fused(torch.tensor([one.ids[start:end]]), cache=cache, media=[inside], media_cache=kept))
            start = end
        near(torch.cat(found, 1)[0], expected)
    assert kept.misses <= len({(placed.item.modality, placed.item.key) for placed in one.media})


@given(
    given=st.lists(parts, min_size=1, max_size=3),
    adjacent=modes,
    left=st.integers(0, 3),
    right=st.integers(0, 3),
    more=st.lists(ids, max_size=3),
)
@torch.inference_mode()
def test_a_batch_gives_what_singles_give_whatever_the_padding(given, adjacent, left, right, more) -> None:
    fused, rows = model(adjacent=adjacent), [asked(one) for one in given]
    longest = max(map(len, rows)) + left + right
    tokens = torch.zeros(len(rows), longest, dtype=torch.long)
    mask = torch.zeros(len(rows), longest, dtype=torch.bool)
    for number, row in enumerate(rows):
        start = left if number % 2 else longest - right - len(row)
        tokens[number, start : start + len(row)] = torch.tensor(row.ids)
        mask[number, start : start + len(row)] = True
    cache = fused.new_cache(len(rows), longest)
    logits = prefill(fused, tokens, cache, mask_BT=mask, media=[row.media for row in rows])
    steps = [step(fused, torch.full((len(rows),), token), cache) for token in more]
    for number, row in enumerate(rows):
        expected = whole(fused, Prompt((*row.ids, *more), row.media))
        near(logits[number], expected[len(row) - 1])
        for offset, found in enumerate(steps):
            near(found[number], expected[len(row) + offset])


@given(given=parts, adjacent=modes, data=st.data())
def test_no_token_changes_with_media_after_it(given, adjacent, data) -> None:
    fused, one = model(adjacent=adjacent), asked(given)
    if not one.media:
        return
    number = data.draw(st.integers(0, len(one.media) - 1))
    placed = one.media[number]
    if placed.item.modality == "series":
        size = len(placed.item.frames[0])
        other = thing("series", 9, size)
    else:
        other = thing(placed.item.modality, 9, 5, len(placed.item.frames))
    changed = Prompt(
        one.ids, (*one.media[:number], Placed(placed.position, placed.tokens, other), *one.media[number + 1 :])
    )
    before, after = whole(fused, one), whole(fused, changed)
    near(after[: placed.position], before[: placed.position])
    assert not torch.allclose(after[placed.position], before[placed.position], atol=TOLERANCE)


@given(order=st.permutations(range(4)), size=st.integers(1, 4))
def test_items_that_a_token_cannot_see_may_stand_in_any_order(order, size) -> None:
    """Adjacent items: the text sees the last one alone, and so do the layers before it, since the markers are all alike."""
    fused = tiny_fused({"image": 0.6}, layers=1)
    plain = prompt([7, *[("image", number, size) for number in range(4)], ("image", 8, 2), 1, 2])
    mixed = prompt([7, *[("image", number, size) for number in order], ("image", 8, 2), 1, 2])
    last = next(place for place in plain.media if place.item.key == thing("image", 8, 2).key).position
    _cut_off(fused)
    near(whole(fused, mixed)[last:], whole(fused, plain)[last:])


def _cut_off(fused) -> None:
    """Without self-attention nothing passes from token to token but what cross-attention shows each."""
    for block in fused.decoder.stack.blocks:
        torch.nn.init.zeros_(block.attention.output.weight)


@given(adjacent=modes, number=st.integers(0, 3))
def test_adjacent_items_are_seen_as_the_mode_says(adjacent, number) -> None:
    fused = tiny_fused({"image": 0.6}, adjacent=adjacent, layers=1)
    _cut_off(fused)
    items = [("image", count, 2) for count in range(4)]
    one = whole(fused, prompt([7, *items, 1, 2]))
    items[number] = ("image", 9, 2)
    other = whole(fused, prompt([7, *items, 1, 2]))
    changed = not torch.allclose(one[-1], other[-1], atol=TOLERANCE)
    assert changed == (adjacent == "all" or number == 3)


def test_what_slots_see() -> None:
    def group(*numbers):
        return tuple(("source", number) for number in numbers)

    row = [Place(2, 2, ("source", 0)), Place(4, 2, ("source", 1)), Place(9, 1, ("source", 2))]
    assert spans(row, 0, 12, "last") == [(2, 4, group(0)), (4, 9, group(1)), (9, 12, group(2))]
    assert spans(row, 0, 12, "all") == [(2, 4, group(0)), (4, 9, group(0, 1)), (9, 12, group(2))]
    assert spans(row, 5, 6, "last") == [(5, 6, group(1))]
    assert spans(row, 0, 2, "last") == []


@torch.inference_mode()
def test_text_before_the_first_item_is_the_decoders_alone() -> None:
    fused = model({"image": 0.9})
    one = prompt([1, 2, 3, ("image", 0, 3), 4])
    alone = fused.decoder(torch.tensor([one.ids]))[0]
    near(whole(fused, one)[:3], alone[:3])
    assert not torch.allclose(whole(fused, one)[3], alone[3], atol=1e-3)
    assert torch.equal(fused(torch.tensor([[1, 2, 3]])), fused.decoder(torch.tensor([[1, 2, 3]])))


@torch.inference_mode()
def test_nothing_is_nan_where_there_is_nothing_to_see() -> None:
    fused = model({"image": 0.9})
    empty = Encoded(torch.zeros(1, 3, 16), torch.zeros(1, 3, dtype=torch.bool), torch.zeros(1, 16))
    padding = Item("image", (), "nothing but padding", empty)
    half = Encoded(torch.full((1, 3, 16), float("nan")), torch.tensor([[True, False, False]]), torch.zeros(1, 16))
    half.tokens_BTD[0, 0] = 1.0
    assert whole(fused, Prompt((1, 2, 3), (Placed(1, 1, Item("image", (), "NaN in padding", half)),))).isfinite().all()
    assert whole(fused, Prompt((1, 2, 3), (Placed(1, 1, padding),))).isfinite().all()
    beside = thing("image", 0)
    assert whole(fused, Prompt((1, 2, 3), (Placed(0, 1, padding), Placed(1, 1, beside)))).isfinite().all()
    assert whole(fused, prompt([("image", 0, 1)], marker=1)).isfinite().all()
    mask = torch.tensor([[False, False], [True, True]])
    logits = fused(torch.tensor([[0, 0], [1, 2]]), mask_BT=mask, media=[[], [Placed(0, 1, beside)]])
    assert logits.isfinite().all()
    near(logits[1], whole(fused, Prompt((1, 2), (Placed(0, 1, beside),))))


@given(given=parts, adjacent=modes)
@torch.inference_mode()
def test_a_second_sense_leaves_the_first_as_it_was_to_the_bit(given, adjacent) -> None:
    decoder = tiny_decoder()
    first = sense(decoder, gate=0.7, seed=1, adjacent=adjacent)
    images = prompt([7, *[part for part in given if isinstance(part, int) or part[0] in ("image", "video")]])
    alone = whole(Fused(decoder, {"image": first}).eval(), images)
    second = sense(decoder, gate=0.9, seed=2, adjacent=adjacent, marker="<other>")
    assert torch.equal(alone, whole(Fused(decoder, {"image": first, "audio": second}).eval(), images))
    silent = sense(decoder, gate=0.0, seed=2, adjacent=adjacent, marker="<other>")
    both = prompt([7, *[part for part in given if isinstance(part, int) or part[0] != "series"]])
    heard = whole(Fused(decoder, {"image": first, "audio": silent}).eval(), both)
    only_images = Prompt(both.ids, tuple(placed for placed in both.media if placed.item.modality != "audio"))
    assert torch.equal(heard, whole(Fused(decoder, {"image": first}).eval(), only_images))


@given(given=parts, adjacent=modes, beams=st.integers(1, 3))
def test_a_search_with_media_is_the_same_with_and_without_what_was_kept(given, adjacent, beams) -> None:
    fused, one = model(adjacent=adjacent, sharpness=2.0), asked([*range(20), *given, 1])
    plain = beam_search(fused, one, beams=beams, max_tokens=4)
    kept = PrefixCache()
    for _ in range(2):
        found = beam_search(fused, one, beams=beams, max_tokens=4, prefixes=kept)
        assert [answer.ids for answer in found] == [answer.ids for answer in plain]
    assert kept.hits == 1


@given(given=st.lists(parts, min_size=1, max_size=3), adjacent=modes)
def test_answers_to_prompts_with_media_do_not_depend_on_who_else_asks(given, adjacent) -> None:
    fused, rows = model(adjacent=adjacent, sharpness=2.0), [asked(one) for one in given]
    kept = PrefixCache()
    together = generate(fused, rows, max_tokens=5, prefixes=kept)
    again = generate(fused, rows, max_tokens=5, prefixes=kept)
    singles = [answer for row in rows for answer in generate(fused, [row], max_tokens=5)]
    assert together == again == singles


def test_samples_and_choices_take_media() -> None:
    fused = model(sharpness=2.0)
    one = asked([("image", 1, 3), 3, ("series", 2, 2), 4])
    assert generate(fused, [one], max_tokens=3, samples=2)[0] == generate(fused, [one], max_tokens=3)[0]
    scored = score_choices(fused, one, [[1, 2], [3]])
    longer = whole(fused, Prompt((*one.ids, 1, 2), one.media)).log_softmax(-1)
    assert scored[0].logprob == pytest.approx(float(longer[len(one) - 1, 1] + longer[len(one), 2]), abs=1e-4)


def test_a_prefix_is_known_by_the_media_in_it() -> None:
    fused = model({"image": 0.9}, sharpness=2.0)
    kept = PrefixCache()
    first, second = ([*range(20), ("image", number, 3), 3, 4] for number in (0, 1))
    generate(fused, [prompt(first)], max_tokens=2, prefixes=kept)
    other = generate(fused, [prompt(second)], max_tokens=6, prefixes=kept)
    assert other == generate(fused, [prompt(second)], max_tokens=6)
    assert kept.hits == 1, "the twenty ids before the item are shared, the item is not"


def test_shots_are_encoded_once_for_all_questions() -> None:
    fused = model({"image": 0.6})
    encoder = fused.senses["image"].encoder
    shots = [part for number in range(6) for part in (("image", number, 3), 1, 2)]
    kept = PrefixCache()
    for question in range(4):
        generate(fused, [prompt([7, *shots, ("image", 100 + question, 3), 5])], max_tokens=2, prefixes=kept)
    assert encoder.calls == 4, "seven items, then one for each further question"
    assert kept.media.misses == 6 + 4
    assert kept.hits == 3


def test_a_media_cache_forgets_what_a_changed_sense_made() -> None:
    fused, one = model({"image": 0.6, "audio": 0.5}), prompt([1, ("image", 0, 3), 2, ("audio", 0, 3), 3])
    kept = MediaCache()
    whole(fused, one, media_cache=kept)
    with torch.no_grad():
        fused.senses["image"].bridge.project.weight.mul_(2)
    near(whole(fused, one, media_cache=kept), whole(fused, one))
    assert (kept.hits, kept.misses) == (1, 3), "the sound was still good"
    with pytest.raises(UsageError, match="a media cache is for one model, and this is another: give each its own"):
        whole(model({"image": 0.6, "audio": 0.5}), one, media_cache=kept)


def test_a_media_cache_is_bounded_and_forgets_the_oldest() -> None:
    fused = model({"image": 0.6})
    kept = MediaCache()
    whole(fused, prompt([("image", 0, 3)]), media_cache=kept)
    one_item = kept.size_bytes
    kept = MediaCache(limit_bytes=2 * one_item)
    for number in (0, 1, 0, 2, 0, 1):
        whole(fused, prompt([("image", number, 3)]), media_cache=kept)
    assert kept.size_bytes == 2 * one_item
    assert (kept.hits, kept.misses) == (2, 4)
    small = MediaCache(limit_bytes=one_item - 1)
    whole(fused, prompt([("image", 0, 3)]), media_cache=small)
    assert small.size_bytes == 0


def test_gradients_reach_every_trained_parameter_and_no_frozen_one() -> None:
    fused = model({"image": 0.3, "audio": 0.3, "series": None})
    fused.decoder.requires_grad_(False)
    for one in fused.senses.values():
        one.encoder.requires_grad_(False)
    asked_for = asked([("image", 0, 3), 1, ("audio", 1, 2), 2, ("series", 2, 2), 3])
    fused(torch.tensor([asked_for.ids]), media=[asked_for.media])[0, -1].log_softmax(-1)[5].backward()
    for name, parameter in fused.named_parameters():
        frozen = name.startswith("decoder.") or ".encoder." in name
        assert (parameter.grad is None) if frozen else (parameter.grad is not None and parameter.grad.abs().sum() > 0), name
    with pytest.raises(UsageError, match="a media cache keeps numbers through which no gradient flows"):
        fused(torch.tensor([asked_for.ids]), media=[asked_for.media], media_cache=MediaCache())


def test_saved_and_loaded_it_answers_the_same_to_the_bit(tmp_path) -> None:
    from safetensors.torch import load_file, save_file

    fused, one = model(), asked([("image", 0, 3), 1, ("series", 1, 2), 2])
    save_file(fused.state_dict(), tmp_path / "model.safetensors")
    other = model({"image": 0.1, "audio": 0.1, "series": None}, seed=9)
    other.load_state_dict(load_file(tmp_path / "model.safetensors"))
    assert torch.equal(whole(other, one), whole(fused, one))


@given(given=parts)
@torch.inference_mode()
def test_a_step_of_a_kernel_sees_what_the_modules_see(given) -> None:
    from zoo.models.kernels import apply_kernel

    fused, one = model(), asked(given)
    expected = whole(fused, Prompt((*one.ids, 3, 4), one.media))
    apply_kernel(fused.decoder, "float32")
    assert fused.one_step is not None
    cache = fused.new_cache(1, len(one) + 2)
    tokens, mask = batch_of([one.ids])
    near(prefill(fused, tokens, cache, mask_BT=mask, media=[one.media])[0], expected[-3], 1e-4)
    near(step(fused, torch.tensor([3]), cache)[0], expected[-2], 1e-4)
    near(step(fused, torch.tensor([4]), cache)[0], expected[-1], 1e-4)


def test_flamingos_feed_forward_goes_over_every_token_where_asked() -> None:
    fused = model({"image": 0.6})
    tokens = torch.tensor([[1, 2, 3]])
    with torch.inference_mode():
        plain = fused.decoder(tokens)
        assert torch.equal(fused(tokens), plain)
        fused.senses["image"].gated["1"] = gated_layer(fused.decoder.width, gate=0.6, feeds_all=True)
        assert not torch.allclose(fused(tokens), plain, atol=1e-3)


@pytest.mark.parametrize(
    ("placed", "message"),
    [
        ([Placed(5, 1, thing("image", 0))], "an item of image at token 5 with 1 tokens is outside row 0, which has 3"),
        ([Placed(1, 0, thing("image", 0))], "an item of image at token 1 with 0 tokens is outside row 0, which has 3"),
        (
            [Placed(1, 2, thing("image", 0)), Placed(2, 1, thing("image", 0))],
            "media stand in the order of their tokens and apart: row 0 has one at 2, and the one before ends at 3",
        ),
        ([Placed(0, 1, thing("video", 0))], None),
        (
            [Placed(0, 1, thing("audio", 0))],
            "this model has no sense for audio: it has image; compose it with an encoder for audio",
        ),
        ([Placed(0, 1, thing("image", 0))] * 10_000, f"a prompt holds at most {MOST_ITEMS} media items, row 0 has 10,000"),
    ],
)
def test_media_that_do_not_fit_are_refused(placed, message) -> None:
    fused = model({"image": 0.6})
    if message is None:
        assert fused(torch.tensor([[1, 2, 3]]), media=[placed]).isfinite().all()
        return
    with pytest.raises(UsageError, match=f"^{message}$".replace("(", "\\(")):
        fused(torch.tensor([[1, 2, 3]]), media=[placed])


def test_what_is_asked_of_a_decoder_without_senses_is_refused() -> None:
    one = prompt([1, ("image", 0, 3)])
    with pytest.raises(
        UsageError, match="^prompt 0 holds media, and this model reads text alone: compose it with an encoder"
    ):
        generate(tiny_decoder(), [one])
    with pytest.raises(UsageError, match="^media are given for each row: the tokens have 1 rows, got media for 2$"):
        model({"image": 0.6})(torch.tensor([[1, 2]]), media=[[], []])
    with pytest.raises(UsageError, match="^an item of series becomes 3 latents here, and 2 tokens are left for it$"):
        model({"series": None})(torch.tensor([[1, 2, 3]]), media=[[Placed(0, 2, thing("series", 0, 3))]])


@pytest.mark.covers("A19")
def test_keys_are_of_content() -> None:
    from PIL import Image

    picture = Image.new("RGB", (4, 2), "red")
    assert key_of("image", [picture]) == key_of("image", [picture.copy()])
    others = [
        Image.new("RGB", (2, 4), "red"),
        Image.new("RGB", (4, 2), "blue"),
        Image.new("L", (4, 2), 76),
        "a text",
        b"a text",
    ]
    keys = {key_of("image", [picture]), key_of("video", [picture]), key_of("image", [picture, picture])}
    assert len(keys | {key_of("image", [other]) for other in others}) == 3 + len(others)
    with pytest.raises(UsageError, match="^an item of image must be a picture, a sound or numbers, got object$"):
        key_of("image", [object()])
    with pytest.raises(UsageError, match="^an item of image needs at least one frame, got none$"):
        item("image")


def test_an_encoder_that_is_frozen_keeps_no_graph() -> None:
    fused = model({"image": 0.6})
    encoder = fused.senses["image"].encoder
    assert isinstance(encoder, TinyEncoder)
    encoder.requires_grad_(False)
    (features,) = fused.senses["image"].encode([thing("image", 0).frames])
    assert not features.tokens_BTD.requires_grad


def _running(sizes):
    total, found = 0, []
    for size in sizes:
        total += size
        found.append(total)
    return found


@pytest.mark.covers("A19")
@pytest.mark.parametrize("change", ["cast", "evaluation", "exchange", "new tensor"])
def test_what_shapes_an_item_is_watched(change) -> None:
    fused, one = model({"image": 0.6}), prompt([1, ("image", 0, 3), 2])
    sense_of_images, kept = fused.senses["image"], MediaCache()
    sense_of_images.bridge.project = torch.nn.Sequential(
        sense_of_images.bridge.project, torch.nn.GELU(), torch.nn.Dropout(0.5)
    )
    whole(fused, one, media_cache=kept)
    if change == "cast":
        fused.senses.double().float()
    elif change == "evaluation":
        sense_of_images.bridge.train()
    elif change == "exchange":
        sense_of_images.bridge.project[1] = torch.nn.Tanh()
    else:
        sense_of_images.bridge.project[0].weight = torch.nn.Parameter(
            sense_of_images.bridge.project[0].weight.detach().clone()
        )
    whole(fused, one, media_cache=kept)
    assert (kept.hits, kept.misses) == (0, 2)
    kept.clear()
    assert kept.size_bytes == 0


def test_features_are_told_apart_by_their_numbers() -> None:
    first, second = (
        Encoded(torch.full((1, 2, 16), value), torch.ones(1, 2, dtype=torch.bool), torch.zeros(1, 16))
        for value in (0.1, 0.2)
    )
    assert item("image", features=first).key != item("image", features=second).key
    assert item("image", features=first).key == item("image", features=first).key


def test_a_kept_prefix_holds_no_item_but_its_own() -> None:
    fused, kept = model({"image": 0.6}), PrefixCache()
    rows = [prompt([*range(20), ("image", 0, 3), 1, ("image", number, 3), 2]) for number in range(1, 6)]
    generate(fused, rows, max_tokens=1, prefixes=kept)
    (entry,) = kept._entries.values()
    assert [source.count for shown in entry.media.values() for source in shown.sources] == [1]
    generate(fused, rows[:1], max_tokens=1, prefixes=kept)
    assert kept.size_bytes == sum(cache.size_bytes - cache.media_bytes for cache in kept._entries.values()) + sum(
        source.size_bytes
        for source in {id(s): s for c in kept._entries.values() for m in c.media.values() for s in m.sources}.values()
    )


def test_a_marker_of_another_length_is_another_beginning() -> None:
    fused = model({"image": 0.6}, adjacent="all")
    kept = PrefixCache()
    first, second = thing("image", 0), thing("image", 1)
    text = tuple(range(20))
    one = Prompt((*text, 9, 9, 9, 1), (Placed(20, 2, first),))
    other = Prompt((*text, 9, 9, 9, 1), (Placed(20, 1, first), Placed(21, 1, second)))
    generate(fused, [one], max_tokens=1, prefixes=kept)
    near_logprobs = [score_choices(fused, other, [[1], [2]], prefixes=cache)[0].logprob for cache in (kept, None)]
    assert near_logprobs[0] == pytest.approx(near_logprobs[1], abs=1e-5)


def test_ids_that_mean_nothing_steer_nothing() -> None:
    from zoo.decoding.sampling import Sampling

    fused = model({"series": None}, sharpness=2.0)
    latents = thing("series", 0, 3)
    rows = [Prompt((1, filler, filler, filler, 2), (Placed(1, 3, latents),)) for filler in (9, 176)]
    for sampling in (Sampling(temperature=1.0), Sampling(repetition_penalty=5.0)):
        one, other = (generate(fused, [row], max_tokens=6, sampling=sampling)[0].ids for row in rows)
        assert one == other


def test_an_encoder_reads_a_bounded_number_at_once() -> None:
    fused = model({"image": 0.6})
    many = [thing("image", number, 2).frames for number in range(70)]
    alone = [fused.senses["image"].encode([frames])[0].tokens_BTD for frames in many]
    fused.senses["image"].encoder.calls = 0
    together = fused.senses["image"].encode(many)
    assert fused.senses["image"].encoder.calls == 3
    assert all(torch.allclose(one.tokens_BTD, other, atol=1e-6) for one, other in zip(together, alone, strict=True))


class NoMask(torch.nn.Module):
    output_width = 20

    def forward(self, encoded, *, frames=1):
        return encoded.tokens_BTD


def test_a_bridge_that_breaks_its_contract_is_named() -> None:
    from zoo.errors import PluginError

    fused = model({"image": 0.6})
    fused.senses["image"].bridge = NoMask()
    with pytest.raises(
        PluginError, match=r"a bridge gives latents float\[B, L, W\] and a mask bool\[B, L\] .* NoMask gave .* and NoneType"
    ):
        whole(fused, prompt([1, ("image", 0, 3), 2]))


@given(given=parts, adjacent=modes, beams=st.integers(1, 4))
def test_hypotheses_have_the_probability_that_the_whole_gives_them(given, adjacent, beams) -> None:
    """Each beam goes on with the media of its parent, however often a parent was kept."""
    fused, one = model(adjacent=adjacent, sharpness=2.0), asked([*given, ("image", 1, 3), 1])
    for answer in beam_search(fused, one, beams=beams, max_tokens=4):
        logprobs = whole(fused, Prompt((*one.ids, *answer.ids), one.media)).log_softmax(-1)
        said = [float(logprobs[len(one) - 1 + step, token]) for step, token in enumerate(answer.ids)]
        if answer.ended:
            (end,) = fused.tokenizer.end_ids
            said.append(float(logprobs[len(one) - 1 + len(answer.ids), end]))
        assert answer.logprob == pytest.approx(sum(said), abs=1e-4)


def test_rows_that_end_early_leave_the_others_their_media() -> None:
    fused = model({"image": 0.9, "audio": 0.9}, sharpness=2.0)
    rows = [prompt([7, (modality, number, 3), number]) for modality in ("image", "audio") for number in range(4)]
    stops = [generate(fused, [row], max_tokens=8)[0].text[1] for row in rows[::3]]
    together = generate(fused, rows, max_tokens=8, stop=stops)
    assert together == [generate(fused, [row], max_tokens=8, stop=stops)[0] for row in rows]
    assert len({len(answer.ids) for answer in together}) > 1, "some end before others"


@torch.inference_mode()
def test_a_marker_may_be_cut() -> None:
    """The item that its first half brought is not brought again by the second: adjacent ones would part."""
    fused = model({"image": 0.6}, adjacent="all")
    one = prompt([7, ("image", 0, 3), ("image", 1, 2), 1, 2])
    cache, cut = fused.new_cache(1, len(one)), one.media[1].position + 1
    first = fused(torch.tensor([one.ids[:cut]]), cache=cache, media=[one.media])
    second = fused(torch.tensor([one.ids[cut:]]), cache=cache, media=[one.after(cut).media])
    near(torch.cat((first, second), 1)[0], whole(fused, one))
