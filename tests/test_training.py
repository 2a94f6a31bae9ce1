"""Training: the loop, the losses, and the command that makes a file of examples."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest
import torch
from PIL import Image
from tiny_decoder import tiny_decoder

import zoo
from zoo.adapters.adapt import adapters_of
from zoo.decoding.generation import generate
from zoo.decoding.scoring import score_choices
from zoo.errors import MediaError, UsageError
from zoo.tasks.adapter_training import TrainingOptions, read_pairs, train_adapter
from zoo.training.fit import FitOptions, fit
from zoo.training.losses import centroid_loss, completion_loss, encode_completions

PAIRS = [
    ("red", " rouge"),
    ("green", " vert"),
    ("blue", " bleu"),
    ("black", " noir"),
    ("white", " blanc"),
    ("grey", " gris"),
]


def parameter(*values: float) -> torch.nn.Parameter:
    return torch.nn.Parameter(torch.tensor(values))


def test_the_loop_finds_a_minimum_and_is_the_same_for_a_seed() -> None:
    def train(seed: int) -> tuple[list[float], Any]:
        point = parameter(3.0, -2.0)
        targets = [torch.tensor([1.0, 2.0])] * 5
        fitted = fit(
            [point],
            lambda batch: (point - torch.stack(list(batch))).square().mean(),
            targets,
            FitOptions(steps=300, batch_size=2, learning_rate=0.1, seed=seed),
        )
        return point.tolist(), fitted

    point, fitted = train(0)
    assert point == pytest.approx([1.0, 2.0], abs=1e-2)
    assert fitted.steps == len(fitted.losses) == 300
    assert fitted.losses[-1] < 1e-3 < fitted.losses[0]
    assert train(0)[1].losses == fitted.losses
    assert fitted.stopped == "steps"


def test_the_best_is_kept_and_patience_ends_it() -> None:
    point = parameter(0.0)
    seen: list[float] = []
    fitted = fit(
        [point], lambda batch: (point - torch.stack(list(batch))).square().mean(), [torch.tensor([9.0])],
        FitOptions(steps=200, learning_rate=0.3, evaluate_every=1, patience=4), held_out=[torch.tensor([1.0])], report=lambda step, loss: seen.append(loss),
    )  # fmt: skip
    assert fitted.stopped == "patience"
    assert len(seen) == fitted.steps < 200
    assert fitted.held_out[0] == (0, 1.0)
    assert fitted.best == min(loss for _, loss in fitted.held_out)
    assert float((point.detach() - 1.0) ** 2) == pytest.approx(fitted.best, abs=1e-6)


def test_an_interrupted_training_keeps_the_best_so_far() -> None:
    point = parameter(0.0)

    def loss(batch: Any) -> torch.Tensor:
        if len(batch) == 1 and point.requires_grad and torch.is_grad_enabled() and float(point.detach()) > 2:
            raise KeyboardInterrupt
        return (point - torch.stack(list(batch))).square().mean()

    fitted = fit(
        [point],
        loss,
        [torch.tensor([9.0])],
        FitOptions(steps=500, learning_rate=0.1, evaluate_every=1),
        held_out=[torch.tensor([1.0])],
    )
    assert fitted.stopped == "interrupted"
    assert float(point.detach()) == pytest.approx(1.0, abs=0.1)


def test_an_interruption_before_the_first_step_is_none_of_a_training() -> None:
    """There is nothing to keep: a file of it would look like one of a trained adapter."""

    def loss(_: Any) -> torch.Tensor:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt, match="nothing is written: no step had been taken"):
        fit([parameter(0.0)], loss, [torch.tensor([9.0])], FitOptions(steps=5), held_out=[torch.tensor([1.0])])


def test_an_interruption_in_the_first_step_leaves_the_parameters_as_they_were(monkeypatch: pytest.MonkeyPatch) -> None:
    real = torch.optim.AdamW.step

    def step(self: Any, *arguments: Any) -> None:
        real(self, *arguments)
        raise KeyboardInterrupt

    monkeypatch.setattr(torch.optim.AdamW, "step", step)
    point = parameter(1.0)
    with pytest.raises(KeyboardInterrupt, match="no step had been taken"):
        fit([point], lambda _: point.square().sum(), [1], FitOptions(steps=5, learning_rate=0.1))
    assert float(point.detach()) == 1.0


def test_a_loss_that_is_nan_leaves_the_parameters_as_they_were() -> None:
    point = parameter(1.0)
    with pytest.raises(UsageError, match="the loss became nan, so training ended and the parameters are as they were"):
        fit([point], lambda batch: point.sum() * math.nan if point != 1.0 else point.sum(), [1], FitOptions(steps=3))
    assert float(point.detach()) == 1.0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"parameters": []}, "nothing is trained: no parameter was given"),
        ({"examples": []}, "there is no example to train on"),
        ({"steps": 0}, "got steps=0, batch_size=8"),
        ({"learning_rate": 0.0}, "learning_rate=0.0"),
    ],
)
def test_bad_numbers(arguments: dict[str, Any], message: str) -> None:
    own = {"parameters": [parameter(1.0)], "examples": [1], "steps": 1, **arguments}
    with pytest.raises(UsageError, match=message):
        fit(own.pop("parameters"), lambda batch: torch.zeros(()), own.pop("examples"), FitOptions(**own))


def test_the_loss_of_completions_is_what_scoring_says() -> None:
    decoder = tiny_decoder(sharpness=3.0)
    examples = encode_completions(decoder.tokenizer, PAIRS[:4], longest=40)
    assert examples[0].completion[-1] == decoder.tokenizer.end_ids[0]
    with torch.no_grad():
        found = float(completion_loss(decoder)(examples))
    total = sum(score_choices(decoder, one.prompt, [one.completion])[0].logprob for one in examples)
    assert found == pytest.approx(-total / sum(len(one.completion) for one in examples), rel=1e-4)
    with pytest.raises(UsageError, match="pair 1 has an empty completion"):
        encode_completions(decoder.tokenizer, [("a", "")], longest=40)
    with pytest.raises(UsageError, match="pair 1 has 14 tokens, the most is 9: shorten it"):
        encode_completions(decoder.tokenizer, [("a" * 10, "bbb")], longest=9)


def test_the_loss_of_centroids_is_small_where_classes_lie_apart() -> None:
    class Identity(torch.nn.Module):
        def forward(self, inputs: torch.Tensor) -> zoo.Encoded:
            return zoo.Encoded(inputs[:, None], torch.ones(len(inputs), 1, dtype=torch.bool), inputs)

    apart = [(torch.tensor([[1.0, 0.1 * k]]), 0) for k in range(3)] + [
        (torch.tensor([[0.1 * k, 1.0]]), 1) for k in range(3)
    ]
    mixed = [(one, number % 2) for number, (one, _) in enumerate(apart)]
    loss = centroid_loss(Identity(), classes=2)
    assert float(loss(apart)) < 0.1 < float(loss(mixed))
    with pytest.raises(UsageError, match="every class of the batch has one item"):
        loss([apart[0], apart[3]])


@pytest.mark.parametrize("method", ["lora", "ia3", "prefix", "prompt", "dora"])
def test_pairs_are_learned_by_every_method(method: str, tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    path.write_text("\n".join(json.dumps({"prompt": prompt, "completion": completion}) for prompt, completion in PAIRS * 2))
    built = zoo.open_model("lm/llama-tiny", weights=None)
    trained = train_adapter(
        path,
        model=built,
        method=method,
        training=TrainingOptions(steps=60, batch_size=6, held_out=0.2, patience=0, learning_rate=0.1),
    )
    before, best = trained.fitted.held_out[0][1], trained.fitted.best
    assert best < 0.9 * before, (before, best)
    assert trained.examples == 10
    assert trained.held_out == 2
    assert 0 < trained.share < 1
    assert all(parameter.grad is None for parameter in built.module.parameters())


def test_the_command_trains_lists_exports_merges_and_answers(
    main: Callable[..., CompletedProcess[str]], tmp_path: Path
) -> None:
    data, out = tmp_path / "pairs.jsonl", tmp_path / "own.safetensors"
    data.write_text("\n".join(json.dumps({"text": prompt, "label": completion}) for prompt, completion in PAIRS))
    model = ("--model", "lm/llama-tiny", "--weights", "none")
    run = main(
        "adapt",
        "train",
        str(data),
        *model,
        "--out",
        str(out),
        "--option",
        "r=4",
        "--option",
        "targets=query,value",
        "--steps",
        "5",
        "--json",
    )
    assert run.returncode == 0, run.stderr
    document = json.loads(run.stdout)
    assert document["method"] == "adapters/lora"
    assert document["options"] == {"r": 4, "targets": ["query", "value"]}
    assert document["steps"] == 5
    assert document["held_out"] == 1
    again = main("adapt", "train", str(data), *model, "--out", str(out))
    assert again.returncode == 2
    assert "is there already: name another, nothing is overwritten" in again.stderr
    listed = main("adapt", "list", str(out))
    assert "adapters/lora, 896 numbers, for lm/llama-tiny with weights " in listed.stdout
    assert "  r = 4" in listed.stdout
    assert "adapters/prefix" in main("adapt", "list").stdout
    for asked in (("--json", "list"), ("list", "--json")):
        assert "adapters/prefix" in [one["name"] for one in json.loads(main("adapt", *asked).stdout)["methods"]]
    exported = main("adapt", "export", str(out), *model, "--out", str(tmp_path / "peft"))
    assert exported.returncode == 0, exported.stderr
    assert json.loads((tmp_path / "peft" / "adapter_config.json").read_text())["r"] == 4
    merged = main("adapt", "merge", str(out), *model, "--out", str(tmp_path / "merged.safetensors"))
    assert merged.returncode == 0, merged.stderr
    answer = main(
        "generate", "red", "--model", "lm/llama-tiny", "--weights", "none", "--adapter", str(out), "--max-tokens", "3"
    )
    assert answer.returncode == 0, answer.stderr
    folder = main(
        "generate",
        "red",
        "--model",
        "lm/llama-tiny",
        "--weights",
        "none",
        "--adapter",
        str(tmp_path / "peft"),
        "--max-tokens",
        "3",
    )
    assert folder.stdout == answer.stdout
    with_weights = main(
        "generate",
        "red",
        "--model",
        "lm/llama-tiny",
        "--weights",
        str(tmp_path / "merged.safetensors"),
        "--max-tokens",
        "3",
    )
    assert with_weights.stdout == answer.stdout
    refused = main("adapt", "merge", str(out), *model, "--seed", "5", "--out", str(tmp_path / "other.safetensors"))
    assert refused.returncode == 2
    assert "was made for a model with other weights" in refused.stderr
    assert "LORA of HF PEFT, 896 numbers" in main("adapt", "list", str(tmp_path / "peft")).stdout


def test_a_folder_of_images_trains_an_encoder(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    for label, colour in (("red", (200, 40, 40)), ("blue", (40, 40, 200))):
        (tmp_path / label).mkdir()
        for number in range(4):
            noise = torch.randint(-30, 30, (3,), generator=generator).tolist()
            Image.new("RGB", (64, 64), tuple(max(0, one + more) for one, more in zip(colour, noise, strict=True))).save(
                tmp_path / label / f"{number}.png"
            )
    trained = train_adapter(
        tmp_path,
        model=zoo.ModelSpec(name="timm/test_vit", weights=None),
        training=TrainingOptions(steps=10, held_out=0.0),
        targets=["qkv[0/3]", "fc1"],
        r=2,
    )
    assert trained.fitted.losses[-1] < trained.fitted.losses[0]
    assert trained.fitted.parameters == trained.parameters
    with pytest.raises(UsageError, match="zoo adapt needs a decoder, timm/test_vit is of kind encoder"):
        train_adapter(PAIRS, model=zoo.ModelSpec(name="timm/test_vit", weights=None))


def test_examples_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="examples are a .jsonl file with the fields prompt and completion"):
        read_pairs(tmp_path / "missing.jsonl")
    path = tmp_path / "bad.jsonl"
    path.write_text('{"prompt": "a", "completion": "b"}\n\nno json\n')
    with pytest.raises(MediaError, match=r"bad.jsonl:3: no JSON"):
        read_pairs(path)
    path.write_text('{"prompt": "a"}\n')
    with pytest.raises(MediaError, match="bad.jsonl:1: an example has the fields prompt and completion, both texts"):
        read_pairs(path)
    path.write_text("\n")
    with pytest.raises(MediaError, match="holds no examples"):
        read_pairs(path)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "zoo adapt: the following arguments are required: ACTION (see: zoo adapt --help)"),
        (("train",), "zoo adapt train: the following arguments are required: DATA, --model, --out"),
        (("merge", "x", "--out", "y"), "zoo adapt merge: the following arguments are required: --model"),
        (("export", "x", "--model", "m"), "zoo adapt export: the following arguments are required: --out"),
        (("merge", "x", "--model", "m", "--out", "y", "--steps", "3"), "zoo: unrecognized arguments: --steps 3"),
        (("list", "missing.safetensors"), "missing.safetensors"),
    ],
)
def test_the_command_says_what_is_missing(
    main: Callable[..., CompletedProcess[str]], arguments: tuple[str, ...], message: str
) -> None:
    run = main("adapt", *arguments)
    assert run.returncode in (1, 2)
    assert message in run.stderr


def test_a_trained_adapter_answers_for_its_row_alone() -> None:
    torch.manual_seed(0)
    built = zoo.open_model("lm/llama-tiny", weights=None)
    everywhere = ["embedding", "query", "key", "value", "output", "gate", "up", "down"]
    trained = train_adapter(
        PAIRS,
        model=built,
        name="french",
        training=TrainingOptions(steps=250, held_out=0.0, batch_size=6, learning_rate=0.02),
        targets=everywhere,
        r=16,
    )
    decoder: Any = built.module
    trained.adapters.use()
    prompts = [decoder.tokenizer.encode(prompt) for prompt, _ in PAIRS[:3]]
    found = generate(decoder, [*prompts, *prompts], max_tokens=8, adapters=["french"] * 3 + [None] * 3)
    assert [one.text for one in found[:3]] == [completion for _, completion in PAIRS[:3]]
    assert [one.text for one in found[3:]] != [completion for _, completion in PAIRS[:3]]
    assert adapters_of(decoder) is trained.adapters


def test_every_task_runs_under_an_adapter(main: Callable[..., CompletedProcess[str]], tmp_path: Path) -> None:
    shots = tmp_path / "shots"
    for number, label in enumerate(("red", "blue")):
        (shots / label).mkdir(parents=True)
        for shade in (180, 200, 220):
            Image.new("RGB", (64, 64), (shade, 40, 40) if number == 0 else (40, 40, shade)).save(
                shots / label / f"{shade}.png"
            )
    picture, own = shots / "red" / "180.png", tmp_path / "own.safetensors"
    model = ("--model", "timm/test_vit", "--weights", "none")
    run = main(
        "adapt",
        "train",
        str(shots),
        *model,
        "--out",
        str(own),
        "--option",
        "targets=fc1,",
        "--steps",
        "3",
        "--held-out",
        "0",
    )
    assert run.returncode == 2
    assert "no layer is called ''" in run.stderr
    run = main(
        "adapt",
        "train",
        str(shots),
        *model,
        "--out",
        str(own),
        "--option",
        "targets=fc1",
        "--steps",
        "3",
        "--held-out",
        "0",
    )
    assert run.returncode == 0, run.stderr
    found = json.loads(
        main("classify", str(picture), "--shots", str(shots), *model, "--adapter", str(own), "--json").stdout
    )
    assert found["results"][0]["label"] == "red"
    assert list(found["weights"]["timm/test_vit under own"]) == ["adapters/lora"]
    for adapter, out in (((), "plain"), (("--adapter", str(own)), "adapted")):
        run = main("embed", str(picture), *model, *adapter, "--out", str(tmp_path / f"{out}.jsonl"))
        assert run.returncode == 0, run.stderr
    plain, adapted = ((tmp_path / f"{name}.jsonl").read_text() for name in ("plain", "adapted"))
    assert plain != adapted
    again = main("embed", str(picture), *model, "--out", str(tmp_path / "adapted.jsonl"))
    assert again.returncode != 0, "vectors under an adapter are not those of the model"
    run = main("classify", str(picture), "--shots", str(shots), "--adapter", str(own))
    assert "an adapter is for one model: name it, --model NAME" in run.stderr
    run = main("classify", str(picture), "--shots", str(shots), *model, "--adapter", str(own), "--adapter", str(own))
    assert "--adapter names one adapter, got 2" in run.stderr
    other = ("classify", str(picture), "--shots", str(shots), *model, "--seed", "3", "--adapter", str(own))
    assert "was made for a model with other weights" in main(*other).stderr
    taken = main(*other, "--other-base")
    assert taken.returncode == 0
    assert f"zoo: under {own} (adapters/lora, modalzoo-adapters 0.1.0, " in taken.stderr
    run = main("classify", str(picture), "--shots", str(shots), *model, "--adapter", str(tmp_path / "none.safetensors"))
    assert "there is no adapter" in run.stderr
    sound = Path(zoo.__file__).parent / "cli" / "demo" / "sounds"
    torch.manual_seed(0)
    adapters = zoo.adapt(zoo.open_model("whisper/random", weights=None), "lora")
    adapters.save("default", tmp_path / "ears.safetensors")
    recording = next(path for path in sorted(sound.iterdir()) if path.suffix in (".flac", ".wav", ".ogg"))
    run = main(
        "transcribe", str(recording), "--model", "whisper/random", "--weights", "none", "--adapter", str(tmp_path / "ears.safetensors"),
        "--language", "en", "--temperature", "0",
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
