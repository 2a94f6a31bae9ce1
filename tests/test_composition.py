"""Encoders, bridges and a decoder by their names: every one with every other, saved, opened, refused, asked."""

import json
import os
import tomllib
from pathlib import Path

import pytest
import torch
from PIL import Image

import zoo as library
from zoo.decoding import PrefixCache, generate
from zoo.errors import PluginError, UnknownNameError, UsageError, WeightsError
from zoo.media.audio import Sound
from zoo.models.composition import describe_composition, open_composition, save, trained_parameters
from zoo.models.fusion.item import MOST_ITEMS, item
from zoo.models.recipe import read_recipe, recipe_of
from zoo.registry.lookup import cards
from zoo.registry.modality import AUDIO, IMAGE
from zoo.tasks.media_prompt import written

DECODER, ENCODER, BRIDGE = "smollm/tiny", "clip/tiny-image", "perceiver/resampler-tiny"
BRIDGES = [card.name for card in cards(kind="bridge")]
SOUNDS = [card for card in cards(kind="encoder") if AUDIO in card.modalities]
# Parameters: sizes differ in width alone, and the larger ones are tried with one bridge
SMALL, LARGE = 1_000_000, 10_000_000
WAYS = ("gated", "spliced")
ENCODERS = [
    *[(IMAGE, card.name) for card in cards(kind="encoder") if IMAGE in card.modalities],
    *[(AUDIO, card.name) for card in SOUNDS if card.parameters < SMALL],
]
LARGER = [card.name for card in SOUNDS if SMALL <= card.parameters < LARGE]
GRID = [
    *[(*encoder, bridge, way) for encoder in ENCODERS for bridge in BRIDGES for way in WAYS],
    *[(AUDIO, name, BRIDGE, way) for name in LARGER for way in WAYS],
]


def is_tried_at_each_push(number_of_encoder, number_of_bridge, number_of_way):
    """Every fourth bridge with each encoder, each fourth beginning one later than the last, and the ways in turn."""
    turn, rest = divmod(number_of_encoder + number_of_bridge, 4)
    return rest == 0 and turn % 2 == number_of_way


PUSHED = [
    *[
        (*encoder, bridge, way)
        for e, encoder in enumerate(ENCODERS)
        for b, bridge in enumerate(BRIDGES)
        for w, way in enumerate(WAYS)
        if is_tried_at_each_push(e, b, w)
    ],
    *[(AUDIO, name, BRIDGE, WAYS[number % 2]) for number, name in enumerate(LARGER)],
]


def composed(encoder=ENCODER, bridge=BRIDGE, seed=0, modality=IMAGE, **fields):
    torch.manual_seed(seed)
    return library.compose(decoder=DECODER, encoders={modality: encoder}, bridge=bridge, weights=None, every=1, **fields)


def shallow(bridge):
    """Arguments that leave a bridge one layer deep, where it has layers: what is tried is that the parts fit."""
    (card,) = [card for card in cards(kind="bridge") if card.name == bridge]
    return {name: 1 for name in card.variant if name.endswith("layers")}


def picture(seed=0):
    pixels = torch.randint(0, 256, (40, 50, 3), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)
    return Image.fromarray(pixels.numpy())


def noise(seed=0):
    samples = torch.randn(12_000, generator=torch.Generator().manual_seed(seed)) * 0.1
    return Sound(samples.numpy(), 16_000)


def test_what_is_tried_at_each_push_meets_every_part_several_times() -> None:
    """Each encoder with three bridges or more, each bridge with three encoders or more, both in both ways."""
    assert set(PUSHED) <= set(GRID)
    small = [trial for trial in PUSHED if trial[:2] in ENCODERS]
    for place, names in ((1, {name for _, name in ENCODERS}), (2, set(BRIDGES))):
        for name in names:
            met = [trial for trial in small if trial[place] == name]
            assert len({trial[3 - place] for trial in met}) >= 2, name
            assert {trial[3] for trial in met} == set(WAYS), name
    assert {(trial[0], trial[2]) for trial in small} == {
        (modality, bridge) for modality in (IMAGE, AUDIO) for bridge in BRIDGES
    }
    assert {encoder for _, encoder, _, _ in PUSHED} == {encoder for _, encoder, _, _ in GRID}


