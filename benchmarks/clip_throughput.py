"""Zero-shot classification of 256 JPEG files among 100 labels with ViT-B-32: `zoo.classify` beside open_clip and transformers.

All contestants have the same random weights (no published ones are at hand without a model hub, and speed does not depend on
them), read the same files with the same threads, in one process, in alternating runs, and embed the labels each time: what
`zoo` keeps on disk between runs is switched off. Models are built and loaded before the clock starts. Random weights make every
answer a close call, which `zoo.classify` would compute again in float32: that is switched off for bfloat16
(`exact_close_calls=False`), so what is measured is bfloat16 alone; trained weights have few close calls. Ratios are medians.

The pipeline of transformers reads all labels again for each image, so its time grows with the images alone, and it is
measured on fewer of them (--pipeline-images) and scaled.

Written down before the first run: fp32 at least 1.0 times open_clip's loop (the same matrix products, short texts, reading
beside computing); bf16 at least 4 times on a processor with AMX, 2 times where it has AVX512-BF16 alone; at least 4 times the
pipeline of transformers.

Run: .venv/bin/python benchmarks/clip_throughput.py [--runs 3]  (needs transformers, which open_clip does not install)
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import open_clip
import torch
from machine import machine, progress, show
from PIL import Image
from safetensors.torch import save_file
from throughput import IMAGES, make_images

import zoo
from zoo.models.build import Built

MODEL, BATCH = "clip/ViT-B-32.laion2b_s34b_b79k", 32
LABELS = [f"{size} {thing}" for size in ("small", "large", "red", "old", "wooden") for thing in (
    "cat", "dog", "car", "house", "boat", "chair", "bottle", "bridge", "horse", "tree",
    "bicycle", "clock", "lamp", "table", "bird", "train", "flower", "mountain", "guitar", "cup",
)]  # fmt: skip
TEMPLATE = "a photo of a {}."


def open_clip_loop(model: open_clip.CLIP) -> Callable[[list[str]], list[int]]:
    """The loop of open_clip's documentation: its transform and tokenizer, batches of 32, fp32."""
    transform = open_clip.image_transform(224, is_train=False)
    tokenizer = open_clip.get_tokenizer("ViT-B-32")

    @torch.inference_mode()
    def run(files: list[str]) -> list[int]:
        text_CE = model.encode_text(tokenizer([TEMPLATE.format(label) for label in LABELS]), normalize=True)
        answers: list[int] = []
        for start in range(0, len(files), BATCH):
            batch = torch.stack([transform(Image.open(file).convert("RGB")) for file in files[start : start + BATCH]])
            image_BE = model.encode_image(batch, normalize=True)
            answers += (model.logit_scale.exp() * image_BE @ text_CE.T).softmax(-1).argmax(-1).tolist()
        return answers

    return run


def zoo_classify(built: Built) -> Callable[[list[str]], list[int]]:
    """`zoo.classify` as it is, with a model that is built."""

    def run(files: list[str]) -> list[int]:
        with mock.patch("zoo.tasks.label_scores.derived", lambda _kind, _inputs, compute, **_: compute()):
            results = zoo.classify(files, LABELS, model=built, templates=[TEMPLATE], top=1, exact_close_calls=False).results
        return [LABELS.index(answer.label) for answer in results]

    return run


def pipeline(model: open_clip.CLIP, count: int) -> Callable[[list[str]], list[int]]:
    """The zero-shot-image-classification pipeline, with the same weights under transformers' names."""
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel
    from transformers import pipeline as make_pipeline

    text = {"hidden_size": 512, "intermediate_size": 2048, "num_attention_heads": 8, "num_hidden_layers": 12}
    vision = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "patch_size": 32}
    text |= {"hidden_act": "gelu", "eos_token_id": 49407, "bos_token_id": 49406}
    config = CLIPConfig(text_config=text, vision_config={**vision, "num_attention_heads": 12, "hidden_act": "gelu"})
    twin = CLIPModel(config).eval()
    twin.load_state_dict(_their_names(model.state_dict()))
    classify = make_pipeline(
        "zero-shot-image-classification", model=twin, tokenizer=_their_tokenizer(), image_processor=CLIPImageProcessor()
    )

    @torch.inference_mode()
    def run(files: list[str]) -> list[int]:
        outcome = classify(files[:count], candidate_labels=LABELS, hypothesis_template=TEMPLATE)
        return [LABELS.index(rows[0]["label"]) for rows in outcome]

    return run


def _their_tokenizer() -> object:
    """The CLIP tokenizer of transformers, from open_clip's vocabulary."""
    from transformers import CLIPTokenizer

    known = open_clip.SimpleTokenizer()
    names = {"<start_of_text>": "<|startoftext|>", "<end_of_text>": "<|endoftext|>"}
    vocabulary = {names.get(piece, piece): number for piece, number in known.encoder.items()}
    merges = [tuple(pair) for pair in known.bpe_ranks]
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=77)


