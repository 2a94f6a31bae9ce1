"""How the house stands, in numbers: `make structure` prints them, and tests/test_structure.py holds them to their limits."""

import ast
import itertools
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
LONGEST_FILE, LONGEST_FUNCTION, MOST_ARGUMENTS, SAME_LINES, MOST_LOOSE = 400, 60, 10, 10, 5
CODE = ("zoo/**/*.py", "plugins/*/zoo_*/**/*.py", "adapters/zoo_*/**/*.py")
# A model in one file repeats what other models do, so that each can be read alone.
ONE_FILE_MODELS = ("plugins/lm/zoo_lm/", "plugins/perceiver/zoo_perceiver/")


def sources(*patterns: str) -> list[Path]:
    """Files of the checkout, sorted."""
    return sorted(path for pattern in patterns or CODE for path in ROOT.glob(pattern))


def shown(path: Path) -> str:
    return str(path.relative_to(ROOT))


def loose_modules() -> list[str]:
    """Modules of `zoo/` that stand in no room."""
    return [shown(path) for path in sources("zoo/*.py")]


def rooms() -> list[str]:
    return sorted({path.relative_to(ROOT).parts[1] for path in sources("zoo/*/**/*.py")})


def long_files() -> list[str]:
    return [f"{shown(path)} {count}" for path in sources() if (count := path.read_text().count("\n")) > LONGEST_FILE]


def functions(path: Path) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    tree = ast.parse(path.read_text())
    return (node for node in ast.walk(tree) if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)))


def long_functions() -> list[str]:
    return [
        f"{shown(path)} {node.name} {count}"
        for path in sources("zoo/**/*.py")
        for node in functions(path)
        if (count := (node.end_lineno or 0) - node.lineno + 1) > LONGEST_FUNCTION
    ]


def many_arguments() -> list[str]:
    """Functions with more arguments than one can keep in mind. Builders of cards are the exception: their arguments are the card's fields."""
    found = []
    for path in sources():
        for node in functions(path):
            named = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
            count = len([argument for argument in named if argument.arg not in ("self", "cls")])
            if count > MOST_ARGUMENTS and not (shown(path).startswith("plugins/") and _builds(node)):
                found.append(f"{shown(path)} {node.name} {count}")
    return found


def _builds(node: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    """Whether it returns a module: a builder of a card, or what several builders share."""
    annotation = ast.unparse(node.returns) if node.returns is not None else ""
    return annotation in {"nn.Module", "Decoder", "EncoderDecoder", "Bidirectional"}


def module_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports() -> dict[str, set[str]]:
    """Module of the core -> those that it imports, wherever in the file; what only type checkers read does not count."""
    known = {module_of(path): path for path in sources("zoo/**/*.py")}
    graph: dict[str, set[str]] = {}
    for module, path in known.items():
        found: set[str] = set()
        for node in _run_nodes(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                found |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                inner = {f"{node.module}.{alias.name}" for alias in node.names}
                found |= (inner & known.keys()) or {node.module}
        graph[module] = (found & known.keys()) - {module}
    return graph


def _run_nodes(node: ast.AST) -> Iterator[ast.AST]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING":
            yield from (node for other in child.orelse for node in (other, *_run_nodes(other)))
            continue
        yield child
        yield from _run_nodes(child)


def circles(graph: dict[str, set[str]]) -> list[str]:
    """Groups of nodes that reach each other."""

    def reached(start: str) -> set[str]:
        seen: set[str] = set()
        waiting = list(graph.get(start, ()))
        while waiting:
            node = waiting.pop()
            if node not in seen:
                seen.add(node)
                waiting += graph.get(node, ())
        return seen

    reach = {node: reached(node) for node in graph}
    groups = {frozenset(other for other in reach[node] if node in reach[other]) for node in graph if node in reach[node]}
    return sorted(" <-> ".join(sorted(group)) for group in groups)


def out_of_the_front_door() -> list[str]:
    """Modules of the core that import what the package offers to users: the whole of `zoo`, `zoo.api`, or by relative names."""
    found = []
    for path in sources("zoo/*/**/*.py"):
        for node in _run_nodes(ast.parse(path.read_text())):
            whole = isinstance(node, ast.Import) and any(alias.name in ("zoo", "zoo.api") for alias in node.names)
            names = {alias.name for alias in node.names} if isinstance(node, ast.ImportFrom) else set()
            offered = isinstance(node, ast.ImportFrom) and (
                node.level > 0 or node.module == "zoo.api" or (node.module == "zoo" and names != {"__version__"})
            )
            if whole or offered:
                found.append(f"{shown(path)}: {ast.unparse(node)}")
    return found


def arrows(graph: dict[str, set[str]]) -> dict[str, set[str]]:
    """Room -> the rooms that it imports from."""

    def room(module: str) -> str:
        return module.split(".")[1] if "." in module else module

    found: dict[str, set[str]] = defaultdict(set)
    for module, others in graph.items():
        for other in others:
            if room(module) != room(other) and "zoo" not in (room(module), room(other)):
                found[room(module)].add(room(other))
    return dict(found)


def same_lines() -> list[str]:
    """Pairs of places that share ten lines to the letter, blank lines, comments, imports and lists of arguments left out."""
    places: dict[tuple[str, ...], list[tuple[str, int]]] = defaultdict(list)
    for path in sources(*CODE, "benchmarks/*.py", "docs/*.py"):
        if shown(path).startswith(ONE_FILE_MODELS):
            continue
        heads = {
            line for node in functions(path) for line in range(node.lineno, node.body[0].lineno)
        }  # the options on offer
        kept = [
            (number, line.strip())
            for number, line in enumerate(path.read_text().splitlines(), start=1)
            if number not in heads and line.strip(" ()[]{},") and not line.lstrip().startswith(("#", "import ", "from "))
        ]
        for start in range(len(kept) - SAME_LINES + 1):
            window = kept[start : start + SAME_LINES]
            places[tuple(line for _, line in window)].append((shown(path), window[0][0]))
    pairs = {
        tuple(sorted((f"{one[0]}", f"{other[0]}")))
        for found in places.values()
        for one, other in itertools.combinations(found, 2)
        if one[0] != other[0] or abs(one[1] - other[1]) >= SAME_LINES
    }
    return sorted(" ~ ".join(pair) for pair in pairs)


def main() -> None:
    graph = imports()
    counts = {
        f"loose modules in zoo/ (at most {MOST_LOOSE})": loose_modules(),
        "rooms": rooms(),
        "arrows between rooms": [f"{room} -> {other}" for room, others in arrows(graph).items() for other in others],
        "circles of imports (0)": circles(graph),
        f"files over {LONGEST_FILE} lines (0)": long_files(),
        f"functions of zoo/ over {LONGEST_FUNCTION} lines (0)": long_functions(),
        f"functions of over {MOST_ARGUMENTS} arguments, builders apart (0)": many_arguments(),
        f"pairs of {SAME_LINES} same lines outside one-file models (0)": same_lines(),
    }
    for what, found in counts.items():
        print(f"{len(found):>3}  {what}")
        if "(0)" in what:
            print(*(f"       {one}" for one in found), sep="\n" if found else "")
    lines = sum(path.read_text().count("\n") for path in sources("zoo/**/*.py"))
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False)
    print(f"{len(graph)} modules, {lines:,} lines in zoo/, at {commit.stdout.strip() or 'no commit'}", file=sys.stderr)


if __name__ == "__main__":
    main()