@pytest.mark.parametrize(
    ("modality", "encoder", "bridge", "fusion"), GRID if os.environ.get("ZOO_SLOW_TESTS") == "1" else PUSHED
)
def test_every_encoder_joins_a_decoder_by_every_bridge(modality, encoder, bridge, fusion, tmp_path: Path) -> None:
    """The whole grid with ZOO_SLOW_TESTS=1. At each push an eighth of it: each encoder meets a fourth of the bridges, each bridge a
    fourth of the encoders, each of both in both ways, so that what one part does wrong shows; what only one pair of an encoder and
    a bridge does wrong may show in the whole grid alone.
    """
    composition = composed(
        encoder,
        bridge,
        modality=modality,
        fusion=fusion,
        bridge_arguments=shallow(bridge),
        gate=0.5,
        heads=2,
        head_width=8,
    )
    model = composition.module
    parts = [item(modality, picture() if modality == IMAGE else noise()), "what is it?"]
    asked = written(model, model.tokenizer, parts).prompt
    model(torch.tensor([asked.ids]), media=[asked.media])[0, -1].log_softmax(-1)[65].backward()
    touched = [name for name, one in model.named_parameters() if one.grad is not None]
    assert any(".bridge." in name for name in touched)
    assert all(one.requires_grad for _, one in model.named_parameters() if one.grad is not None)
    assert not any(one.requires_grad for name, one in model.named_parameters() if "decoder." in name or ".encoder." in name)
    (answer,) = generate(model, [asked], max_tokens=3, prefixes=PrefixCache())
    assert len(answer.ids) == 3
    save(composition, tmp_path / "saved")
    other = open_composition(tmp_path / "saved")
    assert generate(other.module, [asked], max_tokens=3) == [answer]
    with torch.inference_mode():
        found, expected = (one(torch.tensor([asked.ids]), media=[asked.media]) for one in (other.module, model))
    assert torch.equal(found, expected)


def test_gates_at_zero_answer_as_the_decoder_does() -> None:
    model = composed().module
    asked = written(model, model.tokenizer, [item("image", picture()), "hello"]).prompt
    assert generate(model, [asked], max_tokens=8) == generate(model.decoder, [asked.ids], max_tokens=8)


def test_what_is_trained_is_the_bridge_and_the_gated_layers() -> None:
    composition = composed()
    trained = sum(one.numel() for one in trained_parameters(composition.module))
    lines = describe_composition(composition).splitlines()
    assert lines[0].split() == ["part", "model", "into", "the", "decoder", "trained", "frozen", "MB"]
    assert [line.split()[0] for line in lines[1:]] == ["decoder", "image", "image", "image", "all"]
    assert f"{trained:,}" in lines[-1]
    assert "before layers 0, 1" in lines[4]


def test_a_recipe_says_the_same_as_arguments(tmp_path: Path) -> None:
    (tmp_path / "recipe.toml").write_text(
        f'recipe = 1\ndecoder = "{DECODER}"\n[senses.image]\nencoder = "{ENCODER}"\nbridge = "{BRIDGE}"\nevery = 1\n'
    )
    torch.manual_seed(0)
    by_file = library.compose(read_recipe(tmp_path), weights=None)
    by_arguments = composed()
    assert by_file.recipe == by_arguments.recipe
    for (name, one), other in zip(
        by_file.module.state_dict().items(), by_arguments.module.state_dict().values(), strict=True
    ):
        assert torch.equal(one, other), name
    with pytest.raises(UsageError, match="^a recipe says all: leave out decoder, encoders, bridge and fields beside it$"):
        library.compose(by_file.recipe, decoder=DECODER)


