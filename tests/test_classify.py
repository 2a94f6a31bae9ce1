"""`zoo.classify` and `zoo classify` on real photos with real weights, and on everything that can go wrong."""

import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest_shared import PHOTOS
from PIL import Image
from safetensors.torch import save_file

import zoo as library
from zoo.errors import PluginError, StateMismatchError, UsageError
from zoo.models.build import ModelSpec
from zoo.tasks.classify import classify

LABELS = ["cat", "dog", "cup of coffee", "rocket", "sheep", "boats", "mountains", "flower", "pizza", "book", "car", "horse"]
LITE0 = "timm/efficientnet_lite0"
PHOTO = str(PHOTOS / "chelsea.jpg")


def test_zero_shot_is_right(photos: Path) -> None:
    files = {"chelsea.jpg": "cat", "coffee.jpg": "cup of coffee", "rocket.jpg": "rocket", "sheep.jpg": "sheep",
             "boats.jpg": "boats", "mountains.jpg": "mountains", "flower.jpg": "flower"}  # fmt: skip
    outcome = classify([photos / name for name in files], LABELS)
    assert [answer.label for answer in outcome.results] == list(files.values())
    for answer in outcome.results:
        assert sum(answer.scores.values()) == pytest.approx(1, abs=1e-4)
        assert answer.score == max(answer.scores.values()) == next(iter(answer.scores.values()))
    assert outcome.method == "zero-shot"
    assert outcome.provenance.distribution == "modalzoo-conse"
    assert outcome.provenance.weights["timm/efficientnet_lite0.in1k"]["model"].startswith("579344248a93e230")


def test_own_classes_equal_timm(photos: Path) -> None:
    """The reference loop: timm's own model and transform on the same weights."""
    import timm
    from timm.data import create_transform

    built = library.build(LITE0)
    reference = timm.create_model("tf_efficientnet_lite0").eval()
    reference.load_state_dict({key.removeprefix("backbone."): value for key, value in built.state_dict().items()})
    transform = create_transform(
        (3, 224, 224), interpolation="bicubic", crop_pct=0.875, mean=[127 / 255] * 3, std=[128 / 255] * 3
    )
    files = sorted(photos.glob("*.jpg"))
    outcome = classify(files, model=LITE0, top=1000)
    for file, answer in zip(files, outcome.results, strict=True):
        with torch.inference_mode():
            expected = reference(transform(Image.open(file).convert("RGB"))[None]).softmax(-1)[0]
        ours = torch.tensor([answer.scores[label] for label in built.labels])
        assert (ours - expected).abs().max() < 1e-5
        assert int(ours.argmax()) == int(expected.argmax())


def test_a_batch_equals_singles(photos: Path) -> None:
    files = sorted(photos.glob("*.jpg"))[:7]
    model = library.open_model("conse/lite0-minilm")
    together = classify(files, LABELS, model=model, batch_size=4)
    for file, answer in zip(files, together.results, strict=True):
        single = classify(file, LABELS, model=model).results[0]
        assert single.label == answer.label
        assert single.scores == pytest.approx(answer.scores, abs=1e-5)


def test_inputs_of_every_kind(photos: Path) -> None:
    path = photos / "chelsea.jpg"
    image = Image.open(path)
    image.load()
    array = np.asarray(image.convert("RGB"))
    outcome = classify([path, str(path), image, array, str(photos / "chel*.jpg")], LABELS)
    assert [answer.label for answer in outcome.results] == ["cat"] * 5
    assert len({round(answer.score, 5) for answer in outcome.results}) == 1
    assert len(classify(photos, LABELS).results) == len(list(photos.glob("*.jpg")))


