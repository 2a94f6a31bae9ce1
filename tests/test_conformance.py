"""Broken plugins, each a good one with one mistake, and each caught by the check that is meant for it."""

import json
import os
import re
import subprocess
from pathlib import Path

import pytest
from conftest_shared import make_environment, once

from zoo.cli.scaffold import new_plugin
from zoo.errors import StateMismatchError
from zoo.registry.lookup import Registry
from zoo.registry.settings import load_settings
from zoo.testing import CHECKS, Subject
from zoo.testing.check import run_check
from zoo.testing.runner import checks_for

# name -> kind, modality, (file, what stands there, what is put in its place)..., the checks that fail
MODEL, MANIFEST = "model.py", "zoo.toml"
BROKEN = {
    "batch-dependent": (
        "encoder", "image", [(MODEL, "tokens_BTD.mean(1))", "tokens_BTD.mean(1) - tokens_BTD.mean((0, 1)))")],
        {"batch-equals-singles", "padding-changes-nothing"},  # a neighbour is a neighbour, longer or not
    ),
    "padding-leak": (
        "encoder", "text", [(MODEL, "tokens_BTD.sum(1) / mask_BT.sum(1, keepdim=True)", "tokens_BTD.mean(1)")],
        {"padding-changes-nothing"},
    ),
    "nan-on-zeros": (
        "encoder", "image",
        [(MODEL, "        tokens_BTD = self", "        pixels = (pixels - pixels.mean((1, 2, 3), keepdim=True)) / pixels.std((1, 2, 3), keepdim=True)\n        tokens_BTD = self")],
        {"extreme-input-stays-finite"},
    ),
    "hidden-parameter": (
        "encoder", "text",
        [(MODEL, "        self.widen =", "        self.shift = [torch.randn(width)]\n        self.widen ="),
         (MODEL, "self.widen(self.embed(ids_BT))", "(self.widen(self.embed(ids_BT)) + self.shift[0])")],
        {"everything-is-registered", "state-survives-saving"},
    ),
    "random-output": (
        "encoder", "text", [(MODEL, "self.widen(self.embed(ids_BT))", "torch.nn.functional.dropout(self.widen(self.embed(ids_BT)), 0.1, training=True)")],
        {"same-seed-same-output", "batch-equals-singles", "padding-changes-nothing", "state-survives-saving", "dtype-and-device-can-change"},
    ),
    "global-dtype": (
        "encoder", "image", [(MODEL, "from zoo.api import Encoded, to_pixels", "from zoo.api import Encoded, to_pixels\n\ntorch.set_default_dtype(torch.float64)")],
        {"process-stays-as-it-was"},
    ),
    "dead-parameter": (
        "encoder", "text",
        [(MODEL, "        self.widen =", "        self.unused = nn.Linear(2, 2)\n        self.widen ="), (MANIFEST, "parameters = 20544", "parameters = 20550")],
        {"gradient-reaches-every-parameter"},
    ),
    "lying-manifest": ("encoder", "image", [(MANIFEST, "count = 16, width = 64", "count = 16, width = 128")], {"shapes-as-declared"}),
    "torch-at-listing": (
        "encoder", "image",
        [("__init__.py", None, '"""One file."""\nimport torch\nfrom zoo.api import hookimpl\n\n@hookimpl\ndef zoo_cards():\n    return [{"name": "small", "kind": "encoder", "modalities": ["image"]}]\n'),
         (MANIFEST, None, None)],
        {"listing-imports-nothing", "listing-is-cheap"},
    ),
    "unpicklable": (
        "encoder", "text", [(MODEL, "        self.widen =", "        self.scale = lambda tokens: tokens\n        self.widen =")],
        {"works-after-spawn"},
    ),
    "misspelt-field": ("encoder", "text", [(MANIFEST, "parameters =", "parametres =")], {"manifest-is-valid"}),
    "no-manifest": ("encoder", "text", [(MANIFEST, None, None)], {"manifest-is-valid"}),
    "bad-argument": ("encoder", "image", [(MANIFEST, "{ patch = 16", "{ pach = 16")], {"contract-is-kept"}),
    "sees-the-future": (
        "decoder", "text", [(MODEL, "causal=True", "causal=False")],
        {"future-changes-nothing", "cache-changes-nothing"},  # what is read in pieces cannot see what is still to come
    ),
    "forged-control": (
        "decoder", "text",
        [(MODEL, "ByteTokenizer()", "Forgeable()"),
         (MODEL, "\n\ndef build", '\n\nclass Forgeable(ByteTokenizer):\n    def encode(self, text):\n        return [*super().encode(text), *(self.end_ids if "<|im_end|>" in text else ())]\n\n\ndef build')],
        {"text-controls-nothing"},
    ),
    "forgetful-cache": (
        "decoder", "text",
        [(MODEL, "return Decoder(", "return Forgetful("),
         (MODEL, "\n\ndef build", "\n\nclass Forgetful(Decoder):\n    def new_cache(self, batch, capacity):\n        cache = super().new_cache(batch, capacity)\n        begin = cache.begin\n        cache.begin = lambda *new: begin(*new) - (cache.counts_B[:, None] - 1).clamp(min=0)\n        return cache\n\n\ndef build")],
        {"cache-changes-nothing"},
    ),
    "padding-is-read": (
        "decoder", "text",
        [(MODEL, "return Decoder(", "return Careless("),
         (MODEL, "\n\ndef build", "\n\nclass Careless(Decoder):\n    def forward(self, tokens_BT, *, mask_BT=None, **more):\n        return super().forward(tokens_BT, **more)\n\n\ndef build")],
        {"padding-side-changes-nothing"},
    ),
    "loud-start": ("adapter", "text", [(MODEL, "torch.zeros(place", "torch.ones(place")], {"it-begins-as-the-base"}),
    "without-effect": (
        "adapter", "text", [(MODEL, "return output_BN * (1 + self.change)", "return output_BN * (1 + 0 * self.change)")],
        {"it-changes-something", "only-it-learns", "merging-comes-back"},
    ),
    "frozen-by-mistake": (
        "adapter", "text", [(MODEL, "return output_BN * (1 + self.change)", "return output_BN * (1 + self.change.detach())")],
        {"only-it-learns"},
    ),
    "merges-otherwise": (
        "adapter", "text", [(MODEL, "return weight_NK * (1 + self.change)[:, None]", "return weight_NK * (1 - self.change)[:, None]")],
        {"merging-comes-back"},
    ),
    "looks-at-neighbours": (
        "adapter", "text", [(MODEL, "return output_BN * (1 + self.change)", "return output_BN * (1 + self.change * output_BN.mean())")],
        {"rows-keep-their-own", "merging-comes-back"},
    ),
    "forgets-its-numbers": (
        "adapter", "text",
        [(MODEL, "        self.change =", "        self.signs = [torch.randn(place.outputs)]\n        self.change ="),
         (MODEL, "return output_BN * (1 + self.change)", "return output_BN * (1 + self.change * self.signs[0])")],
        {"its-file-comes-back", "merging-comes-back"},
    ),
    "takes-any-target": (
        "adapter", "text", [(MODEL, "base.chosen(targets)", "list(base.places.values())[1:3]")],
        {"an-unknown-target-is-refused"},
    ),
    "off-by-a-bit": ("kernel", "text", [(MODEL, "return linear(input_BTK,", "return 1.001 * linear(input_BTK,")], {"products-are-right"}),
    "loses-a-step": (
        "kernel", "text", [(MODEL, '"steps": self.steps}', '"steps": self.steps * (1 + 1e-6)}')],
        {"tensors-come-back"},
    ),
    "wider-than-said": ("kernel", "text", [(MANIFEST, "bits = 8.2", "bits = 4")], {"bits-are-as-said"}),
    "promises-a-step": ("kernel", "text", [(MANIFEST, 'takes = ["layer"]', 'takes = ["layer", "step"]')], {"pieces-are-there"}),
    "scales-by-the-batch": (
        "kernel", "text",
        [(MODEL, "return linear(input_BTK,", "size = input_BTK.detach().abs().amax().clamp(min=1e-9) if input_BTK.numel() else 1\n        return linear((input_BTK / size * 2**18).round() * size / 2**18,"),
         (MANIFEST, "gradients = true", "rounds_inputs = true"), (MODEL, "    passes_gradients = True\n", "")],
        {"rows-keep-to-themselves"},
    ),
    "stops-gradients": ("kernel", "text", [(MODEL, "return linear(input_BTK,", "return linear(input_BTK.detach(),")], {"gradients-are-as-said"}),
    "rounds-away": ("kernel", "text", [(MODEL, "MOST = 127", "MOST = 1")], {"bits-are-as-said", "a-decoder-runs-by-it"}),
    "compiles-otherwise": (
        "kernel", "text",
        [(MODEL, "return Kernel(", "return Kernel(compile=lambda module, request: nn.Sequential(module, nn.Tanh()), "), (MANIFEST, 'takes = ["layer"]', 'takes = ["layer", "module"]')],
        {"compiled-modules-give-the-same"},
    ),
    "steps-back": (
        "kernel", "text",
        [(MODEL, "return Kernel(", "return Kernel(step=Back, "),
         (MODEL, "\n\ndef build", "\n\nclass Back:\n    def __init__(self, decoder):\n        self.decoder = decoder\n\n    def takes(self, cache, **others):\n        return cache is not None and not any(others.values()) and self.decoder.step is self\n\n    def __call__(self, tokens_BT, cache, *, mask_BT=None, at_BN=None):\n        self.decoder.step = None\n        given = self.decoder(tokens_BT, cache=cache, mask_BT=mask_BT, at_BN=at_BN)\n        self.decoder.step = self\n        return -given\n\n\ndef build"),
         (MANIFEST, 'takes = ["layer"]', 'takes = ["layer", "step"]')],
        {"its-step-is-the-layers"},
    ),
}  # fmt: skip
SLOW = ("process-stays-as-it-was", "works-after-fork", "works-after-spawn")  # three processes each: tried where they matter