def test_a_saved_composition_holds_what_no_file_holds(tmp_path: Path) -> None:
    from safetensors import safe_open

    torch.manual_seed(0)
    composition = library.compose(
        decoder="smollm/135m-instruct",
        encoders={"image": "timm/efficientnet_lite0"},
        bridge="perceiver/mlp-tiny",
        every=15,
        heads=2,
    )
    recipe = save(composition, tmp_path)
    with safe_open(tmp_path / "trained.safetensors", "pt") as file:
        held = set(file.keys())
    assert held == {name for name, one in composition.module.named_parameters() if one.requires_grad}
    assert set(recipe.frozen) == {"smollm/135m-instruct.q4_1", "timm/efficientnet_lite0.in1k"}
    assert recipe.requires == ("modalzoo-perceiver==0.1.0", "modalzoo-smollm==0.1.0", "modalzoo-timm==0.1.0")
    assert read_recipe(tmp_path) == recipe
    text = (tmp_path / "recipe.toml").read_text()
    sha256 = recipe.frozen["timm/efficientnet_lite0.in1k"]["model"]
    (tmp_path / "recipe.toml").write_text(text.replace(sha256, "0" * 64))
    with pytest.raises(WeightsError, match="was trained with timm/efficientnet_lite0.in1k whose model file has sha256 0000000000000000, "
                       f"the one here has {sha256[:16]}: its answers would mean nothing; get the same file, or train again"):  # fmt: skip
        open_composition(tmp_path)
    (tmp_path / "recipe.toml").write_text(text)
    damaged = bytearray((tmp_path / "trained.safetensors").read_bytes())
    damaged[-1] ^= 1
    (tmp_path / "trained.safetensors").write_bytes(damaged)
    with pytest.raises(
        WeightsError, match="is not the file that .* was saved with: its sha256 differs; save the composition again"
    ):
        open_composition(tmp_path)
    (tmp_path / "trained.safetensors").unlink()
    with pytest.raises(WeightsError, match="names trained.safetensors, and there is no such file in"):
        open_composition(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"recipe": 2}, "the file must say recipe = 1, got 2"),
        ({"colour": 1}, "the file has the unknown field colour: a recipe has decoder, drawn, frozen, recipe, requires, senses, trained"),
        ({"decoder": 3}, "the file must name a decoder and at least one sense: [senses.image] with its encoder and bridge"),
        ({"senses": {}}, "the file must name a decoder and at least one sense: [senses.image] with its encoder and bridge"),
        ({"senses": {"smell": {}}}, "the file: senses.smell: a sense is for one of image, audio, video, series"),
        ({"senses": {"image": 3}}, "the file: senses.image must be a table with encoder and bridge, got 3"),
        ({"senses": {"image": {"encoder": "a"}}}, "the file: senses.image must have bridge, the name of a model"),
        ({"senses": {"image": {"encoder": "a", "bridge": "b", "evry": 1}}}, "the file: senses.image has the unknown field evry: a sense has encoder"),
        ({"senses": {"image": {"encoder": "a", "bridge": "b", "every": "1"}}}, "the file: senses.image: every must be a whole number, got '1'"),
        ({"senses": {"image": {"encoder": "a", "bridge": "b", "every": True}}}, "the file: senses.image: every must be a whole number, got True"),
        ({"senses": {"image": {"encoder": "a", "bridge": "b", "every": 0}}}, "the file: senses.image: every must be at least 1, got 0"),
        ({"senses": {"image": {"encoder": "a", "bridge": "b", "fusion": "glue"}}}, "fusion is one of gated, spliced and adjacent one of last, all, got 'glue'"),
        ({"requires": "x"}, "the file: requires is a list of distributions as NAME==VERSION, got 'x'"),
        ({"requires": ["x; rm -rf ~"]}, "the file: requires is a list of distributions as NAME==VERSION, got ['x; rm -rf ~']"),
        ({"trained": {"file": 1}}, "the file: [trained] holds texts, got {'file': 1}"),
        ({"drawn": {"decoder": 1}}, "the file: [drawn] holds texts, got {'decoder': 1}"),
        ({"frozen": {"a": 1}}, "the file: [frozen] holds a table of sha256 for each model, got {'a': 1}"),
    ],
)  # fmt: skip
def test_what_is_no_recipe_is_refused(change, message) -> None:
    good = {"recipe": 1, "decoder": DECODER, "senses": {"image": {"encoder": ENCODER, "bridge": BRIDGE}}}
    assert recipe_of(good, "the file").decoder == DECODER
    with pytest.raises(UsageError) as caught:
        recipe_of({**good, **change}, "the file")
    assert message in str(caught.value)