def test_one_bad_file_costs_the_others_nothing(zoo, photos: Path, tmp_path: Path) -> None:
    shutil.copy(photos / "chelsea.jpg", tmp_path / "a.jpg")
    (tmp_path / "b.jpg").write_text("a shopping list")
    shutil.copy(photos / "coffee.jpg", tmp_path / "c.jpg")
    files = [str(tmp_path / name) for name in ("a.jpg", "b.jpg", "absent.jpg", "c.jpg")]
    run = zoo("classify", *files, "--labels", ",".join(LABELS), "--json")
    assert run.returncode == 1
    results = json.loads(run.stdout)["results"]
    assert [result.get("label") for result in results] == ["cat", None, None, "cup of coffee"]
    assert "b.jpg: not an image that can be read (it holds text)" in results[1]["error"]
    assert "absent.jpg: there is no such file" in results[2]["error"]
    plain = zoo("classify", *files, "--labels", ",".join(LABELS))
    assert plain.returncode == 1
    assert all(label in line for label, line in zip(["cat", "cup of coffee"], plain.stdout.splitlines(), strict=True))
    assert "zoo: " + files[1] in plain.stderr


def test_the_json_document(zoo, photos: Path) -> None:
    run = zoo("classify", str(photos / "chelsea.jpg"), "--labels", ",".join(LABELS), "--json")
    assert run.returncode == 0, run.stderr
    document = json.loads(run.stdout)
    assert document["model"] == "conse/lite0-minilm"
    assert document["plugin"] == {"dist": "modalzoo-conse", "version": library.__version__}
    (result,) = document["results"]
    assert result["input"] == str(photos / "chelsea.jpg")
    assert (result["label"], set(result["scores"])) == ("cat", set(LABELS))


@pytest.mark.parametrize(("top", "others"), [([], 2), (["--top", "1"], 0), (["--top", "5"], 4), (["--top", "99"], 11)])
def test_the_text_shows_as_many_labels_as_were_asked_for(main, photos: Path, top: list[str], others: int) -> None:
    run = main("classify", str(photos / "chelsea.jpg"), "--labels", ",".join(LABELS), *top)
    assert run.returncode == 0, run.stderr
    (line,) = run.stdout.splitlines()
    assert line.partition("  ")[2].startswith("cat  ")
    assert line.count("%") == 1 + others
    assert ("(" in line) == bool(others)


def test_templates_change_the_answer_a_little(photos: Path) -> None:
    plain = classify(photos / "chelsea.jpg", LABELS).results[0]
    ensemble = classify(photos / "chelsea.jpg", LABELS, templates=["{}", "a photo of a {}", "a drawing of a {}"]).results[0]
    assert plain.label == ensemble.label == "cat"
    assert plain.score != ensemble.score


def test_label_embeddings_are_computed_once(photos: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from zoo.registry.settings import cache_dir

    blobs = cache_dir() / "blobs"
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path / "cache"))
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "blobs").symlink_to(blobs)
    first = classify(photos / "chelsea.jpg", LABELS)
    files = {path: path.stat().st_mtime_ns for path in (tmp_path / "cache" / "derived").iterdir()}
    assert len(files) == 2  # the 1,000 class names, and these labels
    assert classify(photos / "chelsea.jpg", LABELS) == first
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "cache" / "derived").iterdir()} == files
    for path in files:
        path.write_bytes(b"damaged")
    assert classify(photos / "chelsea.jpg", LABELS) == first
    classify(photos / "chelsea.jpg", [*LABELS, "violin"])
    assert len(list((tmp_path / "cache" / "derived").iterdir())) == 3


