"""Real distributions, built and installed by pip beside the good ones: nothing they do harms the others."""

import json
import os
import subprocess
from pathlib import Path

import pytest
from conftest_shared import DISTS, make_environment

CROWD = sorted(path for path in DISTS.iterdir() if (path / "pyproject.toml").exists())

# plugin (distribution) -> state, part of the error, part of the cure
EXPECTED = {
    "zoodist-good": ("ok", "", ""),
    "zoodist-onefile": ("ok", "", ""),
    "zoodist-store": ("ok", "", ""),
    "zoodist-onefileerror": ("broken", "ImportError: the native library is missing", "zoo uninstall zoodist-onefileerror"),
    "zoodist-syntaxerror": ("broken", "SyntaxError", "zoo uninstall zoodist-syntaxerror"),
    "zoodist-systemexit": ("broken", "SystemExit: goodbye", "zoo disable systemexit"),
    "zoodist-raises": ("broken", "RuntimeError: the hook fell over", "zoo disable raises"),
    "zoodist-mistyped": ("broken", "unknown hook 'zoo_card'", "zoo disable mistyped"),
    "zoodist-wrongtype": ("broken", "a hook must return mappings", "zoo disable wrongtype"),
    "zoodist-badmanifest": ("broken", "zoo.toml:9: unknown field 'parameter'", "mend the manifest"),
    "zoodist-outside": ("broken", "zoo.toml:7: build may only point inside the plugin's own package", "mend the manifest"),
    "zoodist-clash": ("shadowed", "timm/efficientnet_lite0 also provided by modalzoo-timm", "zoo pin timm zoodist-clash"),
    "modalzoo-timm": ("shadowed", "timm/efficientnet_lite0 also provided by zoodist-clash 1.0", "zoo pin timm modalzoo-timm"),
    "zoodist-apinew": ("incompatible", "written for plugin API >=2,<3; this zoo has 1", "install a release"),
    "zoodist-apiold": ("incompatible", "written for plugin API <1; this zoo has 1", "install a release"),
    "zoodist-missing": ("missing-extra", "not installed: zoodist-not-published>=3", "pip install 'zoodist-not-published>=3'"),
    "zoodist-importerror": ("ok", "", ""),  # it has a manifest, so nobody has imported it yet
    "modalzoo-text": ("ok", "", ""),
    "modalzoo-conse": ("ok", "", ""),
}  # fmt: skip


@pytest.fixture(scope="module")
def crowd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_environment(tmp_path_factory.mktemp("crowd"), CROWD)


def plugins_of(run: subprocess.CompletedProcess[str]) -> dict[str, dict[str, str]]:
    return {plugin["dist"]: plugin for plugin in json.loads(run.stdout)["plugins"]}


def test_each_is_named_with_its_cure(crowd, zoo) -> None:
    run = zoo("plugins", "--json", python=str(crowd))
    assert run.returncode == 0, run.stderr
    plugins = plugins_of(run)
    assert set(plugins) == set(EXPECTED)
    for dist, (state, error, cure) in EXPECTED.items():
        assert (plugins[dist]["state"], error in plugins[dist]["error"], cure in plugins[dist]["cure"]) == (
            state,
            True,
            True,
        ), plugins[dist]
        assert bool(plugins[dist]["cure"]) == (state != "ok")


@pytest.mark.parametrize("command", [["list"], ["plugins"], ["cache"], ["show", "good/colour"], ["disable", "raises"],
                                     ["enable", "raises"], ["pin", "timm", "modalzoo-timm"], ["--help"]], ids=" ".join)  # fmt: skip
def test_management_commands_exit_0(crowd, zoo, command) -> None:
    run = zoo(*command, python=str(crowd))
    assert run.returncode == 0, run.stderr
    assert "Traceback" not in run.stderr


def test_the_table_for_people_names_state_error_and_cure(crowd, zoo) -> None:
    text = zoo("plugins", python=str(crowd)).stdout
    assert "raises (zoodist-raises 1.0) is broken: RuntimeError: the hook fell over" in text
    assert "cure: update it (pip install -U zoodist-raises), zoo disable raises, or zoo uninstall zoodist-raises" in text


def test_the_demo_still_runs(crowd, zoo, tmp_path) -> None:
    run = zoo("demo", "--json", "--out", str(tmp_path), python=str(crowd))
    assert run.returncode == 0, run.stderr
    assert json.loads(run.stdout)["right"] >= 7