def test_parts_that_do_not_fit_are_refused_before_anything_is_built(tmp_path: Path) -> None:
    for fields, error, message in (
        ({"bridge": ENCODER}, UsageError, "senses.image.bridge must be of kind bridge, clip/tiny-image is of kind encoder: zoo list --kind bridge"),
        ({"encoder": "text/minilm-tiny"}, UsageError, "senses.image.encoder must read image, text/minilm-tiny reads text: zoo list --modality image"),
        ({"bridge": "perceiver/nonesuch"}, UnknownNameError, "senses.image.bridge: "),
        ({"bridge_arguments": {"input_width": 7}}, UsageError, "perceiver/resampler-tiny is built for features 7 wide, clip/tiny-image gives 64"),
        ({"bridge_arguments": {"output_width": 7}, "fusion": "spliced"}, UsageError, "gives latents 7 wide, and among the tokens of the decoder they must be 64 wide: set output_width = 64"),
    ):  # fmt: skip
        with pytest.raises(error) as caught:
            composed(**fields)
        assert message in str(caught.value)
    with pytest.raises(
        UsageError, match=r"^senses.image: every = 9 .--every., and the decoder has 2 layers: take at most so many$"
    ):
        library.compose(decoder=DECODER, encoders={"image": ENCODER}, bridge=BRIDGE, weights=None, every=9)
    with pytest.raises(UsageError, match="^a composition needs a decoder, encoders and a bridge: zoo.compose"):
        library.compose(decoder=DECODER)
    with pytest.raises(UsageError, match="^bridge names none for image: it has audio$"):
        library.compose(decoder=DECODER, encoders={"image": ENCODER}, bridge={"audio": BRIDGE})
    (tmp_path / "recipe.toml").write_text(
        f'recipe = 1\ndecoder = "{DECODER}"\nrequires = ["modalzoo-nose==1.0"]\n[senses.image]\nencoder = "nose/cold"\nbridge = "{BRIDGE}"\n'
    )
    with pytest.raises((UnknownNameError, PluginError)) as caught:
        open_composition(tmp_path)
    assert "senses.image.encoder: no installed plugin provides 'nose/cold'" in str(caught.value)
    assert str(caught.value).endswith("the recipe was saved with modalzoo-nose==1.0: zoo install modalzoo-nose==1.0")
    with pytest.raises(UsageError, match="nowhere holds no recipe: nowhere cannot be read .No such file or directory."):
        open_composition(tmp_path / "nowhere")


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("composition") / "saved"
    save(composed(gate=0.5, heads=2, head_width=8), folder)
    return folder


def test_prompts_of_texts_and_pictures(saved, photos) -> None:
    language = library.open_language_model(saved)
    cat, dog = photos / "chelsea.jpg", photos / "astronaut.jpg"
    both = library.generate([[cat, "a cat", dog, "a"]], model=language, max_tokens=4).results[0]
    assert both.prompt == "<image>a cat\n<image>a"
    said = library.generate([["<image>a cat\n<image>a", cat, dog]], model=language, max_tokens=4).results[0]
    assert said == both
    first, second = (
        library.score([[*asked, "a"]], ["x", "y"], model=language).results[0].logprobs for asked in ([cat, dog], [dog, cat])
    )
    assert first != second
    alone, together = (
        [result.text for prompts in asked for result in library.generate(prompts, model=language, max_tokens=4).results]
        for asked in ([[[cat, "x"]], ["y"]], [[[cat, "x"], "y"]])
    )
    assert alone == together
    scored = library.score([[cat, "this is a"]], ["cat", "dog"], model=language).results[0]
    assert set(scored.scores) == {"cat", "dog"}