def test_unicode_and_a_thousand_labels(photos: Path) -> None:
    odd = ["cat", "kočka", "猫", "🐈", "קיפוד", "a\u0301", "x" * 3000]
    assert set(classify(photos / "chelsea.jpg", odd).results[0].scores) == set(odd)
    many = ["cat", *(f"thing number {number}" for number in range(999))]
    answer = classify(photos / "chelsea.jpg", many).results[0]
    assert answer.label == "cat"
    assert len(answer.scores) == 5


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--labels", ""], "no labels given: name at least two, as in --labels cat,dog"),
        (["--labels", "cat"], "one label given (cat): everything would get it; name at least two"),
        (["--labels", "cat,dog, cat"], "labels given twice: cat"),
        (["--labels", "cat,dog", "--template", "a photo"], "a template has one {} where the label goes, got 'a photo'"),
        (["--labels", "cat,dog", "--labels-file", "x"], "give --labels or --labels-file, not both"),
        (["--labels-file", "/nowhere"], "--labels-file /nowhere: cannot be read"),
        (["--labels", "a,b", "--model", LITE0], "cannot read labels: it knows 1,000 classes of its own"),
        (["--model", "conse/lite0-minilm"], "conse/lite0-minilm has no classes of its own: give it labels"),
        (["--model", "text/all-minilm-l6-v2"], "classifying images needs an encoder or dual encoder of images"),
        (["--shots", "/nowhere"], "--shots /nowhere: there is no such folder; expected one folder of examples for each class"),
        (["--labels", "a,b", "--batch-size", "0"], "batch_size is at least 1, got 0"),
        (["--labels", "a,b", "--device", "cuda:9"], "--device cuda:9"),
        (["--labels", "a,b", "--dtype", "int3"], "invalid choice: 'int3'"),
        (["--labels", "a,b", "--threads", "0"], "--threads is from 1 to 1,024, got 0"),
        (["--labels", "a,b", "--weights", __file__], "conse/lite0-minilm is made of other models"),
        (["--model", LITE0, "--weights", "/nowhere"], "--weights /nowhere: there is no such file"),
    ],
)  # fmt: skip
def test_wrong_usage_exits_2_with_one_line(zoo, photos: Path, arguments: list[str], message: str) -> None:
    run = zoo("classify", str(photos / "chelsea.jpg"), *arguments)
    assert run.returncode == 2, run.stderr
    assert message in run.stderr
    assert len(run.stderr.strip().splitlines()) == 1
    assert run.stdout == ""


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ([PHOTO, "--labels", "a,b", "--model", "conse/lite0-minilmm"], 1, "did you mean conse/lite0-minilm?"),
        ([PHOTO, "--labels", "a,b", "--model", "video/mae"], 1, "no installed plugin provides 'video/mae'"),
        (["/no/such/*.jpg", "--labels", "a,b"], 2, "/no/such/*.jpg: no file matches the pattern"),
        (["http://127.0.0.1:9/x.jpg", "--labels", "a,b"], 1, "addresses are not followed unless you say so (--allow-urls"),
        (["http://127.0.0.1:9/x.jpg", "--labels", "a,b", "--allow-urls"], 1, "could not be fetched"),
        ([], 2, "the following arguments are required: MEDIA"),
    ],
)
def test_other_errors(zoo, arguments: list[str], code: int, message: str) -> None:
    run = zoo("classify", *arguments)
    assert (run.returncode, message in run.stderr, "Traceback" in run.stderr) == (code, True, False), run.stderr


def test_an_empty_folder(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="the folder holds no image"):
        classify(tmp_path, LABELS)


def test_no_network_and_no_weights(zoo, photos: Path, tmp_path: Path) -> None:
    run = zoo("classify", str(photos / "chelsea.jpg"), "--labels", "a,b", ZOO_CACHE=str(tmp_path), ZOO_OFFLINE="1")
    assert run.returncode == 1
    assert "Connect once and run: zoo fetch timm/efficientnet_lite0.in1k" in run.stderr
    assert len(run.stderr.strip().splitlines()) == 1


def test_damaged_weights_are_refused_and_not_lost(zoo, photos: Path, tmp_path: Path) -> None:
    from zoo.registry.settings import cache_dir

    sha256 = library.find(LITE0).weights.files[0].sha256
    good = (cache_dir() / "blobs" / sha256).read_bytes()
    (tmp_path / "blobs").mkdir()
    (tmp_path / "blobs" / sha256).write_bytes(good[:1000] + bytes([good[1000] ^ 1]) + good[1001:])
    run = zoo("classify", str(photos / "chelsea.jpg"), ZOO_CACHE=str(tmp_path), ZOO_OFFLINE="1")
    assert run.returncode == 1
    assert "zoo fetch timm/efficientnet_lite0.in1k" in run.stderr
    assert (tmp_path / "blobs" / f"{sha256}.corrupt").exists()