RUN = """
import json, sys
from zoo.registry.lookup import default_registry
from zoo.testing.check import CHECKS, Subject, run_check
from zoo.testing.runner import checks_for
from zoo.registry.lookup import Found

registry, found = default_registry(), {}
for plugin in registry.plugins:
    wanted = json.loads(sys.argv[1]).get(plugin.name)
    if wanted is None:
        continue
    results = [run_check(check, plugin) for check in checks_for(None) if check.name != "activation-ends-well"]
    for card in plugin.cards if plugin.manifest_sha256 else ():
        subject = Subject(Found(card, None), plugin, registry)
        results += [run_check(check, subject) for check in checks_for(card.kind) if check.level != "process" or check.name in wanted]
    found[plugin.name] = {result.check: result.message for result in results if result.status == "failed"}
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def failures(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, str]]:
    """Plugin -> check -> message, of one run in an environment where all of them and a good one are installed."""
    return json.loads((once(tmp_path_factory, "broken", check_all) / "failures.json").read_text())


def check_all(folder: Path) -> None:
    new_plugin("good", kind="encoder", modality="text", folder=folder / "good")
    for name, (kind, modality, edits, _) in BROKEN.items():
        new_plugin(name, kind=kind, modality=modality, folder=folder / name)
        for file, old, new in edits:
            break_it(next((folder / name).glob(f"zoo_*/{file}")), old, new)
    python = make_environment(folder / "env", [folder / name for name in ("good", *BROKEN)])
    wanted = {name: sorted({*checks} & {*SLOW}) for name, (_, _, _, checks) in BROKEN.items()}
    run = subprocess.run(
        [python, "-c", RUN, json.dumps({**wanted, "good": list(SLOW)})], capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
    (folder / "failures.json").write_text(run.stdout)


def break_it(path: Path, old: str | None, new: str | None) -> None:
    if new is None:
        path.unlink()
        return
    text = path.read_text()
    assert old is None or text.count(old) == 1, old
    path.write_text(new if old is None else text.replace(old, new))


@pytest.mark.parametrize("name", BROKEN)
@pytest.mark.covers("P7")
def test_the_check_that_is_meant_for_it_catches_it(failures, name) -> None:
    meant = BROKEN[name][-1]
    slow = {"listing-is-cheap"} - meant  # processor time on a busy machine
    assert set(failures[name]) - slow == meant, failures[name]


def test_the_good_one_is_caught_by_none(failures) -> None:
    assert failures["good"].keys() <= {"listing-is-cheap"}


def test_messages_say_what_was_found(failures) -> None:
    assert (
        "image item 0 alone and in a batch of 3: pooled vector differs by"
        in failures["batch-dependent"]["batch-equals-singles"]
    )
    assert (
        "an image of grey 0 gives NaN or infinity in its tokens" in failures["nan-on-zeros"]["extreme-input-stays-finite"]
    )
    assert (
        "shift[0] is a tensor that is neither a parameter nor a buffer"
        in failures["hidden-parameter"]["everything-is-registered"]
    )
    assert (
        "no output depends on unused.weight, unused.bias" in failures["dead-parameter"]["gradient-reaches-every-parameter"]
    )
    assert (
        "torch's default dtype from torch.float32 to torch.float64" in failures["global-dtype"]["process-stays-as-it-was"]
    )
    assert "the card says count = 16 and width = 128" in failures["lying-manifest"]["shapes-as-declared"]
    assert (
        "import torch inside the functions that build, or write a zoo.toml"
        in failures["torch-at-listing"]["listing-imports-nothing"]
    )
    assert "lambda" in failures["unpicklable"]["works-after-spawn"]
    assert re.search(
        r"zoo.toml:\d+: unknown field 'parametres'; known are .*; mend the manifest, or: zoo uninstall modalzoo-misspelt-field",
        failures["misspelt-field"]["manifest-is-valid"],
    )
    assert "it has neither a zoo.toml beside its module nor a hook" in failures["no-manifest"]["manifest-is-valid"]
    assert "unexpected keyword argument 'pach'" in failures["bad-argument"]["contract-is-kept"]


def test_what_cannot_be_built_fails_once_and_skips_the_rest(tmp_path, monkeypatch) -> None:
    """With weights too: a builder that fails is not the weights' fault. Those that do not fit are, and cost one check."""
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path))
    registry = Registry(load_settings())
    plugin = next(plugin for plugin in registry.plugins if plugin.name == "timm")
    subject = Subject(registry.find("timm/test_vit"), plugin, registry)
    real = Subject.open

    def results(error: Exception, when) -> dict[str, tuple[str, str]]:
        def fail(self, *, weights, **more):
            if when(weights):
                raise error
            return real(self, weights=None, **more)

        monkeypatch.setattr(Subject, "open", fail)
        ran = [
            run_check(check, Subject(subject.found, plugin, registry))
            for check in checks_for("encoder")
            if check.level in ("manifest", "weights")
        ]
        return {result.check: (result.status, result.message) for result in ran}

    found = results(TypeError("no such argument"), lambda _: True)
    assert found["contract-is-kept"] == ("failed", "it raised TypeError: no such argument")
    assert found["weights-load"] == ("skipped", "it cannot be built: see contract-is-kept")
    assert [status for status, _ in found.values()].count("failed") == 1
    found = results(StateMismatchError("3 of 9 tensors differ"), lambda weights: weights is not None)
    assert {name: message for name, (status, message) in found.items() if status == "failed"} == (
        {"weights-load": "it raised StateMismatchError: 3 of 9 tensors differ"}
    )