def test_a_folder_of_pictures_is_a_film(saved, photos, tmp_path: Path, main) -> None:
    for number, name in enumerate(("chelsea.jpg", "astronaut.jpg")):
        (tmp_path / f"{number}.jpg").symlink_to(photos / name)
    run = main("generate", f"{tmp_path}/", "a", "--model", str(saved), "--max-tokens", "3", "--json")
    assert json.loads(run.stdout)["results"][0]["input"] == "<image>a", run.stderr
    (tmp_path / "empty").mkdir()
    for part, message in (
        (f"{tmp_path}/empty/", "holds no images, so it is no film: expected files .jpg"),
        (f"{tmp_path}/nowhere/", "there is no folder"),
        (f"{tmp_path}/my photo.jpg", "there is no file"),
    ):
        run = main("generate", part, "a", "--model", str(saved), "--max-tokens", "1")
        assert (run.returncode != 0, message in run.stderr) == (True, True), run.stderr
    (tmp_path / "._0.jpg").write_bytes(b"\0\5\26\7")  # beside each file, where another system has copied the folder
    said = main("generate", str(tmp_path), "a", "--model", str(saved), "--max-tokens", "1", "--json")
    assert json.loads(said.stdout)["results"][0]["input"] == "<image>a", said.stderr
    with pytest.raises(UsageError, match=r"which names a file: give it as pathlib.Path"):
        library.generate([[str(tmp_path / "0.jpg"), "a"]], model=saved)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["<image>a"], "the text has 1 <image> and 0 of image were given: one for each, or leave the markers out"),
        (["<image><image>", "PHOTO"], "the text has 2 <image> and 1 of image were given: one for each, or leave the markers out"),
        (["sound.wav", "a"], "sound.wav: this model has no sense for audio: it has image; compose it with an encoder for audio"),
        (["PHOTO", "a", "--chat"], "was not trained on conversations: leave out --chat"),
        (["PHOTO"] * 300, f"a prompt holds at most {MOST_ITEMS} media items, got 300"),
        (["PHOTO", "a", "--kernel", "int4", "--dtype", "bfloat16"], "kernel int4 takes a model in float32, got torch.bfloat16: leave out dtype"),
        (["broken.jpg", "a"], "broken.jpg: not an image that can be read"),
        (["a", "--explain", "page.html"], "an explanation shows what was looked at in media: give a composition, and a prompt that holds some"),
        (["PHOTO", "a", "--explain", "nowhere/page.html"], "nowhere/page.html cannot be written: there is no folder nowhere"),
        (["PHOTO", "a", "--explain", "page.html", "--kernel", "int8"], "an explanation follows gradients, and none flow through kernel int8: leave it out"),
        (["PHOTO", "a", "PHOTO", "<image> <image>"], "a text says <image>, and the items stand between texts already: leave the marker out"),
        (["PHOTO", "a", "--weights", "none"], "is a composition, whose recipe names its weights: leave out --weights"),
    ],
)  # fmt: skip
def test_media_that_cannot_be_asked_about_are_named(main, saved, photos, tmp_path, monkeypatch, arguments, message) -> None:
    monkeypatch.chdir(tmp_path)
    Path("sound.wav").write_bytes(b"RIFF")
    Path("broken.jpg").write_bytes(b"no picture")
    given = [str(photos / "chelsea.jpg") if argument == "PHOTO" else argument for argument in arguments]
    run = main("generate", *given, "--model", str(saved), "--max-tokens", "1")
    assert run.returncode in (1, 2)
    assert message in run.stderr
    assert run.stdout == ""


@pytest.mark.parametrize("fusion", ["gated", "spliced"])
def test_an_explanation_shows_each_word_and_each_item(main, photos, tmp_path: Path, fusion) -> None:
    save(composed(gate=0.5, heads=2, head_width=8, fusion=fusion), tmp_path / "saved")
    page = tmp_path / "page.html"
    cat = str(photos / "chelsea.jpg")
    run = main(
        "generate", cat, "one", cat, "two", "--model", str(tmp_path / "saved"), "--max-tokens", "3", "--explain", str(page)
    )
    assert run.returncode == 0, run.stderr
    assert "zoo: the prompt is '<image>one\\n<image>two'" in run.stderr
    text = page.read_text()
    assert text.count("<tr>") == 3
    assert text.count("<img ") == (3 if fusion == "gated" else 6), "gated tokens see the last item, spliced ones all"
    assert ("image 2: 100%" in text) == (fusion == "gated")