def test_local_weights(photos: Path, tmp_path: Path) -> None:
    state = library.build(LITE0).state_dict()
    save_file(state, tmp_path / "good.safetensors")
    expected = classify(photos / "chelsea.jpg", model=LITE0)
    assert (
        classify(photos / "chelsea.jpg", model=ModelSpec(name=LITE0, weights=tmp_path / "good.safetensors")).results
        == expected.results
    )
    save_file({**state, "extra.weight": torch.zeros(3)}, tmp_path / "extra.safetensors")
    with pytest.raises(StateMismatchError, match="1 of 296 tensors differ\n  unexpected  .*extra.weight"):
        classify(photos / "chelsea.jpg", model=ModelSpec(name=LITE0, weights=tmp_path / "extra.safetensors"))
    save_file({**state, "backbone.classifier.bias": torch.zeros(999)}, tmp_path / "shape.safetensors")
    with pytest.raises(StateMismatchError, match=r"shape       backbone.classifier.bias \[999\], the model has \[1000\]"):
        classify(photos / "chelsea.jpg", model=ModelSpec(name=LITE0, weights=tmp_path / "shape.safetensors"))
    save_file({**state, "backbone.classifier.bias": torch.full((1000,), float("nan"))}, tmp_path / "nan.safetensors")
    with pytest.raises(library.ZooError, match="holds NaN or infinity in backbone.classifier.bias"):
        classify(photos / "chelsea.jpg", model=ModelSpec(name=LITE0, weights=tmp_path / "nan.safetensors"))


def test_random_weights_follow_the_seed(photos: Path) -> None:
    def answer(seed: int) -> object:
        torch.manual_seed(seed)
        return classify(photos / "chelsea.jpg", model=ModelSpec(name=LITE0, weights=None)).results

    assert answer(1) == answer(1)
    assert answer(1) != answer(2)
    outcome = classify(photos / "chelsea.jpg", model=ModelSpec(name=LITE0, weights=None))
    assert (outcome.provenance.model, list(outcome.provenance.weights[LITE0])) == (LITE0, ["drawn"])


