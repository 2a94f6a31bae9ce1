"""Real distributions, installed beside the good ones: nothing they do harms the others."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from importlib import metadata
from pathlib import Path

import pytest
from conftest_shared import DISTS, PHOTOS, install, make_environment, once, site_of

import zoo as library
from zoo.models.build import open_model
from zoo.registry.lookup import Found, Registry, default_registry
from zoo.registry.records import write_record
from zoo.registry.settings import load_settings

CROWD = sorted(path for path in DISTS.iterdir() if (path / "pyproject.toml").exists() and path.name != "zoodist-rival")

# plugin (distribution) -> state, part of the error, part of the cure
EXPECTED = {
    "zoodist-good": ("ok", "", ""),
    "zoodist-offers": ("ok", "", ""),
    "zoodist-onefile": ("ok", "", ""),
    "zoodist-store": ("ok", "", ""),
    "zoodist-sixbits": ("ok", "", ""),
    "zoodist-vera": ("ok", "", ""),
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
    "zoodist-endless": ("broken", "importing it to list it did not end in time (1 s)", "zoo disable endless"),
    "zoodist-exitfile": ("broken", "importing it to list it ended the interpreter with exit code 7", "zoo disable exitfile"),
    "zoodist-torchtop": ("ok", "", ""),  # it costs its own users, in a process of its own, once
    "zoodist-importerror": ("ok", "", ""),  # it has a manifest, so nobody has imported it yet
    "zoodist-exits": ("ok", "", ""),  # as above
    "zoodist-dtype": ("ok", "", ""),  # as above
    "modalzoo-clip": ("ok", "", ""),
    "modalzoo-text": ("ok", "", ""),
    "modalzoo-conse": ("ok", "", ""),
    "modalzoo-lm": ("ok", "", ""),
    "modalzoo-adapters": ("ok", "", ""),
    "modalzoo-smollm": ("ok", "", ""),
    "modalzoo-perceiver": ("ok", "", ""),
    "modalzoo-whisper": ("ok", "", ""),
    "modalzoo-audio": ("ok", "", ""),
    "modalzoo-fused": ("ok", "", ""),
    "modalzoo-kernels": ("ok", "", ""),
    "modalzoo-openvino": ("ok", "", ""),
}  # fmt: skip


@pytest.fixture(scope="module")
def crowd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return once(tmp_path_factory, "crowd", lambda folder: make_environment(folder, CROWD)) / "bin" / "python"


def zoo_with_listing_timeout(
    python: Path, *arguments: str, timeout_s: int, environment: dict[str, str]
) -> subprocess.CompletedProcess[str]:
    """Run the command `zoo` with another limit on the import of a plugin without a manifest."""
    code = f"from zoo.registry import activation; activation.LISTING_TIMEOUT_S = {timeout_s}; "
    code += f"from zoo.cli import main; raise SystemExit(main({list(arguments)!r}))"
    return subprocess.run([python, "-c", code], env=environment, capture_output=True, check=False, text=True, timeout=300)


@pytest.fixture(scope="module")
def first_listing(crowd, tmp_path_factory) -> Path:
    """The state folder after the first listing, which imports the plugins without a manifest in processes of their own.

    Those that come to an end are given as long as a busy machine needs; the limit is for the one that does not.
    """

    def listed(state: Path) -> None:
        environment = {**os.environ, "ZOO_STATE": str(state)}
        others = {**environment, "ZOO_DISABLE": "endless"}
        for timeout_s, variables in ((300, others), (1, environment)):
            run = zoo_with_listing_timeout(crowd, "list", timeout_s=timeout_s, environment=variables)
            assert run.returncode == 0
            assert "Traceback" not in run.stderr

    return once(tmp_path_factory, "first-listing", listed)


@pytest.fixture(autouse=True)
def _listed(request, tmp_path) -> None:
    if "crowd" in request.fixturenames:
        shutil.copytree(request.getfixturevalue("first_listing"), tmp_path / ".state")


def plugins_of(run: subprocess.CompletedProcess[str]) -> dict[str, dict[str, str]]:
    return {plugin["dist"]: plugin for plugin in json.loads(run.stdout)["plugins"]}


@pytest.mark.covers("P1", "P2", "P5", "P6")
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


@pytest.mark.skipif(os.environ.get("ZOO_SLOW_TESTS") != "1", reason="half a minute; make demo runs it: ZOO_SLOW_TESTS=1")
def test_the_demo_still_runs(crowd, zoo, tmp_path) -> None:
    run = zoo("demo", "--json", "--out", str(tmp_path), python=str(crowd))
    assert run.returncode == 0, run.stderr
    assert json.loads(run.stdout)["right"] >= 7


def test_a_use_of_a_broken_plugin_is_remembered(crowd, zoo) -> None:
    command = [
        "classify",
        str(PHOTOS / "chelsea.jpg"),
        "--model",
        "importerror/never",
        "--weights",
        "none",
        "--labels",
        "a,b",
    ]
    run = zoo(*command, python=str(crowd))
    assert run.returncode == 1
    assert "plugin 'importerror' (zoodist-importerror 1.0) is broken: ImportError: cannot import name" in run.stderr
    crew = "importerror,exits,dtype,good,onefile,torchtop"
    run = zoo("doctor", "--json", python=str(crowd), ZOO_PLUGINS=crew)
    assert run.returncode == 1, run.stderr
    assert json.loads(run.stdout)["summary"] == "6 plugins tried, 4 ok, 2 broken (exits, importerror)"
    assert plugins_of(run)["zoodist-importerror"]["state"] == "broken"
    assert "cannot import name 'nothing_here'" in plugins_of(run)["zoodist-importerror"]["error"]
    assert "ended the interpreter with exit code 3" in plugins_of(run)["zoodist-exits"]["error"]
    assert plugins_of(run)["zoodist-dtype"]["state"] == "ok"
    later = plugins_of(zoo("plugins", "--json", python=str(crowd)))["zoodist-importerror"]
    assert later["state"] == "broken"
    assert "Traceback" in later["traceback"]


def test_a_plugin_whose_import_does_not_end_is_broken(crowd) -> None:
    environment = {**os.environ, "ZOO_PLUGINS": "endless"}
    run = zoo_with_listing_timeout(crowd, "doctor", "--json", timeout_s=1, environment=environment)
    assert run.returncode == 1, run.stderr
    assert json.loads(run.stdout)["summary"] == "1 plugin tried, 0 ok, 1 broken (endless)"
    assert "did not end in time" in plugins_of(run)["zoodist-endless"]["error"]


def test_zoo_doctor_ends_with_a_summary_and_fails_when_something_is_broken(crowd, zoo) -> None:
    run = zoo("doctor", python=str(crowd), ZOO_PLUGINS="good,missing,apinew,text")
    assert run.returncode == 1
    assert run.stdout.splitlines()[-1] == "4 plugins tried, 2 ok, 1 incompatible (apinew), 1 missing-extra (missing)"
    run = zoo("doctor", python=str(crowd), ZOO_PLUGINS="good,text")
    assert (run.returncode, run.stdout.splitlines()[-1]) == (0, "2 plugins tried, 2 ok")


def test_a_strangers_store_delivers(crowd, zoo, tmp_path) -> None:
    run = zoo("fetch", "store/net", "--json", python=str(crowd), ZOO_CACHE=str(tmp_path))
    assert run.returncode == 0, run.stderr
    (file,) = json.loads(run.stdout)["files"]
    assert (file["model"], file["fresh"], Path(file["path"]).read_text()) == (
        "store/net.a",
        True,
        "weights from a stranger's store",
    )


def test_what_has_no_weights_says_how_to_build_it(crowd, zoo, photos, tmp_path) -> None:
    for name, photo in (("one", "chelsea.jpg"), ("two", "rocket.jpg")):
        (tmp_path / "shots" / name).mkdir(parents=True)
        shutil.copy(photos / photo, tmp_path / "shots" / name)
    refused = zoo(
        "classify",
        str(photos / "chelsea.jpg"),
        "--model",
        "good/colour",
        "--shots",
        str(tmp_path / "shots"),
        python=str(crowd),
    )
    assert (
        refused.returncode,
        "good/colour has no weights of its own: give a file of them (--weights FILE), or none for a random"
        in refused.stderr,
    ) == (1, True)


@pytest.mark.covers("P4")
def test_a_clash_is_refused_and_settled(crowd, zoo, photos) -> None:
    photo = str(photos / "chelsea.jpg")
    refused = zoo("classify", photo, "--model", "efficientnet_lite0", python=str(crowd))
    assert refused.returncode == 1
    assert "provided by modalzoo-timm 0.1.0 and by zoodist-clash 1.0" in refused.stderr
    assert zoo("pin", "timm", "modalzoo-timm", python=str(crowd)).returncode == 0
    assert zoo("show", "timm/efficientnet_lite0", python=str(crowd)).returncode == 0
    assert plugins_of(zoo("plugins", "--json", python=str(crowd)))["modalzoo-timm"]["state"] == "ok"


@pytest.mark.covers("P6")
def test_a_plugin_of_another_api_is_refused_with_its_range(crowd, zoo) -> None:
    for name, asked in (("apinew", ">=2,<3"), ("apiold", "<1")):
        run = zoo("fetch", f"{name}/model", python=str(crowd))
        assert (run.returncode, run.stdout, run.stderr.count("\n")) == (1, "", 1)
        assert f"plugin '{name}' (zoodist-{name} 1.0) is incompatible" in run.stderr
        assert f"written for plugin API {asked}; this zoo has 1" in run.stderr


def test_disabled_means_not_looked_at(crowd, zoo) -> None:
    ways = (
        ({"ZOO_DISABLE": "systemexit,raises"}, "take it out of ZOO_DISABLE"),
        ({"ZOO_PLUGINS": "timm,good"}, "add it there"),
    )
    for variable, cure in ways:
        plugins = plugins_of(zoo("plugins", "--json", python=str(crowd), **variable))
        assert plugins["zoodist-raises"]["state"] == "disabled"
        assert plugins["zoodist-raises"]["cure"] == cure
        assert (
            f"raises is still disabled: {plugins['zoodist-raises']['error']}; {cure}"
            in zoo("enable", "raises", python=str(crowd), **variable).stderr
        )
    plugins = plugins_of(zoo("plugins", "--json", python=str(crowd), ZOO_DISABLE="zoodist-onefile"))
    assert (plugins["zoodist-onefile"]["state"], plugins["zoodist-onefile"]["import_ms"]) == ("disabled", None)


def test_a_listing_imports_no_plugin_and_does_little(crowd) -> None:
    """Not even the plugins without a manifest, once they have been asked. What takes time is counted, and not the time: modules,
    processes, and how often a manifest is read (benchmarks/startup.py has the seconds).
    """
    child = (
        "import sys; opened, started = [], []; sys.addaudithook(lambda event, given: opened.append(str(given[0])) "
        "if event == 'open' else started.append(given) if event == 'subprocess.Popen' else None)\n"
        "before = set(sys.modules); from zoo.cli import main; main(['plugins']); new = set(sys.modules) - before\n"
        "manifests = [name for name in opened if name.endswith('zoo.toml')]\n"
        "print([name for name in new if 'zoodist' in name or name == 'torch'], len(started), len(new), len(manifests) - len(set(manifests)))"
    )
    run = subprocess.run([str(crowd), "-c", child], capture_output=True, text=True, check=True)
    imported, started, modules, again = run.stdout.splitlines()[-1].rsplit(" ", 3)
    assert (imported, started, again) == ("[]", "0", "0")
    assert int(modules) < 300


MOODY = """
import os, sys, pathlib
if (pathlib.Path(__file__).parents[1] / "bad-day").exists():
    print("the licence server is asleep", file=sys.stderr)
    os._exit(9)