@pytest.mark.parametrize(
    ("manifest", "said"),
    [("api = ", "not valid TOML"), (None, "it has neither a zoo.toml"), ('api = ">=1,<2"\n', "it names no model and no family")],
)  # fmt: skip
def test_a_plugin_without_a_valid_manifest_never_passes(zoo, tmp_path, manifest, said) -> None:
    package, metadata = tmp_path / "site" / "odd_empty", tmp_path / "site" / "odd-1.dist-info"
    package.mkdir(parents=True)
    metadata.mkdir()
    (metadata / "METADATA").write_text("Name: odd\nVersion: 1\n")
    (metadata / "entry_points.txt").write_text("[zoo]\nodd = odd_empty\n")
    (package / "__init__.py").touch()
    if manifest is not None:
        (package / "zoo.toml").write_text(manifest)
    environment = {
        "PYTHONPATH": os.pathsep.join([str(tmp_path / "site"), os.environ.get("PYTHONPATH", "")]), "ZOO_PLUGINS": "odd"
    }  # fmt: skip
    run = zoo("check", "odd", **environment)
    assert (run.returncode, run.stdout.rstrip().endswith(": FAILED")) == (1, True), run.stdout
    assert "failed  manifest-is-valid: " in run.stdout
    assert said in run.stdout
    assert "1 FAILED, 3 passed" in zoo("plugins", **environment).stdout


def test_every_check_has_a_promise_and_is_listed(zoo) -> None:
    listed = json.loads(zoo("check", "--list", "--json").stdout)["checks"]
    assert {row["check"] for row in listed} == set(CHECKS)
    assert all(row["promise"].endswith(".") for row in listed)


def test_an_unknown_name_is_a_question(zoo) -> None:
    assert "no installed plugin provides 'timn'" in zoo("check", "timn").stderr
    assert "which plugin, distribution or model?" in zoo("check").stderr