def test_the_looks_of_a_token_are_of_the_items_that_it_sees() -> None:
    from zoo.models.fusion.attention_map import looks

    composition = composed(gate=0.5, heads=2, head_width=8, adjacent="all")
    model = composition.module
    asked = written(model, model.tokenizer, [item("image", picture(1)), item("image", picture(2)), "hello"]).prompt
    found = looks(model, asked.ids, asked.media, [65, 66])
    assert [(look.token, look.item) for look in found] == [(0, 0), (0, 1), (1, 0), (1, 1)]
    for token in (0, 1):
        assert sum(look.share for look in found if look.token == token) == pytest.approx(1, abs=1e-5)
    assert all(float(look.features_T.sum()) == pytest.approx(1, abs=1e-5) for look in found)
    with torch.inference_mode():
        before = model(torch.tensor([asked.ids]), media=[asked.media])
    looks(model, asked.ids, asked.media, [65])
    with torch.inference_mode():
        assert torch.equal(before, model(torch.tensor([asked.ids]), media=[asked.media])), "nothing is left on the model"


def test_the_command_composes_describes_and_says_what_is_not_trained(main, tmp_path: Path) -> None:
    arguments = [
        "--decoder",
        DECODER,
        "--encoder",
        f"image={ENCODER}",
        "--bridge",
        BRIDGE,
        "--every",
        "1",
        "--weights",
        "none",
    ]
    run = main("compose", *arguments, "--out", str(tmp_path / "new"))
    assert run.returncode == 0, run.stderr
    assert "holds the recipe and what is to be trained; until then its answers mean nothing" in run.stderr
    assert main("compose", str(tmp_path / "new")).stdout == run.stdout
    document = json.loads(main("compose", str(tmp_path / "new"), "--json").stdout)
    assert (document["decoder"], document["random_weights"]) == (DECODER, True)
    assert tomllib.loads((tmp_path / "new" / "recipe.toml").read_text())["drawn"].keys() == {
        "decoder", "image.encoder", "image.bridge", "image.gated",
    }  # fmt: skip
    asked = main("generate", "hello", "--model", str(tmp_path / "new"), "--max-tokens", "2")
    assert f"has random weights in {DECODER}, {ENCODER}, {BRIDGE} (image bridge), image gated layers: what" in asked.stderr
    for wrong, message in (
        ([*arguments, "--out", str(tmp_path / "new")], "is there already: name a new folder"),
        (
            [str(tmp_path / "new"), "--bridge", BRIDGE],
            "a recipe says all: leave out --bridge, or the recipe",
        ),
        (["--encoder", "image"], "--encoder takes MODALITY=NAME, as image=NAME (zoo list --kind encoder), got 'image'"),
        (["--encoder", "image=a", "--encoder", "image=b"], "--encoder names two for image: a and b"),
        ([], "a composition needs a decoder, encoders and a bridge"),
    ):
        run = main("compose", *wrong)
        assert (run.returncode, message in run.stderr) == (2, True), run.stderr


@pytest.mark.parametrize("fusion", ["gated", "spliced"])
@pytest.mark.parametrize("kernel", ["bf16", "int8", "int4"])
def test_the_decoder_of_a_composition_runs_by_a_kernel(kernel, fusion, tmp_path: Path, photos) -> None:
    save(composed(gate=0.5, heads=2, head_width=8, fusion=fusion), tmp_path)
    exact, rounded = (
        library.open_language_model(library.ModelSpec(name=tmp_path, kernel=name)) for name in ("float32", kernel)
    )
    parts = [photos / "chelsea.jpg", "once upon a time"]
    one, other = (
        library.score([parts], ["there", "was"], model=language).results[0].logprobs for language in (exact, rounded)
    )
    assert other["was"] == pytest.approx(one["was"], rel=0.02)
    answer = library.generate([parts], model=rounded, max_tokens=4)
    assert (answer.provenance.kernel, answer.results[0].tokens) == (kernel, 4)