TIED = ["photographer", "retina", "mountains", "temple", "beach", "city street", "wooden house", "sky", "book", "rocket",
        "astronaut", "galaxies", "sheep", "horse", "bicycle"]  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_sixteen_bits_give_the_same_answers(photos: Path, dtype: torch.dtype) -> None:
    """With labels of which two are nearly tied: the close call is float32's throughout, the labels' embeddings too."""
    files = [photos / name for name in ("galaxies.jpg", "house.jpg", "retina.jpg", "astronaut.jpg")]
    for labels in (None, TIED):
        exact, rounded = classify(files, labels), classify(files, labels, model=ModelSpec(dtype=dtype))
        assert [answer.label for answer in rounded.results] == [answer.label for answer in exact.results]
    close = [
        answer for answer in exact.results if next(iter(answer.scores.values())) - list(answer.scores.values())[1] < 0.02
    ]
    assert close  # or this test could not fail
    for answer in close:
        again = next(other for other in rounded.results if other.input == answer.input)
        assert again.score == pytest.approx(answer.score, abs=1e-4)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (["a", 2], "a label is a string, got 2"),
        (["Cat", "cat", "dog"], "labels that differ in capitals alone, which text encoders do not see: Cat, cat"),
    ],
)
def test_labels_that_no_encoder_can_tell_apart(photos: Path, labels: list[object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        classify(photos / "chelsea.jpg", labels)


def test_a_byte_order_mark_is_no_part_of_a_label(photos: Path, tmp_path: Path, zoo) -> None:
    (tmp_path / "labels.txt").write_text("\ufeffcat\ndog\n", encoding="utf-8")
    run = zoo("classify", str(photos / "chelsea.jpg"), "--labels-file", str(tmp_path / "labels.txt"), "--json")
    assert set(json.loads(run.stdout)["results"][0]["scores"]) == {"cat", "dog"}


def test_numbers_that_are_no_answer_are_an_error(photos: Path) -> None:
    """A plugin that gives NaN, too few rows or other classes than its labels is named; nothing is answered."""
    built = library.open_model(LITE0)
    logits, labels = built.module.logits, built.module.labels
    file = photos / "chelsea.jpg"
    for broken, message in (
        (lambda pixels: logits(pixels) * float("nan"), "gave NaN or infinity"),
        (lambda pixels: logits(pixels)[:0], r"gave \[0, 1000\] for 1 images and 1000 labels"),
        (lambda pixels: logits(pixels)[:, :9], r"gave \[1, 9\] for 1 images and 1000 labels"),
        (lambda pixels: 1 // 0, "raised ZeroDivisionError while running timm/efficientnet_lite0.in1k"),
    ):
        built.module.logits = broken
        with pytest.raises(PluginError, match=message) as raised:
            classify(file, model=built)
        assert "plugin 'timm' (modalzoo-timm 0.1.0)" in str(raised.value)
    built.module.logits = logits
    built.module.labels = ["the same"] * len(labels)
    with pytest.raises(PluginError, match="has 1 different labels, the card says classes = 1000"):
        classify(file, model=built)


def test_a_model_that_was_built_elsewhere_runs_where_it_lies(photos: Path) -> None:
    """The device is the model's, not the argument's: on the device `meta` that shows without a GPU."""
    built = library.open_model(LITE0, device="meta")
    with pytest.raises(Exception, match="meta") as raised:
        classify(photos / "chelsea.jpg", model=built)
    assert "is not on the expected device" not in str(raised.value)


def test_a_type_that_is_no_format_for_models(photos: Path) -> None:
    with pytest.raises(UsageError, match="dtype is one of torch.float32, torch.bfloat16, torch.float16, got torch.float64"):
        classify(photos / "chelsea.jpg", ["a", "b"], model=ModelSpec(dtype=torch.float64))


def test_overlapping_runs_give_torch_its_threads_back(photos: Path) -> None:
    before = torch.get_num_threads()
    built = library.open_model(LITE0)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: classify([photos / "chelsea.jpg"] * 5, model=built), range(8)))
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(torch.get_num_threads).result() == torch.get_num_threads() == before


def test_threads_are_given_back(photos: Path) -> None:
    before = torch.get_num_threads()
    classify(photos, model=LITE0)
    assert torch.get_num_threads() == before
    assert not torch.is_inference_mode_enabled()


def test_a_derived_tensor_can_be_trained_through() -> None:
    """Class names that were embedded in this process must not be inference tensors."""
    encoder = library.build("conse/lite0-minilm")
    assert not any(buffer.is_inference() for buffer in encoder.buffers())


def textures(photos: Path, folder: Path, corner: int) -> Path:
    """Crops of three surfaces: examples from one half of each photo, questions from the other."""
    for name in ("grass", "gravel", "brick"):
        image = Image.open(photos / f"{name}.jpg")
        (folder / name).mkdir(parents=True)
        for number in range(4):
            top = number * image.height // 5
            box = (corner * image.width // 2, top, corner * image.width // 2 + image.width // 2, top + image.height // 5)
            image.crop(box).save(folder / name / f"{number}.png")
    return folder


def test_few_shot_beats_zero_shot_on_the_same_images(photos: Path, tmp_path: Path) -> None:
    shots = textures(photos, tmp_path / "shots", 0)
    questions = textures(photos, tmp_path / "questions", 1)
    truth = [path.parent.name for path in sorted(questions.rglob("*.png"))]

    def accuracy(outcome: object) -> float:
        return sum(answer.label == name for answer, name in zip(outcome.results, truth, strict=True)) / len(truth)  # type: ignore[attr-defined]

    few, zero = classify(questions, shots=shots), classify(questions, ["grass", "gravel", "brick"])
    assert accuracy(few) > accuracy(zero)
    assert accuracy(few) > 0.9
    assert few.method.startswith(("ridge probe", "nearest centroid"))
    assert few.loo_accuracy > 0.8
    plain = classify(questions, shots=shots, model=LITE0)
    assert accuracy(plain) > 0.9


def test_shots_that_cannot_be_used(photos: Path, tmp_path: Path) -> None:
    (tmp_path / "only").mkdir()
    with pytest.raises(UsageError, match="expected at least two folders, one for each class, found 1"):
        classify(photos / "chelsea.jpg", shots=tmp_path)
    (tmp_path / "other").mkdir()
    with pytest.raises(UsageError, match=r"no example in only, other: the folder holds no image .*leave the class out"):
        classify(photos / "chelsea.jpg", shots=tmp_path)
    with pytest.raises(UsageError, match="no folder of examples for third"):
        classify(photos / "chelsea.jpg", ["only", "third"], shots=tmp_path)
    for name in ("only", "other"):
        (tmp_path / name / "bad.jpg").write_text(f"no image of {name}")
        (tmp_path / name / "worse.jpg").write_text(f"nor this of {name}")
    files = r".*only/bad.jpg.*only/worse.jpg.*other/bad.jpg.*other/worse.jpg"
    with pytest.raises(library.ZooError, match=rf"no example of only, other can be read: {files}"):
        classify(photos / "chelsea.jpg", shots=tmp_path)


def test_shots_that_are_left_out(photos: Path, tmp_path: Path, caplog) -> None:
    shots = textures(photos, tmp_path / "shots", 0)
    question = photos / "brick.jpg"
    clean = classify(question, shots=shots, model=LITE0)
    for number in range(3):
        shutil.copy(shots / "brick" / "0.png", shots / "brick" / f"copy{number}.png")
    (shots / "grass" / "bad.jpg").write_text("no image")
    caplog.clear()
    spoilt = classify(question, shots=shots, model=LITE0)
    assert (spoilt.results, spoilt.loo_accuracy) == (clean.results, clean.loo_accuracy)
    assert (
        "3 of 16 examples are left out, being copies of another of their class, byte for byte (the first: " in caplog.text
    )
    assert "an example of grass is left out: " in caplog.text
    assert "bad.jpg: not an image that can be read" in caplog.text
    shutil.copy(shots / "brick" / "0.png", shots / "gravel" / "9.png")
    both = r"same image is an example of two classes: .*brick/0.png \(brick\) and .*gravel/9.png \(gravel\); remove one"
    with pytest.raises(UsageError, match=both):
        classify(question, shots=shots, model=LITE0)


def test_two_random_initialisations_are_two_identities() -> None:
    """Labels embedded by one must not be read from disk for the other."""
    identities = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        identities.append(library.open_model("text/minilm-tiny", weights=None).identity)
    assert identities[0] == identities[1] != identities[2]


def test_files_of_a_folder_that_are_no_images_are_counted(photos: Path, tmp_path: Path, main, caplog) -> None:
    shutil.copy(photos / "chelsea.jpg", tmp_path / "a.jpg")
    for name in ("notes.txt", "more.txt", "raw.heic", ".hidden"):
        (tmp_path / name).write_text("x")
    (tmp_path / ".thumbs").mkdir()
    (tmp_path / ".thumbs" / "b.db").touch()
    run = main("classify", str(tmp_path), "--model", LITE0)
    assert run.returncode == 0, run.stderr
    assert [record.getMessage() for record in caplog.records] == [
        f"{tmp_path}: 3 files left out, no image by the suffix (.txt 2, .heic 1)"
    ]


def test_templates_that_nobody_reads_are_pointed_out(photos: Path, tmp_path: Path, caplog) -> None:
    classify(photos / "chelsea.jpg", ["cat", "dog"], templates=["a photo of a {}"])
    classify(photos / "chelsea.jpg", model=LITE0)
    assert not caplog.records
    classify(photos / "chelsea.jpg", model=LITE0, templates=["a photo of a {}"])
    shots = textures(photos, tmp_path / "shots", 0)
    classify(photos / "chelsea.jpg", shots=shots, model=LITE0, templates=["a photo of a {}"])
    assert [record.getMessage() for record in caplog.records] == [
        f"templates are ignored: {LITE0}.in1k reads no labels",
        "templates are ignored: a probe on examples reads no labels",
    ]


def test_leave_one_out_is_explained_where_it_is_printed(photos: Path, tmp_path: Path, main) -> None:
    shots = textures(photos, tmp_path / "shots", 0)
    run = main("classify", str(photos / "brick.jpg"), "--shots", str(shots), "--model", LITE0)
    assert run.returncode == 0, run.stderr
    assert "% (of the examples, each asked of a probe fitted without it)" in run.stderr.splitlines()[-1]
