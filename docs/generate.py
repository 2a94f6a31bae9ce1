"""Write the parts of README.md and docs/ that commands and code produce, or check that they are fresh.

A part stands between `<!-- begin NAME -->` and `<!-- end NAME -->`. `--check` compares what stands there with what the commands
say now: word for word for help and tables. Of transcripts of models, whose last digits and near ties belong to the machine, it
compares the commands, and runs them with ZOO_SLOW_TESTS=1 to compare the names of models and of rows, too.

Run: make docs (writes) or make check (compares).
"""

import argparse
import contextlib
import io
import json
import os
import re
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Callable
from pathlib import Path

import reference
import reliability

ROOT = Path(__file__).parents[1]
PAGES = (
    "README.md",
    "docs/commands.md",
    "docs/models.md",
    "docs/plugins.md",
    "docs/gallery.md",
    "docs/benchmarks.md",
    "docs/language.md",
    "docs/fusion.md",
    "docs/speech.md",
)
REFUSED = ("zoo show efficientnet_lite3",)  # commands whose error is what is shown
KNOWN = ROOT / "zoo" / "registry" / "known_distributions.json"
PHOTOS = "zoo/cli/demo/photos"
RECORDING = "zoo/cli/demo/sounds/sense_and_sensibility.flac"
ZOO = Path(sys.executable).with_name("zoo")


def run(command: str) -> str:
    """A command as a terminal shows it, from the repository's root, with nothing of the user's settings."""
    with tempfile.TemporaryDirectory() as folder:
        environment = {
            **os.environ,
            "COLUMNS": "100",
            "ZOO_CONFIG": f"{folder}/config.toml",
            "ZOO_STATE": f"{folder}/state",
            "PATH": f"{ZOO.parent}{os.pathsep}{os.environ['PATH']}",
        }
        outcome = subprocess.run(
            ["/bin/sh", "-c", command], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
        )
    if outcome.returncode and command not in REFUSED:
        raise SystemExit(f"{command} failed, and is not to be published:\n{outcome.stderr}")
    return (outcome.stdout + outcome.stderr).rstrip().replace(str(ROOT), "...")


def terminal(*commands: str) -> str:
    """Commands and what they print, as one console block."""
    blocks = [f"$ {command}\n{run(command)}" for command in commands]
    return "```console\n" + "\n\n".join(blocks) + "\n```"