@pytest.mark.parametrize("fusion", ["gated", "spliced"])
def test_a_composition_can_be_cast(fusion, photos) -> None:
    exact, half = (
        library.open_language_model(composed(gate=0.5, heads=2, head_width=8, fusion=fusion, dtype=dtype))
        for dtype in (None, torch.bfloat16)
    )
    one, other = (
        library.score([[photos / "chelsea.jpg", "once"]], ["there", "was"], model=language).results[0].logprobs
        for language in (exact, half)
    )
    assert other["was"] == pytest.approx(one["was"], rel=0.02)
    assert next(half.decoder.senses.parameters()).dtype == torch.bfloat16


def test_a_film_is_spliced_with_its_frames(photos) -> None:
    torch.manual_seed(0)
    composition = library.compose(
        decoder=DECODER, encoders={"video": ENCODER}, bridge="perceiver/video-qformer-tiny", weights=None, fusion="spliced"
    )
    language = library.open_language_model(composition)
    frames = [Image.open(photos / name) for name in ("chelsea.jpg", "astronaut.jpg", "coffee.jpg")]
    one, other = (
        library.score([[item("video", *order), "then"]], ["there", "was"], model=language).results[0].logprobs
        for order in (frames, frames[::-1])
    )
    assert one != other, "the order of frames counts"


def _written(composition) -> None:
    """As a step of training does."""
    with torch.no_grad():
        for one in trained_parameters(composition.module):
            one.add_(0.01)


def test_what_is_opened_can_be_trained_and_saved_again(tmp_path: Path) -> None:
    composition = composed(gate=0.5, heads=2, head_width=8)
    assert (composition.trained, composition.built.random) == (False, True)
    whole = ["decoder", "image.bridge", "image.encoder", "image.gated"]
    assert sorted(save(composition, tmp_path / "drawn").drawn) == whole
    opened = open_composition(tmp_path / "drawn")
    assert not opened.trained
    assert sorted(save(opened, tmp_path / "same").drawn) == whole
    _written(opened)
    assert opened.trained
    assert not opened.built.parts["image.bridge"].random
    assert sorted(save(opened, tmp_path / "more").drawn) == ["decoder", "image.encoder"]
    again = open_composition(tmp_path / "more")
    assert again.trained
    save(again, tmp_path / "third")
    third = open_composition(tmp_path / "third")
    for (name, one), other in zip(third.module.state_dict().items(), opened.module.state_dict().values(), strict=True):
        assert torch.equal(one, other), name


def test_training_leaves_the_statistics_of_a_frozen_encoder() -> None:
    composition = library.compose(
        decoder=DECODER, encoders={"image": "timm/efficientnet_lite0"}, bridge="perceiver/mlp-tiny", every=1,
        weights={DECODER: None}, heads=2, head_width=8,
    )  # fmt: skip
    model = composition.module.train()
    assert model.senses["image"].bridge.training
    assert not model.senses["image"].encoder.training
    assert not model.decoder.training
    before = {name: tensor.clone() for name, tensor in model.senses["image"].encoder.state_dict().items()}
    model.senses["image"].encode([[picture()]])
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.senses["image"].encoder.state_dict().items())