from zoo import hookimpl
@hookimpl
def zoo_cards():
    return [{"name": "a", "kind": "encoder", "modalities": ["text"], "build": "odd_moody:a"}]
def a(): ...
"""


def test_a_child_repeats_the_last_words_and_zoo_doctor_tries_again(zoo, tmp_path) -> None:
    (tmp_path / "site" / "odd-1.dist-info").mkdir(parents=True)
    (tmp_path / "site" / "odd-1.dist-info" / "METADATA").write_text("Name: odd\nVersion: 1\n")
    (tmp_path / "site" / "odd-1.dist-info" / "entry_points.txt").write_text("[zoo]\nodd = odd_moody\n")
    (tmp_path / "site" / "odd_moody.py").write_text(MOODY)
    (tmp_path / "bad-day").touch()
    environment = {
        "PYTHONPATH": os.pathsep.join([str(tmp_path / "site"), os.environ.get("PYTHONPATH", "")]), "ZOO_PLUGINS": "odd"
    }  # fmt: skip
    plugin = plugins_of(zoo("plugins", "--json", **environment))["odd"]
    assert plugin["error"] == (
        "importing it to list it ended the interpreter with exit code 9; the last it said: the licence server is asleep"
    )
    assert plugin["cure"].startswith("zoo doctor tries it once more; or update it")
    (tmp_path / "bad-day").unlink()
    assert (
        plugins_of(zoo("plugins", "--json", **environment))["odd"]["state"] == "broken"
    )  # nothing that a listing could see has changed
    plugin = plugins_of(zoo("doctor", "--json", **environment))["odd"]
    assert (plugin["state"], plugin["cards"]) == ("ok", ["odd/a"])
    assert plugins_of(zoo("plugins", "--json", **environment))["odd"]["state"] == "ok"


@pytest.mark.parametrize(
    ("url", "cure"),
    [
        ('{"dir_info": {"editable": true}, "url": "file:///here"}', "mend it, then: zoo check odd"),
        ('{"dir_info": {}, "url": "file:///here"}', "update it (pip install -U odd-dist), zoo disable odd, or zoo uninstall odd-dist"),
        ("[", "update it (pip install -U odd-dist), zoo disable odd, or zoo uninstall odd-dist"),
    ],
    ids=["editable", "folder", "damaged"],
)  # fmt: skip
def test_ones_own_plugin_is_to_be_mended(zoo, tmp_path, url, cure) -> None:
    folder = tmp_path / "site" / "odd_dist-1.dist-info"
    folder.mkdir(parents=True)
    (folder / "METADATA").write_text("Name: odd-dist\nVersion: 1\n")
    (folder / "entry_points.txt").write_text("[zoo]\nodd = odd_broken\n")
    (folder / "direct_url.json").write_text(url)
    (tmp_path / "site" / "odd_broken.py").write_text("def build(:\n")
    path = os.pathsep.join([str(tmp_path / "site"), os.environ.get("PYTHONPATH", "")])
    plugin = plugins_of(zoo("plugins", "--json", PYTHONPATH=path, ZOO_PLUGINS="odd"))["odd-dist"]
    assert plugin["error"].startswith("SyntaxError")
    assert plugin["cure"] == cure


@pytest.mark.parametrize(
    "start", [["-m", "zoo"], ["-c", "from zoo.cli import main; import sys; sys.exit(main(sys.argv[1:]))"]]
)
def test_what_lies_in_the_current_folder_is_not_imported(crowd, tmp_path, start) -> None:
    """Neither here nor in the processes that ask plugins; `-c` looks where an interactive session does."""
    for name in ("torch", "numpy", "pluggy") + (("random", "platformdirs") if start[0] == "-m" else ()):
        (tmp_path / f"{name}.py").write_text("raise RuntimeError('this is mine')")
    environment = {**os.environ, "ZOO_STATE": str(tmp_path / "fresh"), "ZOO_PLUGINS": "torchtop,onefile"}
    run = subprocess.run(
        [str(crowd), *start, "plugins", "--json"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    states = {name: plugin["state"] for name, plugin in plugins_of(run).items() if plugin["state"] != "disabled"}
    assert states == {"zoodist-torchtop": "ok", "zoodist-onefile": "ok"}


@pytest.mark.covers("P1")
def test_a_plugin_that_ends_the_interpreter_is_set_aside(crowd, zoo) -> None:
    model = ["classify", str(PHOTOS / "chelsea.jpg"), "--model", "exits/model", "--weights", "none", "--labels", "a,b"]
    died = zoo(*model, python=str(crowd))
    assert died.returncode == 3
    plugin = plugins_of(zoo("plugins", "--json", python=str(crowd)))["zoodist-exits"]
    assert plugin["state"] == "broken"
    assert "the last process that imported it came to its end while it did" in plugin["error"]
    assert "zoo doctor" in plugin["cure"]
    again = zoo(*model, python=str(crowd))
    assert again.returncode == 1
    assert "activating it ended the interpreter with exit code 3" in again.stderr
    assert zoo("list", python=str(crowd)).returncode == 0


@pytest.mark.covers("P7")
def test_what_a_plugin_changes_of_the_process_is_put_back(crowd) -> None:
    child = (
        "import random, torch, zoo; before = random.getstate(); zoo.build('dtype/model', weights=None); "
        "print(torch.get_default_dtype(), random.getstate() == before)"
    )
    run = subprocess.run([str(crowd), "-c", child], capture_output=True, text=True, check=True)
    assert run.stdout.split() == ["torch.float32", "True"]
    assert "when it was imported, changed torch's default dtype from torch.float32 to torch.float64" in run.stderr


def test_a_process_killed_during_an_activation_costs_the_next_one_a_trial(zoo, tmp_path) -> None:
    """SIGKILL may come at any time; a plugin that is innocent is used again."""
    ended = subprocess.run(
        [sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, text=True, check=True
    )
    text = next(plugin for plugin in library.installed_plugins() if plugin.name == "text")
    write_record("attempt", text, {"process": int(ended.stdout)})
    assert plugins_of(zoo("plugins", "--json"))["modalzoo-text"]["state"] == "broken"
    registry = Registry(load_settings())
    assert open_model("text/minilm-tiny", weights=None, registry=registry).name == "text/minilm-tiny"
    assert plugins_of(zoo("plugins", "--json"))["modalzoo-text"]["state"] == "ok"


@pytest.mark.parametrize("name", ["zoodist-missing", "zoodist-onefile"])
def test_what_is_written_by_hand_is_what_pip_writes(tmp_path, name) -> None:
    """The environments of these tests are not made by pip; this one is."""
    python = make_environment(tmp_path / "env", [])
    command = [str(python), "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--no-build-isolation"]
    subprocess.run([*command, str(DISTS / name)], check=True)
    (tmp_path / "ours").mkdir()
    install(DISTS / name, tmp_path / "ours")
    found = {}
    for site in (site_of(tmp_path / "env"), tmp_path / "ours"):
        (info,) = site.glob("zoodist*.dist-info")
        one = metadata.Distribution.at(info)
        files = {str(file) for file in one.files if "__pycache__" not in str(file)}
        found[site.name] = {
            "files": {file for file in files if Path(file).name not in ("REQUESTED", "WHEEL", "top_level.txt")},
            "about": [one.metadata[key] for key in ("Name", "Version", "Requires-Python")],
            "needs": one.requires,
            "points": [(point.group, point.name, point.value) for point in one.entry_points],
            "pip": [json.loads(one.read_text("direct_url.json")), one.read_text("INSTALLER").strip()],
        }
    assert found["ours"] == found["site-packages"]


@pytest.mark.parametrize("way", ["editable", "wheel", "zip"])
def test_every_way_to_install_lists_the_same(zoo, tmp_path, way) -> None:
    python = make_environment(tmp_path / "env", [])
    source = shutil.copytree(DISTS / "zoodist-good", tmp_path / "source")
    pip = [str(python), "-m", "pip", "--quiet"]
    build = ["--no-deps", "--no-index", "--no-build-isolation"]
    environment = {}
    if way == "editable":
        subprocess.run([*pip, "install", *build, "-e", str(source)], check=True)
    else:
        subprocess.run([*pip, "wheel", *build, "-w", str(tmp_path), str(source)], check=True)
        (wheel,) = tmp_path.glob("*.whl")
        if way == "wheel":
            subprocess.run([*pip, "install", *build[:2], str(wheel)], check=True)
        else:
            environment = {"PYTHONPATH": os.pathsep.join([str(wheel), os.environ.get("PYTHONPATH", "")])}
    document = json.loads(zoo("show", "good/colour", "--json", python=str(python), **environment).stdout)
    assert document["card"]["parameters"] == 3
    environment["ZOO_PLUGINS"] = "good"
    plugin = plugins_of(zoo("doctor", "--json", python=str(python), **environment))["zoodist-good"]
    assert (plugin["state"], plugin["version"], plugin["cards"]) == ("ok", "1.0", ["good/colour"])


def test_a_stale_egg_info_is_named(zoo, tmp_path) -> None:
    python = make_environment(tmp_path / "env", [DISTS / "zoodist-good"])
    stale = tmp_path / "old" / "zoodist_good.egg-info"
    stale.mkdir(parents=True)
    (stale / "PKG-INFO").write_text("Metadata-Version: 2.1\nName: zoodist-good\nVersion: 0.9\n")
    (stale / "entry_points.txt").write_text("[zoo]\ngood = zoodist_good_old\n")
    path = os.pathsep.join([str(stale.parent), os.environ.get("PYTHONPATH", "")])
    run = zoo("plugins", python=str(python), PYTHONPATH=path)
    assert run.returncode == 0
    assert "good (zoodist-good 0.9) is broken: its module 'zoodist_good_old' cannot be found" in run.stdout
    assert "zoodist-good 1.0 also lies in" in run.stdout
    assert f"after {stale.parent.resolve()} on sys.path, and is not used: remove the one that is stale" in run.stdout


@pytest.mark.parametrize("order", [["zoodist-clash", "zoodist-rival"], ["zoodist-rival", "zoodist-clash"]], ids="+".join)
@pytest.mark.covers("P4")
def test_the_order_of_installation_decides_nothing(zoo, tmp_path, order) -> None:
    python = make_environment(tmp_path / "env", [DISTS / name for name in order])
    plugins = plugins_of(zoo("plugins", "--json", python=str(python)))
    assert {plugins[name]["state"] for name in (*order, "modalzoo-timm")} == {"shadowed"}
    refused = zoo("show", "efficientnet_lite0", python=str(python))
    assert "provided by modalzoo-timm 0.1.0 and by zoodist-clash 1.0 and by zoodist-rival 1.0" in refused.stderr


def test_enabling_undoes_disabling_by_either_name(zoo) -> None:
    assert zoo("disable", "modalzoo-text").returncode == 0
    plugin = plugins_of(zoo("plugins", "--json"))["modalzoo-text"]
    assert (plugin["state"], plugin["cure"]) == ("disabled", "zoo enable text")
    assert zoo("enable", "text").returncode == 0
    assert plugins_of(zoo("plugins", "--json"))["modalzoo-text"]["state"] == "ok"


@pytest.mark.parametrize(
    ("files", "error"),
    [
        ({"entry_points.txt": b"[zoo]\nodd = zoodist_odd\n"}, "its module 'zoodist_odd' cannot be found"),
        ({"METADATA": b"Name: odd\nVersion: 1\n", "entry_points.txt": b"[zoo]\nodd\n"}, "metadata is damaged"),
        ({"METADATA": b"Name: odd\nVersion: 1\n", "entry_points.txt": b"[zoo]\nodd = ???\n"}, "metadata is damaged"),
        ({"METADATA": b"Name: odd\nVersion: 1\n", "entry_points.txt": b"[zoo]\nodd = \xff\n"}, "metadata is damaged"),
        ({"METADATA": b"Name: odd\nVersion: 1\nRequires-Dist: nothing; sys_platform ~= 'linux'\n",
          "entry_points.txt": b"[zoo]\nodd = zoodist_odd\n", "../zoodist_odd.py": b""}, "cannot be read"),
        ({"METADATA": b"Name: odd\nVersion: 1\n", "entry_points.txt": b"[zoo]\nodd = zoodist_odd\n",
          "../zoodist_odd/__init__.py": b"", "../zoodist_odd/zoo.toml": b"api = '>=1'\nx = " + b"[" * 5000 + b"]" * 5000},
         "nested too deeply"),
        ({"METADATA": b"Name: odd\nVersion: 1\n", "entry_points.txt": b"[zoo]\nodd = zoodist_odd\n",
          "../zoodist_odd/__init__.py": b"", "../zoodist_odd/zoo.toml":
          b"api = '>=1'\n[[card]]\nname = 'a'\nkind = 'encoder'\nmodalities = ['image']\nvariant = { since = 1979-05-27 }"},
         "zoo.toml:6: variant may hold strings, numbers, booleans, lists and tables"),
        ({"METADATA": b"Name: odd\nVersion: 1\n", "entry_points.txt": b"[zoo]\nodd = zoodist_odd\n", "../zoodist_odd.py":
          b"from zoo import hookimpl\n@hookimpl\ndef zoo_cards():\n    yield {}\n    raise SystemExit('bye')\n"}, "SystemExit: bye"),
        ({"METADATA": b"Name: odd\nVersion: 1\n", "entry_points.txt": b"[zoo]\nodd = zoodist_odd\n", "../zoodist_odd.py":
          b"print('hello')\nclass Odd(BaseException): pass\nraise Odd\n"}, "ended the interpreter with exit code 1"),
        ({"METADATA": b"Name: odd\nVersion: 1\n", "entry_points.txt": b"[zoo]\nodd = zoodist_odd\n",
          "../zoodist_odd.py": b"import os\nos._exit(0)\n"}, "ended the interpreter with exit code 0"),
    ],
    ids=["no METADATA", "no value", "odd value", "not UTF-8", "odd marker", "deep", "date", "generator exits", "BaseException", "exit 0"],
)  # fmt: skip
def test_one_odd_distribution_costs_the_listing_nothing(zoo, tmp_path, files, error) -> None:
    folder = tmp_path / "site" / "odd-1.dist-info"
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        folder.mkdir(exist_ok=True)
        path.write_bytes(content)
    path = os.pathsep.join([str(folder.parent), os.environ.get("PYTHONPATH", "")])
    run = zoo("plugins", "--json", PYTHONPATH=path)
    assert run.returncode == 0, run.stderr
    plugin = plugins_of(run)["odd"]
    assert (plugin["state"], error in plugin["error"]) == ("broken", True), plugin
    assert plugins_of(run)["modalzoo-timm"]["state"] == "ok"
    assert json.loads(zoo("list", "--json", PYTHONPATH=path).stdout)["cards"]


def test_a_choice_that_means_nothing_is_refused(zoo) -> None:
    pin = zoo("pin", "tim/no_such_model", "modalzoo-timm")
    assert (pin.returncode, "modalzoo-timm provides no 'tim/no_such_model'" in pin.stderr) == (2, True)
    default = zoo("default", "clasify", "text/minilm-tiny")
    assert (default.returncode, "no task is called 'clasify': known are" in default.stderr) == (2, True)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["default", "classify", "text/minilm-tiny"],
            "classify needs a dual_encoder of image+text, text/minilm-tiny has kind encoder and modality text",
        ),
        (
            ["default", "classify:own-labels", "clip/tiny-image"],
            "clip/tiny-image has kind encoder and modality image, without classes",
        ),
        (["default", "search", "timm/efficientnet_lite0"], "zoo list --kind dual_encoder shows those that may fit"),
        (["default", "classify", "--remove"], "'classify' is not in [defaults] of the config file: it holds nothing"),
        (["pin", "timm"], "which distribution wins 'timm'? zoo pin NAME DISTRIBUTION, or --remove"),
        (["pin", "timm", "modalzoo-timm", "--remove"], "--remove takes 'timm' alone, got 'modalzoo-timm' besides"),
        (["pin", "timm", "--remove"], "'timm' is not in [pins] of the config file: it holds nothing"),
    ],
)
def test_a_choice_that_cannot_be_made_is_refused(zoo, arguments, message) -> None:
    run = zoo(*arguments)
    assert (run.returncode, message in run.stderr) == (2, True), run.stderr


def test_the_current_default_and_where_it_comes_from(zoo, tmp_path) -> None:
    given = zoo("default", "classify")
    assert (given.returncode, given.stdout) == (
        0,
        "task classify, model modalzoo-conse:conse/lite0-minilm, from the card of modalzoo-conse, which claims the task\n",
    )
    assert zoo("default", "classify", "clip/tiny").returncode == 0
    chosen = json.loads(zoo("default", "classify", "--json").stdout)
    assert chosen == {"task": "classify", "model": "clip/tiny", "from": f"your choice in {tmp_path / 'config.toml'}"}


def test_choices_are_made_and_removed(zoo, tmp_path) -> None:
    for made, removed, line in (
        (["default", "classify", "clip/tiny"], ["default", "classify", "--remove"], 'classify = "clip/tiny"'),
        (["pin", "timm", "modalzoo-timm"], ["pin", "timm", "--remove"], 'timm = "modalzoo-timm"'),
    ):
        assert zoo(*made).returncode == 0
        assert line in (tmp_path / "config.toml").read_text()
        run = zoo(*removed, "--json")
        assert (run.returncode, json.loads(run.stdout)["removed"]) == (0, made[2])
        assert line not in (tmp_path / "config.toml").read_text()


def test_a_default_that_was_written_by_hand_says_where_it_stands(zoo, tmp_path, photos) -> None:
    (tmp_path / "config.toml").write_text('[defaults]\nclassify = "timm/efficientnet_lite0"\n')
    way_back = (
        f"(it is your default for 'classify', in {tmp_path}/config.toml; to forget it: zoo default classify --remove)"
    )
    run = zoo("classify", str(photos / "chelsea.jpg"), "--labels", "cat,dog")
    assert (run.returncode, way_back in run.stderr) == (2, True), run.stderr
    run = zoo("fetch", "--defaults", "--json")
    assert run.returncode == 0, run.stderr
    assert "zoo: nothing to fetch for 'classify': classify needs a dual_encoder of image+text" in run.stderr
    assert way_back in run.stderr


def test_an_unknown_key_of_the_config_file_is_said_once(zoo, tmp_path) -> None:
    (tmp_path / "config.toml").write_text('disable = ["text"]\ncolour = 1\n')
    run = zoo("plugins")
    assert run.returncode == 0
    assert run.stderr == (
        f"{tmp_path}/config.toml: unknown: disable, colour; known are disabled, only, pins, defaults. What is unknown has no effect\n"
    )


@pytest.mark.parametrize("variables", [{"ZOO_CONFIG": "/tmp"}, {"ZOO_CONFIG": "/dev/null/c.toml"}])
def test_a_config_that_cannot_be_used_is_one_line(zoo, variables) -> None:
    run = zoo("disable", "timm", **variables)
    assert run.returncode == 1
    assert run.stderr.count("\n") == 1
    assert "the config file cannot be" in run.stderr


BROKEN_DEFAULT = """
api = ">=1,<2"
[[card]]
name = "a"
kind = "dual_encoder"
modalities = ["image", "text"]
build = "odd_default:a"
default_for = ["classify"]
"""


def test_a_default_whose_plugin_cannot_be_used_names_it_with_its_cure(zoo, photos, tmp_path) -> None:
    question = ["classify", str(photos / "chelsea.jpg"), "--labels", "cat,dog"]
    run = zoo(*question, ZOO_DISABLE="conse")
    assert run.returncode == 1
    assert run.stderr == (
        f"zoo: the default model for 'classify' cannot be used: plugin 'conse' (modalzoo-conse {library.__version__}) is disabled "
        f"(disabled by the variable ZOO_DISABLE): take it out of ZOO_DISABLE. zoo doctor shows more; or choose another model "
        f"with --model\n"
    )
    run = zoo(*question, ZOO_DISABLE="timm")  # a part of the default
    assert run.returncode == 1
    assert "plugin 'timm' (modalzoo-timm" in run.stderr
    assert "take it out of ZOO_DISABLE" in run.stderr
    assert "a part of conse/lite0-minilm" in run.stderr
    (tmp_path / "site" / "odd-1.dist-info").mkdir(parents=True)
    (tmp_path / "site" / "odd-1.dist-info" / "METADATA").write_text("Name: odd\nVersion: 1\n")
    (tmp_path / "site" / "odd-1.dist-info" / "entry_points.txt").write_text("[zoo]\nodd = odd_default\n")
    (tmp_path / "site" / "odd_default").mkdir()
    (tmp_path / "site" / "odd_default" / "__init__.py").write_text("1/0")
    (tmp_path / "site" / "odd_default" / "zoo.toml").write_text(BROKEN_DEFAULT)
    path = os.pathsep.join([str(tmp_path / "site"), os.environ.get("PYTHONPATH", "")])
    for _ in range(2):  # the first finds out, the second knows
        run = zoo(*question, "--weights", "none", ZOO_PLUGINS="odd", PYTHONPATH=path)
        assert run.returncode == 1
        assert "plugin 'odd' (odd 1) is broken" in run.stderr
        assert "ZeroDivisionError" in run.stderr
        assert "zoo uninstall odd" in run.stderr
    assert run.stderr.startswith("zoo: the default model for 'classify' cannot be used: plugin 'conse'")
    assert "plugin 'odd' (odd 1) is broken (ZeroDivisionError: division by zero): update it" in run.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nothing*"], "zoo: no model matches 'nothing*'; zoo list shows what is installed; the members of families are listed with their plugin's name: zoo list 'clip/nothing*', zoo list 'timm/nothing*'\n"),
        (["text/nothing*"], "zoo: no model matches 'text/nothing*'; zoo list shows what is installed\n"),
        (["minilm*", "--modality", "audio"], "zoo: no model for audio matches 'minilm*'"),
        (["--kind", "bridge", "timm/*"], "zoo: no model of kind bridge matches 'timm/*'"),
        (["lite0"], "zoo: no model matches 'lite0'; 2 would: zoo list '*lite0*'; the members of families are listed with their plugin's name: zoo list 'clip/*lite0*', zoo list 'timm/*lite0*'\n"),
        (["conse"], "zoo: no model matches 'conse'; 1 would: zoo list 'conse/*'\n"),
        (["text/minilm"], "zoo: no model matches 'text/minilm'; 2 would: zoo list 'text/*minilm*'\n"),
        (["*lite*", "--kind", "decoder"], "zoo: no model of kind decoder matches '*lite*'; zoo list shows what is installed\n"),
        (["x*", "--modality", "text"], "zoo: no model for text matches 'x*'; zoo list shows what is installed; the members of families are listed with their plugin's name: zoo list 'clip/x*'\n"),
    ],
)  # fmt: skip
def test_a_listing_of_nothing_says_what_to_do(main, arguments, message) -> None:
    run = main("list", *arguments)
    assert (run.returncode, run.stdout) == (1, "")
    assert run.stderr.startswith(message)
    document = main("list", *arguments, "--json")
    assert (document.returncode, json.loads(document.stdout)) == (1, {"cards": [], "families": []})


def test_a_listing_says_where_the_members_of_families_are(main) -> None:
    line = "zoo: the members of families are listed with their plugin's name, and are not among these: "
    run = main("list", "*lite0*")
    assert run.returncode == 0
    assert run.stderr == f"{line}zoo list 'clip/*lite0*', zoo list 'timm/*lite0*'\n"
    assert main("list", "*lite0*", "--modality", "text", "--json").stderr == f"{line}zoo list 'clip/*lite0*'\n"
    for arguments in ([], ["text/*"], ["*lite0*", "--modality", "series"]):
        assert line not in main("list", *arguments).stderr


def test_show_says_what_differs_for_a_tag(main) -> None:
    name = "timm/vit_small_patch16_224"
    run = main("show", f"{name}.augreg_in21k")
    lines = [line.split() for line in run.stdout.splitlines()]
    assert ["classes", "21843"] in lines
    assert ["modalities", "image"] in lines
    assert ["variant", "num_classes", "21843"] in lines
    assert [line[:3] for line in lines if line[0] == "weights"] == [["weights", "*", "augreg_in21k"]]
    assert f"other weights: augreg_in21k_ft_in1k, augreg_in1k, dino (zoo show {name} shows all)" in run.stdout
    assert not set("[]{}'") & set(run.stdout)
    every = main("show", name).stdout
    assert ["classes", "1000"] in [line.split() for line in every.splitlines()]
    assert [line.split()[1] for line in every.splitlines() if line.startswith("weights")] == ["*", "augreg_in1k", "augreg_in21k", "dino"]  # fmt: skip
    document = json.loads(main("show", f"{name}.augreg_in21k", "--json").stdout)
    row = next(row for row in document["card"]["weights"] if row["tag"] == document["chosen_weights"])
    assert (row["classes"], row["variant"], row["keys"]) == (21843, {"num_classes": 21843}, "zoo_timm.keys:from_timm")
    assert row["preprocess"]["size"] == 224
    assert document["card"]["code_sha256"] == document["card"]["file_sha256"]


def test_show_of_parts_and_of_unknown_licences(main, monkeypatch) -> None:
    run = main("show", "conse/lite0-minilm")
    assert "part image: timm/efficientnet_lite0.in1k  18.8 MB  Apache-2.0\n" in run.stdout
    assert "part text: text/all-minilm-l6-v2.sbert  91.3 MB  Apache-2.0\n" in run.stdout
    parts = {part["role"]: part for part in json.loads(main("show", "conse/lite0-minilm", "--json").stdout)["parts"]}
    assert (parts["image"]["weights"]["tag"], parts["text"]["weights"]["tag"]) == ("in1k", "sbert")
    registry = default_registry()
    found = registry.find("timm/efficientnet_lite0")
    nameless = replace(found.card, licence=None, weights=(replace(found.card.weights[0], licence=None),))
    monkeypatch.setattr(registry, "find", lambda _: Found(nameless, nameless.weights[0]))
    text = main("show", "timm/efficientnet_lite0").stdout
    assert ["licence", "unknown"] in [line.split() for line in text.splitlines()]
    assert "weights * in1k  18.8 MB  licence unknown\n" in text


def test_a_listing_has_the_families_that_fit(main) -> None:
    def families(*arguments: str) -> list[str]:
        return [family["pattern"] for family in json.loads(main("list", "--json", *arguments).stdout)["families"]]

    assert families() == ["clip/*", "clip/*-image", "clip/*-text", "timm/*"]
    assert families("--kind", "encoder", "--modality", "text") == ["clip/*-text"]
    assert families("tim*") == ["timm/*"]


def test_exit_codes_beside_0_1_and_2(main, monkeypatch) -> None:
    from zoo.cli import catalogue

    def stop(_: object) -> int:
        raise KeyboardInterrupt("what was done is kept")

    monkeypatch.setattr(catalogue, "run_list", stop)
    run = main("list")
    assert (run.returncode, run.stderr) == (130, "zoo: interrupted; what was done is kept\n")


def test_a_misspelt_disabled_name_is_pointed_out(zoo) -> None:
    run = zoo("plugins", ZOO_DISABLE="tim")
    assert "'tim' is disabled or allowed but not installed; did you mean timm?" in run.stderr
    wrong = zoo("disable", "tim")
    assert (wrong.returncode, "no plugin or distribution is called 'tim'; did you mean timm" in wrong.stderr) == (2, True)


def test_strict_raises(crowd, zoo) -> None:
    run = zoo("list", python=str(crowd), ZOO_STRICT="1", ZOO_DISABLE="endless")
    assert run.returncode == 1
    assert "(ZOO_STRICT is set)" in run.stderr


@pytest.mark.parametrize("name", ["zoodist-systemexit", "Zoodist_SystemExit", "systemexit"])
def test_uninstall_works_on_a_broken_plugin(zoo, tmp_path, name) -> None:
    python = make_environment(tmp_path / "env", [DISTS / "zoodist-systemexit"])
    assert plugins_of(zoo("plugins", "--json", python=str(python)))["zoodist-systemexit"]["state"] == "broken"
    run = zoo("uninstall", name, python=str(python), ZOO_STRICT="1")
    assert run.returncode == 0, run.stderr
    assert "zoodist-systemexit" not in plugins_of(zoo("plugins", "--json", python=str(python)))


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["Torch"], "torch is installed and is no plugin of the zoo (it has no entry point in the group 'zoo')"),
        (["tim"], "no plugin or distribution is called 'tim'; did you mean timm"),
        (["text", "nothing/../at-all"], "no plugin or distribution is called 'nothing/../at-all'"),
    ],
)
def test_uninstall_removes_plugins_alone(main, monkeypatch, names, message) -> None:
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: pytest.fail("pip must not be called"))
    run = main("uninstall", *names)
    assert (run.returncode, message in run.stderr, "nothing was removed" in run.stderr) == (2, True, True), run.stderr


def test_uninstall_of_what_pip_leaves_alone_is_a_failure(main, monkeypatch) -> None:
    """pip exits with 0 when a distribution lies outside its environment."""
    asked = []

    def pip(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        asked.extend(command[1:])
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(subprocess, "run", pip)
    run = main("uninstall", "text")
    assert asked == ["-m", "pip", "uninstall", "--yes", "modalzoo-text"]
    assert (run.returncode, "modalzoo-text: still installed after pip uninstall" in run.stderr) == (1, True)


@pytest.mark.parametrize("command", [["uninstall", "text"], ["install", "modalzoo-text"]])
def test_an_environment_without_pip_is_told_how_to_get_it(main, monkeypatch, command) -> None:
    monkeypatch.setitem(sys.modules, "pip", None)
    run = main(*command)
    assert (
        run.returncode,
        f"this environment has no pip ({sys.executable}): {sys.executable} -m ensurepip" in run.stderr,
    ) == (1, True)