def models() -> str:
    """One row for each card and family."""
    document = json.loads(run("zoo list --json"))
    lines = [
        "| model | kind | modalities | parameters | weights | licence | plugin | |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for card in document["cards"]:
        tags = ", ".join(f"`{row['tag']}`" for row in card["weights"]) or ("its parts'" if card.get("parts") else "none")
        count = f"{card['parameters']:,}" if card["parameters"] else ""
        modalities = ", ".join(card["modalities"])
        lines.append(
            f"| `{card['name']}` | {card['kind']} | {modalities} | {count} | {tags} | {card['licence'] or ''} "
            f"| {card['plugin']} | {card.get('summary', '')} |"
        )
    for family in document["families"]:
        modalities = ", ".join(family["modalities"])
        lines.append(
            f"| `{family['pattern']}` | {family['kind']} | {modalities} | | by tag | each its own | {family['plugin']} "
            f"| {family['summary']} |"
        )
    return "\n".join(lines)


def commands() -> str:
    """The help of every command and of its actions."""
    names = [one for name in listed("zoo") for one in (name, *(f"{name} {action}" for action in listed(f"zoo {name}")))]
    return "\n\n".join(f"## zoo {name}\n\n```\n{help_of(name.split())}\n```" for name in names)


def help_of(words: list[str]) -> str:
    """What `zoo WORDS --help` prints at the width that `run` has, said by this process: there are dozens."""
    from zoo.cli import main as zoo

    output = io.StringIO()
    columns = os.environ.get("COLUMNS")
    os.environ["COLUMNS"] = "100"
    with contextlib.redirect_stdout(output), contextlib.suppress(SystemExit):
        zoo([*words, "--help"])
    if columns is None:
        del os.environ["COLUMNS"]
    else:
        os.environ["COLUMNS"] = columns
    return output.getvalue().rstrip()


def listed(command: str) -> list[str]:
    """Commands, or actions, that a help names."""
    return re.findall(r"^    (\w+)(?: |$)", help_of(command.split()[1:]), flags=re.MULTILINE)


def hooks() -> str:
    """One line for each hook, with its page."""
    rows = [
        f"| [`{hook.__name__}`](hooks/{hook.__name__}.md) | {(hook.__doc__ or '').strip().splitlines()[0]} |"
        for hook in reference.hooks()
    ]
    return "| hook | |\n|---|---|\n" + "\n".join(rows)


def single_file() -> str:
    """A whole plugin in one file, and the few lines that make a distribution of it; the tests install and list it."""
    folder = ROOT / "tests" / "dists" / "zoodist-onefile"
    project, module = ((folder / name).read_text(encoding="utf-8") for name in ("pyproject.toml", "zoodist_onefile.py"))
    return (
        f"`pyproject.toml`\n\n```toml\n{project.rstrip()}\n```\n\n`zoodist_onefile.py`\n\n```python\n{module.rstrip()}\n```"
    )


def manifest_example() -> str:
    """The manifest of a first-party plugin, as it is."""
    text = (ROOT / "plugins" / "conse" / "zoo_conse" / "zoo.toml").read_text(encoding="utf-8")
    return f"```toml\n{text.rstrip()}\n```"


def benchmark_results() -> str:
    """The kept output of the benchmark scripts, each with the machine it was measured on."""
    folder = ROOT / "benchmarks" / "results"
    return "\n\n".join(
        f"### `{path.stem}`\n\n```\n{path.read_text(encoding='utf-8').rstrip()}\n```"
        for path in sorted(folder.glob("*.txt"))
    )


def known_distributions() -> str:
    """Which distribution brings which plugin and models, so that an unknown name can say what to install."""
    known = {}
    for path in (ROOT / "adapters" / "pyproject.toml", *sorted(ROOT.glob("plugins/*/pyproject.toml"))):
        project = tomllib.loads(path.read_text(encoding="utf-8"))["project"]
        for plugin, module in project["entry-points"]["zoo"].items():
            manifest = tomllib.loads((path.parent / module / "zoo.toml").read_text(encoding="utf-8"))
            known[project["name"]] = {"plugin": plugin, "models": [card["name"] for card in manifest.get("card", ())]}
    return json.dumps(known, indent=1) + "\n"


def parity() -> str:
    """How near our architectures come to those of transformers, measured now."""
    script = ROOT / "plugins" / "lm" / "tests" / "parity_table.py"
    outcome = subprocess.run(
        [sys.executable, str(script)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    return outcome.stdout.strip()


# name -> how to make it; it is compared word for word
EXACT: dict[str, Callable[[], str]] = {
    "help": lambda: terminal("zoo --help"),
    "models": models,
    "commands": commands,
    "hooks": hooks,
    "single_file": single_file,
    "gallery": reference.gallery,
    "manifest": manifest_example,
    "benchmarks": benchmark_results,
    "compose": lambda: terminal(
        "zoo compose --decoder smollm/135m-instruct --encoder image=timm/efficientnet_lite0 --bridge perceiver/resampler"
    ),
    "plugins": lambda: terminal("zoo plugins", "zoo show efficientnet_lite3"),
}
# name -> commands whose answers come from models: their last digits and near ties belong to the machine
TRANSCRIPTS: dict[str, tuple[str, ...]] = {
    "classify": (
        f"zoo classify {PHOTOS}/chelsea.jpg {PHOTOS}/coffee.jpg --labels 'cat,dog,cup of coffee,pizza,rocket'",
        f"zoo classify {PHOTOS}/sheep.jpg",
    ),
    "demo": ("zoo demo",),
    "generate": (
        "zoo generate 'The capital of France is' --max-tokens 8 --stop .",
        "zoo generate 'What is 2 + 3?' --chat --kernel int4",
        "zoo generate 'The opposite of hot is' --choices cold,warm,blue",
        "zoo classify --text 'win a free prize now' 'lunch at noon?' --labels spam,ham --shots docs/mails.jsonl",
    ),
    "transcribe": (
        f"zoo transcribe {RECORDING}",
        f"zoo transcribe {RECORDING} --format srt --kernel int8",
    ),
    "parity": (),  # a table, measured by a script
}


def filled(text: str, old: str, *, run_models: bool) -> tuple[str, list[str]]:
    """A page with its parts made anew, and the names of those that differ from what stood there.

    Without `run_models`, transcripts of models are left as they are, and their commands alone are compared.
    """
    stale = []
    for name in re.findall(r"<!-- begin (\w+) -->", text):
        found = re.search(rf"<!-- begin {name} -->\n(.*?)\n?<!-- end {name} -->", old, re.DOTALL)
        if name in TRANSCRIPTS and not run_models:
            shown = [line for line in found[1].splitlines() if line.startswith("$ ")] if found else None
            if shown != [f"$ {command}" for command in TRANSCRIPTS[name]]:
                stale.append(name)
            continue
        loose = name in TRANSCRIPTS
        fresh = EXACT[name]() if not loose else parity() if name == "parity" else terminal(*TRANSCRIPTS[name])
        pattern = re.compile(rf"(<!-- begin {name} -->\n).*?(\n?<!-- end {name} -->)", re.DOTALL)
        text = pattern.sub(lambda match, fresh=fresh: f"{match[1]}{fresh}\n{match[2].lstrip()}", text)
        if found is None or _comparable(found[1], loose=loose) != _comparable(fresh, loose=loose):
            stale.append(name)
    return text, stale


def whole_pages(*, check: bool) -> list[str]:
    """Write the pages that are all generated and remove those that no longer are; returns what was not as it should be."""
    fresh = reference.pages() | {reliability.PAGE: reliability.page()}
    complaints = []
    for folder in reference.FOLDERS:
        for path in sorted((ROOT / folder).glob("*.md")):
            if path.relative_to(ROOT).as_posix() not in fresh:
                complaints.append(f"{path.relative_to(ROOT)} is about something that is gone")
                if not check:
                    path.unlink()
    for name, text in fresh.items():
        path = ROOT / name
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            complaints.append(f"{name} is stale")
            if not check:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(text, encoding="utf-8")
    return complaints


def _comparable(text: str, *, loose: bool) -> str:
    """What must not differ: everything, or where numbers depend on the machine the commands, the names of models and of rows."""
    if loose:
        kept = [line for line in text.splitlines() if line.startswith(("$ ", "| ")) or "modalzoo" in line]
        return "\n".join("|".join(line.split("|")[:3]) if line.startswith("| ") else line for line in kept)
    return text.strip()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing, exit 1 if something is stale")
    check = parser.parse_args().check
    run_models = not check or os.environ.get("ZOO_SLOW_TESTS") == "1"
    complaints = []
    if KNOWN.read_text(encoding="utf-8") != known_distributions():
        complaints.append(f"{KNOWN.relative_to(ROOT)} is stale")
        if not check:
            KNOWN.write_text(known_distributions(), encoding="utf-8")
    for page in PAGES:
        path = ROOT / page
        old = path.read_text(encoding="utf-8")
        new, stale = filled(old, old, run_models=run_models)
        complaints += [f"{page}: the part {name!r} is stale" for name in stale]
        if not check:
            path.write_text(new, encoding="utf-8")
    complaints += whole_pages(check=check)
    for complaint in complaints:
        print(f"{complaint}; run: make docs" if check else f"{complaint}: written", file=sys.stderr)
    return 1 if complaints and check else 0


if __name__ == "__main__":
    sys.exit(main())