def test_a_use_of_a_broken_plugin_is_remembered(crowd, zoo) -> None:
    run = zoo(
        "classify", "x.jpg", "--model", "importerror/never", "--weights", "none", "--labels", "a,b", python=str(crowd)
    )
    assert run.returncode == 2 or "importerror" in run.stderr
    run = zoo("doctor", "--json", python=str(crowd))
    assert run.returncode == 0, run.stderr
    assert plugins_of(run)["zoodist-importerror"]["state"] == "broken"
    assert "cannot import name 'nothing_here'" in plugins_of(run)["zoodist-importerror"]["error"]
    later = plugins_of(zoo("plugins", "--json", python=str(crowd)))["zoodist-importerror"]
    assert later["state"] == "broken"
    assert "Traceback" in later["traceback"]


def test_a_strangers_store_delivers(crowd, zoo, tmp_path) -> None:
    run = zoo("fetch", "store/net", "--json", python=str(crowd), ZOO_CACHE=str(tmp_path))
    assert run.returncode == 0, run.stderr
    (file,) = json.loads(run.stdout)["files"]
    assert (file["model"], file["fresh"], Path(file["path"]).read_text()) == (
        "store/net.a",
        True,
        "weights from a stranger's store",
    )


def test_what_has_no_weights_says_how_to_build_it(crowd, zoo, photos) -> None:
    photo = str(photos / "chelsea.jpg")
    refused = zoo("classify", photo, "--model", "good/colour", "--shots", str(photos), python=str(crowd))
    assert (
        refused.returncode,
        "good/colour has no weights; for a random initialisation: --weights none" in refused.stderr,
    ) == (1, True)


def test_a_clash_is_refused_and_settled(crowd, zoo, photos) -> None:
    photo = str(photos / "chelsea.jpg")
    refused = zoo("classify", photo, "--model", "efficientnet_lite0", python=str(crowd))
    assert refused.returncode == 1
    assert "provided by modalzoo-timm 0.1.0 and by zoodist-clash 1.0" in refused.stderr
    assert zoo("pin", "timm", "modalzoo-timm", python=str(crowd)).returncode == 0
    assert zoo("show", "timm/efficientnet_lite0", python=str(crowd)).returncode == 0
    assert plugins_of(zoo("plugins", "--json", python=str(crowd)))["modalzoo-timm"]["state"] == "ok"


def test_disabled_means_not_looked_at(crowd, zoo) -> None:
    for variable in ({"ZOO_DISABLE": "systemexit,raises"}, {"ZOO_PLUGINS": "timm,good"}):
        plugins = plugins_of(zoo("plugins", "--json", python=str(crowd), **variable))
        assert plugins["zoodist-raises"]["state"] == "disabled"
        assert plugins["zoodist-raises"]["cure"] == "zoo enable raises"
    child = (
        "import sys; from zoo.cli import main; main(['list']); print([name for name in sys.modules if 'zoodist' in name])"
    )
    run = subprocess.run(
        [str(crowd), "-c", child],
        capture_output=True, text=True, check=True, env={**os.environ, "ZOO_DISABLE": "raises,zoodist-onefile"},
    )  # fmt: skip
    imported = run.stdout.splitlines()[-1]
    assert "zoodist_mistyped" in imported
    assert "zoodist_raises" not in imported
    assert "'zoodist_onefile'" not in imported


def test_a_misspelt_disabled_name_is_pointed_out(zoo) -> None:
    run = zoo("plugins", ZOO_DISABLE="tim")
    assert "'tim' is disabled or allowed but not installed; did you mean timm?" in run.stderr
    wrong = zoo("disable", "tim")
    assert (wrong.returncode, "no plugin or distribution is called 'tim'; did you mean timm" in wrong.stderr) == (2, True)


def test_strict_raises(crowd, zoo) -> None:
    run = zoo("list", python=str(crowd), ZOO_STRICT="1")
    assert run.returncode == 1
    assert "(ZOO_STRICT is set)" in run.stderr


def test_uninstall_works_on_a_broken_plugin(zoo, tmp_path) -> None:
    python = make_environment(tmp_path / "env", [DISTS / "zoodist-systemexit"])
    assert "zoodist-systemexit" in plugins_of(zoo("plugins", "--json", python=str(python)))
    run = zoo("uninstall", "zoodist-systemexit", python=str(python))
    assert run.returncode == 0, run.stderr
    assert "zoodist-systemexit" not in plugins_of(zoo("plugins", "--json", python=str(python)))