def test_what_would_be_lost_is_refused(tmp_path: Path) -> None:
    composition = library.compose(
        decoder=DECODER,
        encoders={"image": "timm/efficientnet_lite0"},
        bridge="perceiver/mlp-tiny",
        every=1,
        weights={DECODER: None},
    )
    next(composition.module.senses["image"].encoder.parameters()).requires_grad_(True)
    with pytest.raises(
        UsageError, match="^image.encoder is kept by the name of its file, and a parameter of it requires a gradient"
    ):
        save(composition, tmp_path)
    with pytest.raises(
        UsageError,
        match="^the decoder's weights are in no file, and kernel int8 has rounded them: save the composition before$",
    ):
        save(composed(kernel="int8"), tmp_path)
    model = composed(kernel="bf16").module
    asked = written(model, model.tokenizer, [item("image", picture()), "x"]).prompt
    with pytest.raises(
        UsageError, match="^no gradient flows through this decoder, which runs by a kernel: train the composition as it is"
    ):
        model(torch.tensor([asked.ids]), media=[asked.media])
    model = composed().module
    with pytest.raises(
        UsageError, match="^a cache is filled in place, which no gradient survives: use torch.inference_mode"
    ):
        model(torch.tensor([asked.ids]), media=[asked.media], cache=model.new_cache(1, 9))
    with pytest.raises(
        UsageError, match="^weights names clip/tiny, the parts that have some are clip/tiny-image, smollm/tiny$"
    ):
        library.compose(decoder=DECODER, encoders={"image": ENCODER}, bridge=BRIDGE, weights={"clip/tiny": None})
    with pytest.raises(UsageError, match="^bridge_arguments are arguments of the bridge's builder, weights is none$"):
        composed(bridge_arguments={"weights": "card"})
    with pytest.raises(UsageError, match="^two senses have the marker '<m>': give each its own$"):
        library.compose(
            decoder=DECODER,
            encoders={"image": ENCODER, "video": ENCODER},
            bridge=BRIDGE,
            weights=None,
            every=1,
            marker="<m>",
        )
    assert library.open_language_model(composed(kernel="int8")).kernel == "int8"
    assert library.open_language_model(composed(dtype=torch.bfloat16)).kernel == "bfloat16"


def test_two_senses_may_share_an_encoder_that_no_file_holds(tmp_path: Path) -> None:
    torch.manual_seed(0)
    composition = library.compose(
        decoder=DECODER, encoders={"image": ENCODER, "video": ENCODER}, bridge=BRIDGE, weights=None, every=1
    )
    save(composition, tmp_path)
    other = open_composition(tmp_path)
    for (name, one), same in zip(other.module.state_dict().items(), composition.module.state_dict().values(), strict=True):
        assert torch.equal(one, same), name


def test_a_saved_recipe_has_every_argument_of_its_bridge(tmp_path: Path) -> None:
    recipe = save(composed(), tmp_path)
    (card,) = [card for card in cards(kind="bridge") if card.name == BRIDGE]
    kept = recipe.senses["image"].bridge_arguments
    assert kept == {name: value for name, value in card.variant.items() if name != "input_width"}
    text = (tmp_path / "recipe.toml").read_text()
    (tmp_path / "recipe.toml").write_text(text.replace(f"latents = {kept['latents']}", "latents = 5"))
    with pytest.raises(
        WeightsError, match=r"\n  shape       senses.image.bridge.first_latents \[8, 64\], the model has \[5, 64\]"
    ):
        open_composition(tmp_path)


def test_frames_are_in_the_order_that_people_count_in(tmp_path: Path) -> None:
    from zoo.tasks.media_prompt import read_media

    for number in (10, 2, 1):
        Image.new("RGB", (4, 4), (number, 0, 0)).save(tmp_path / f"{number}.png")
    film = read_media(tmp_path)
    assert [frame.getpixel((0, 0))[0] for frame in film.frames] == [1, 2, 10]


def test_a_folder_is_composed_again_as_it_was(tmp_path: Path) -> None:
    composition = composed(bridge="resampler-tiny")
    assert save(composition, str(tmp_path)).senses["image"].bridge == BRIDGE
    assert (tmp_path / "trained.safetensors").stat().st_mode == (tmp_path / "recipe.toml").stat().st_mode
    again = library.compose(str(tmp_path))
    for (name, one), other in zip(again.module.state_dict().items(), composition.module.state_dict().values(), strict=True):
        assert torch.equal(one, other), name
    with pytest.raises(
        UsageError, match="^a recipe says all: leave out decoder, encoders, bridge, weights and fields beside it$"
    ):
        library.compose(tmp_path, every=2)
    with pytest.raises(UsageError, match="^encoders are given for each modality"):
        library.compose(decoder=DECODER, encoders=ENCODER, bridge=BRIDGE)
