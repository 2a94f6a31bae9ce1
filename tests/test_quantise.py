"""A quantised model is a folder that opens like a model, and answers as the one that was written."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest_shared import PHOTOS
from safetensors.torch import load_file, save_file
from tiny_decoder import tiny_decoder
from torch import nn

import zoo as library
from zoo.errors import UsageError, WeightsError, ZooError
from zoo.models.build import ModelSpec, open_model
from zoo.models.kernels import apply_kernel
from zoo.models.quantised import FILE
from zoo.nn.kernels.seam import is_kernel_linear
from zoo.tasks.quantization import Quantised

DECODER = ModelSpec("lm/llama-tiny", weights=None)


def quantised(folder: Path, model: ModelSpec = DECODER, kernel: str = "int8", **options) -> Quantised:
    torch.manual_seed(0)
    return library.quantize(model, kernel, out=folder, **options)


@pytest.mark.parametrize("kernel", ["float32", "bf16", "int8", "int4"])
def test_a_decoder_comes_back_bit_for_bit(tmp_path, kernel) -> None:
    made = quantised(tmp_path / "q", kernel=kernel)
    opened = open_model(str(tmp_path / "q"))
    tokens = torch.randint(0, 200, (2, 9))
    with torch.inference_mode():
        assert torch.equal(opened.module(tokens), made.built.module(tokens))
    assert opened.kernel in (f"kernels/{kernel}", "float32")
    assert made.file == tmp_path / "q" / FILE
    assert made.weight_bytes == pytest.approx(made.file.stat().st_size, rel=0.3)
    answers = [
        library.generate("a b", model=model, max_tokens=5).results[0].text for model in (made.built, str(tmp_path / "q"))
    ]
    assert answers[0] == answers[1]


def test_an_encoder_and_a_transcriber_come_back_bit_for_bit(tmp_path) -> None:
    made = quantised(tmp_path / "text", ModelSpec("text/minilm-tiny", weights=None))
    again = open_model(str(tmp_path / "text"))
    inputs = again.module.preprocess(["one text", "another"])
    with torch.inference_mode():
        assert torch.equal(made.built.module(inputs).pooled_BD, again.module(inputs).pooled_BD)
    library.embed(["text:a cat"], out=tmp_path / "vectors.npz", model=str(tmp_path / "text"))
    assert np.load(tmp_path / "vectors.npz")["embeddings"].shape == (1, 32)
    made = quantised(tmp_path / "speech", ModelSpec("whisper/random", weights=None))
    again = open_model(str(tmp_path / "speech"))
    assert made.layers["decoder.head"] == "int8", "Whisper's own choice"
    mel, tokens = torch.randn(1, made.built.module.encoder.bands, 3000), torch.tensor([[50258, 50259]])
    with torch.inference_mode():
        assert torch.equal(made.built.module(mel, tokens), again.module(mel, tokens))


def test_layers_are_skipped_and_take_other_kernels_by_name(tmp_path) -> None:
    made = quantised(tmp_path / "q", skip=["stack.blocks.0.*"], per_layer={"head": "bf16", "*.down": "float32"})
    assert not any(name.startswith("stack.blocks.0.") for name in made.layers)
    assert made.layers["head"] == "bfloat16"
    assert made.layers["stack.blocks.1.feed_forward.down"] == "float32"
    assert made.layers["stack.blocks.1.attention.query_key_value"] == "int8"
    opened = open_model(str(tmp_path / "q"))
    tokens = torch.randint(0, 200, (1, 5))
    with torch.inference_mode():
        assert torch.equal(opened.module(tokens), made.built.module(tokens))
    decoder = apply_kernel(tiny_decoder(), "int8", skip=["*.query"])
    assert type(decoder.stack.blocks[0].attention.query) is nn.Linear, "what is not rounded alike is not joined"
    assert is_kernel_linear(decoder.stack.blocks[0].attention.key)


def test_the_command_writes_what_the_commands_read(main, tmp_path) -> None:
    run = main(
        "quantize",
        "lm/llama-tiny",
        "--weights",
        "none",
        "--kernel",
        "int8",
        "--per-layer",
        "head=bf16",
        "--out",
        str(tmp_path / "q"),
        "--json",
    )
    document = json.loads(run.stdout)
    assert (run.returncode, document["kernel"], document["layers"]["head"]) == (0, "int8", "bfloat16")
    run = main("generate", "x", "--model", str(tmp_path / "q"), "--max-tokens", "3", "--json")
    assert json.loads(run.stdout)["kernel"] == "kernels/int8"
    run = main("generate", "x", "--model", "lm/llama-tiny", "--weights", str(tmp_path / "q"), "--max-tokens", "3")
    assert run.returncode == 0, run.stderr
    for arguments, message in (
        (("--model", str(tmp_path / "q"), "--kernel", "int4"), "is quantised by kernels/int8: leave out kernel int4"),
        (
            ("--model", str(tmp_path / "q"), "--dtype", "bfloat16"),
            "runs by kernel kernels/int8 on the CPU, as it was built",
        ),
        (("--model", "smollm/tiny", "--weights", str(tmp_path / "q")), "is a quantised lm/llama-tiny, not smollm/tiny"),
    ):
        run = main("generate", "x", *arguments)
        assert (run.returncode, message in run.stderr) == (2, True), run.stderr
    run = main(
        "quantize",
        "lm/llama-tiny",
        "--weights",
        "none",
        "--kernel",
        "int8",
        "--per-layer",
        "head",
        "--out",
        str(tmp_path / "x"),
    )
    assert (run.returncode, "--per-layer is PATTERN=KERNEL, as decoder.head=int8, got 'head'" in run.stderr) == (2, True)
    run = main("classify", "--text", "x", "--labels", "a,b", "--model", str(tmp_path / "q"), "--allow-random")
    assert run.returncode in (0, 2)


def test_what_cannot_be_quantised_is_said(tmp_path) -> None:
    built = quantised(tmp_path / "q").built
    with pytest.raises(UsageError, match="lm/llama-tiny runs by kernel int8 already: open it without one"):
        library.quantize(built, "int4")
    with pytest.raises(UsageError, match="runs by kernel kernels/int8 already|leave it out, zoo.quantize has its own"):
        library.quantize(str(tmp_path / "q"), "int4")
    with pytest.raises(UsageError, match=r"no layer is called 'block\.\*': this model has \d+, as embedding"):
        library.quantize(DECODER, "int8", skip=["block.*"])
    with pytest.raises(UsageError, match="kernels/int8 applies to .*, perceiver/mlp-tiny is of kind bridge|applies to"):
        library.quantize(ModelSpec("perceiver/mlp-tiny", weights=None), "int8")
    broken = open_model(DECODER)
    with torch.no_grad():
        broken.module.stack.blocks[0].feed_forward.up.weight[3, 2] = float("nan")
    with pytest.raises(UsageError, match="a weight holds NaN or infinity, which no format of few bits can keep"):
        library.quantize(broken, "int8")


def test_a_full_disk_leaves_what_was_there(tmp_path, monkeypatch) -> None:
    quantised(tmp_path / "q")
    before = (tmp_path / "q" / FILE).read_bytes()

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("zoo.models.quantised.write_tensors", full)
    with pytest.raises(ZooError, match="cannot be written .No space left on device.; what was there before is there still"):
        quantised(tmp_path / "q", kernel="int4", overwrite=True)
    assert (tmp_path / "q" / FILE).read_bytes() == before


def test_a_damaged_or_foreign_file_is_refused(tmp_path) -> None:
    from safetensors import safe_open

    file = quantised(tmp_path / "q").file
    with safe_open(file, "pt") as opened:
        metadata = opened.metadata()
    state = load_file(file)
    name = next(name for name in state if name.endswith(".levels"))
    save_file({**state, name: state[name] + 1}, file, metadata)
    with pytest.raises(WeightsError, match="does not hold the tensors that were written: it is damaged"):
        open_model(str(tmp_path / "q"))
    for record, message in (
        ('{"model": 1}', "has a header that zoo quantize did not write"),
        (json.dumps({**json.loads(metadata["zoo_kernel"]), "format": 7}), "has a header of another format than 1"),
        *(
            (
                json.dumps({**json.loads(metadata["zoo_kernel"]), **wrong}),
                "has a header of another format than 1|did not write",
            )
            for wrong in ({"skip": "all"}, {"skip": 3}, {"layers": 5}, {"layers": None}, {"files": []})
        ),
    ):
        save_file(state, file, {"zoo_kernel": record})
        with pytest.raises(WeightsError, match=message):
            open_model(str(tmp_path / "q"))
    save_file(state, file, {"zoo_kernel": metadata["zoo_kernel"].replace("kernels/int8", "kernels/int3")})
    with pytest.raises(UsageError, match="a kernel is one of float32, .*, got 'kernels/int3'"):
        open_model(str(tmp_path / "q"))


def test_a_folder_that_holds_a_model_is_left_alone(tmp_path, main) -> None:
    file = quantised(tmp_path / "q").file
    before = file.read_bytes()
    with pytest.raises(UsageError, match=r"holds a model already: name another folder, or say overwrite \(--overwrite\)"):
        library.quantize(DECODER, "int4", out=tmp_path / "q")
    assert file.read_bytes() == before
    library.quantize(DECODER, "int4", out=tmp_path / "q", overwrite=True)
    assert file.read_bytes() != before


def test_a_quantised_transcriber_transcribes(tmp_path) -> None:
    library.quantize(ModelSpec("whisper/random", weights=None), "int4", out=tmp_path / "w")
    opened = library.open_transcriber(str(tmp_path / "w"))
    assert opened.kernel == "kernels/int4"
    assert library.open_transcriber(ModelSpec(str(tmp_path / "w"), kernel="int4")).kernel == "kernels/int4"
    with pytest.raises(UsageError, match="is quantised by kernels/int4: leave out kernel int8"):
        library.open_transcriber(ModelSpec(str(tmp_path / "w"), kernel="int8"))


def test_a_model_of_parts_answers_as_before(tmp_path, main) -> None:
    """Its parts bring more than numbers: a tokenizer, the words of classes."""
    name, photo = "conse/lite0-minilm", str(PHOTOS / "chelsea.jpg")
    asked = ("classify", photo, "--labels", "a cat,a dog", "--json")
    run = main(*asked, "--model", name, "--kernel", "int8")
    if run.returncode:
        pytest.skip("needs published weights: zoo fetch conse/lite0-minilm")
    library.quantize(name, "int8", out=tmp_path / "c")
    plain, folder = json.loads(run.stdout), json.loads(main(*asked, "--model", str(tmp_path / "c")).stdout)
    expected, found = (document["results"][0]["scores"] for document in (plain, folder))
    assert found == pytest.approx(expected, abs=1e-3)
    assert found["a cat"] > 0.9