def _their_names(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    renamed = {
        "logit_scale": state["logit_scale"],
        "visual_projection.weight": state["visual.proj"].T,
        "text_projection.weight": state["text_projection"].T,
        "vision_model.embeddings.class_embedding": state["visual.class_embedding"],
        "vision_model.embeddings.position_embedding.weight": state["visual.positional_embedding"],
        "vision_model.embeddings.patch_embedding.weight": state["visual.conv1.weight"],
        "text_model.embeddings.token_embedding.weight": state["token_embedding.weight"],
        "text_model.embeddings.position_embedding.weight": state["positional_embedding"],
    }
    for ours, theirs in (
        ("visual.ln_pre", "vision_model.pre_layrnorm"),
        ("visual.ln_post", "vision_model.post_layernorm"),
        ("ln_final", "text_model.final_layer_norm"),
    ):
        renamed |= {f"{theirs}.{part}": state[f"{ours}.{part}"] for part in ("weight", "bias")}
    for ours, theirs in (("visual.transformer", "vision_model"), ("transformer", "text_model")):
        for number in range(12):
            old, new = f"{ours}.resblocks.{number}", f"{theirs}.encoder.layers.{number}"
            for part in ("weight", "bias"):
                packed = state[f"{old}.attn.in_proj_{part}"].chunk(3)
                renamed |= {f"{new}.self_attn.{key}_proj.{part}": piece for key, piece in zip("qkv", packed, strict=True)}
                for one, other in (
                    ("attn.out_proj", "self_attn.out_proj"), ("ln_1", "layer_norm1"), ("ln_2", "layer_norm2"),
                    ("mlp.c_fc", "mlp.fc1"), ("mlp.c_proj", "mlp.fc2"),
                ):  # fmt: skip
                    renamed[f"{new}.{other}.{part}"] = state[f"{old}.{one}.{part}"]
    return renamed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--images", type=int, default=IMAGES)
    parser.add_argument("--pipeline-images", type=int, default=16)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    peer, theirs = "open_clip loop, fp32", "transformers pipeline, fp32"
    with tempfile.TemporaryDirectory() as folder:
        files = make_images(Path(folder))[: arguments.images]
        model = open_clip.create_model("ViT-B-32").eval()
        path = Path(folder, "weights.safetensors")
        save_file(model.state_dict(), path)
        exact = zoo.open_model(MODEL, weights=path)
        rounded = zoo.open_model(MODEL, weights=path, dtype=torch.bfloat16)
        contestants = {
            peer: open_clip_loop(model),
            "zoo.classify, fp32": zoo_classify(exact),
            "zoo.classify, bf16": zoo_classify(rounded),
            theirs: pipeline(model, arguments.pipeline_images),
        }
        answers = {name: contestant(files) for name, contestant in contestants.items()}  # also warms up
        seconds: dict[str, list[float]] = {name: [] for name in contestants}
        for run in range(arguments.runs):
            for name, contestant in contestants.items():
                start = time.perf_counter()
                contestant(files)
                share = len(answers[name]) / len(files)
                seconds[name].append((time.perf_counter() - start) / share)
                progress(f"run {run + 1} of {arguments.runs}: {name}, {seconds[name][-1]:.1f} s for all images")
        with torch.inference_mode():
            pixels = exact.module.preprocess("image", [Image.open(file).convert("RGB") for file in files[:32]])
            pairs = exact.module.encode("image", pixels), rounded.module.encode("image", pixels)
        cosine = torch.nn.functional.cosine_similarity(*pairs).min().item()
    show(f"{len(files)} images, {len(LABELS)} labels, {arguments.threads} threads, {arguments.runs} alternating runs")
    show(machine())
    show("expected: fp32 >= 1.0x open_clip; bf16 >= 4x with AMX, >= 2x with AVX512-BF16; >= 4x transformers")
    for name in contestants:
        ratios = [
            statistics.median(a / b for a, b in zip(seconds[other], seconds[name], strict=True)) for other in (peer, theirs)
        ]
        agree = [a == b for a, b in zip(answers[peer], answers[name], strict=False)]
        show(
            f"{name:<28} {len(files) / statistics.median(seconds[name]):6.1f} images/s   {ratios[0]:5.2f}x open_clip  "
            f"{ratios[1]:6.2f}x transformers   label as {peer}: {sum(agree)} of {len(agree)}"
        )
    show(f"smallest cosine of a bf16 image embedding to its fp32: {cosine:.5f}")


if __name__ == "__main__":
    main()
