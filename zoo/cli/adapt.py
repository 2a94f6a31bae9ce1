"""`zoo adapt`: train an adapter, look at one, merge it into weights, hand it to HF PEFT."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zoo.cli.options import finite_number, prepare_torch
from zoo.cli.output import add_output_options, print_json, say, warn_of_random_weights
from zoo.errors import UsageError

if TYPE_CHECKING:
    from zoo.models.build import ModelSpec


def add_commands(commands: Any) -> None:
    command = commands.add_parser(
        "adapt",
        help="train an adapter on a model, merge it, or exchange it with HF PEFT",
        description="zoo adapt ACTION --help explains an action.",
    )
    actions = command.add_subparsers(dest="action", metavar="ACTION", required=True)
    train = actions.add_parser("train", help="train one on examples", description="Everything of the model stays as it is.")
    train.add_argument(
        "path",
        type=Path,
        metavar="DATA",
        help="a .jsonl of prompt and completion (a decoder), or a folder with one folder of images for each class (an encoder)",
    )
    _add_model(train, out="the adapter, one file")
    train.add_argument("--method", metavar="NAME", default="lora", help="how it adapts (zoo adapt list); lora if left out")
    train.add_argument(
        "--option",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="of the method, as r=16 or targets=query,value; may be repeated",
    )
    train.add_argument("--steps", type=int, metavar="N", default=200, help="batches to train on (200)")
    train.add_argument("--batch-size", type=int, metavar="N", help="examples of a batch (8; images 32)")
    train.add_argument("--learning-rate", type=finite_number, metavar="X", help="what suits the method if left out")
    train.add_argument(
        "--held-out", type=finite_number, metavar="SHARE", default=0.1, help="of the examples, that only measures (.1)"
    )
    train.set_defaults(run=_train)
    listing = actions.add_parser(
        "list",
        help="list the methods, or say what a file holds",
        description="Without FILE: the methods that are installed.",
    )
    listing.add_argument(
        "path", nargs="?", type=Path, metavar="FILE", help="an adapter: a file of ours, a folder of HF PEFT's"
    )
    listing.set_defaults(run=_list)
    merge = actions.add_parser(
        "merge",
        help="write the weights of the model with the adapter in them",
        description="What zoo ... --model NAME --weights PATH then runs needs no adapter.",
    )
    export = actions.add_parser(
        "export",
        help="write a folder that HF PEFT reads",
        description="For the model as the library builds it where it comes from, under that library's names of its layers.",
    )
    for action, out, own_run in ((merge, "the weights, one file", _merge), (export, "the folder", _export)):
        action.add_argument("path", type=Path, metavar="FILE", help="an adapter: a file of ours, a folder of HF PEFT's")
        _add_model(action, out=out)
        action.add_argument("--other-base", action="store_true", help="take an adapter that was made for other weights")
        action.set_defaults(run=own_run)
    for action in actions.choices.values():
        add_output_options(action)


def _add_model(action: argparse.ArgumentParser, *, out: str) -> None:
    action.add_argument("--model", metavar="NAME", required=True, help="the model that is adapted")
    action.add_argument("--weights", metavar="PATH", default="card", help="a local file for the same architecture, or none")
    action.add_argument("--out", type=Path, metavar="PATH", required=True, help=f"write there: {out}")
    action.add_argument("--device", default="cpu")
    action.add_argument("--threads", type=int, help="threads for computing")
    action.add_argument("--seed", type=int, default=0, help="of all that is random (0)")


def _prepare(arguments: argparse.Namespace) -> None:
    if arguments.out.exists():
        raise UsageError(f"{arguments.out} is there already: name another, nothing is overwritten")
    prepare_torch(arguments)


def _spec(arguments: argparse.Namespace) -> ModelSpec:
    from zoo.models.build import ModelSpec

    weights = None if arguments.weights == "none" else arguments.weights
    return ModelSpec(name=arguments.model, weights=weights, device=arguments.device)


def read_options(given: list[str]) -> dict[str, Any]:
    """NAME=VALUE -> numbers where they are some, yes and no as such, lists where there are commas. Raises UsageError."""
    options: dict[str, Any] = {}
    for text in given:
        name, sign, value = text.partition("=")
        if not (name and sign and value):
            raise UsageError(f"--option takes NAME=VALUE, as r=16, got {text!r}")
        options[name.replace("-", "_")] = [_value(one) for one in value.split(",")] if "," in value else _value(value)
    return options


def _value(text: str) -> Any:
    if text in ("true", "false"):
        return text == "true"
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def _train(arguments: argparse.Namespace) -> int:
    from tqdm import tqdm

    from zoo.tasks.adapter_training import TrainingOptions, train_adapter

    _prepare(arguments)
    with tqdm(total=arguments.steps, unit="step", file=sys.stderr, disable=None) as bar:

        def report(step: int, loss: float) -> None:
            bar.update(step - bar.n)
            bar.set_postfix(loss=f"{loss:.3f}")

        trained = train_adapter(
            arguments.path,
            model=_spec(arguments),
            method=arguments.method,
            training=TrainingOptions(
                steps=arguments.steps,
                batch_size=arguments.batch_size,
                learning_rate=arguments.learning_rate,
                held_out=arguments.held_out,
                seed=arguments.seed,
            ),
            report=report,
            **read_options(arguments.option),
        )
    trained.adapters.save(trained.name, arguments.out)
    document = training_document(trained, arguments.out)
    warn_of_random_weights(trained.provenance)
    code = 130 if trained.fitted.stopped == "interrupted" else 0
    if arguments.json:
        print_json(document)
        return code
    say(arguments.out)
    first, last = document["held_out_loss_before"], document["held_out_loss"]
    say(
        f"zoo: {document['method']} on {arguments.model}: {trained.parameters:,} parameters ({trained.share:.3%}), {trained.fitted.steps} steps on "
        f"{trained.examples} examples in {trained.fitted.seconds:.0f} s"
        + (f"; held-out loss {first:.3f} -> {last:.3f} nats ({trained.held_out} examples)" if last is not None else "")
        + {"interrupted": "; interrupted, the best so far is kept", "patience": "; it had stopped getting better"}.get(
            trained.fitted.stopped, ""
        ),
        file=sys.stderr,
    )
    return code


def training_document(trained: Any, out: Path) -> dict[str, Any]:
    """The JSON document of a training."""
    adapter, fitted = trained.adapters[trained.name], trained.fitted
    return {
        "model": trained.provenance.model,
        "random_weights": trained.provenance.random_weights,
        "random_parts": list(trained.provenance.random_parts),
        "weights": trained.provenance.weights,
        "method": adapter.method,
        "options": adapter.options,
        "file": str(out),
        "parameters": trained.parameters,
        "share": trained.share,
        "examples": trained.examples,
        "held_out": trained.held_out,
        "held_out_loss_before": fitted.held_out[0][1] if fitted.held_out else None,
        "held_out_loss": fitted.best if fitted.held_out else None,
        "steps": fitted.steps,
        "stopped": fitted.stopped,
        "seconds": fitted.seconds,
    }


def _list(arguments: argparse.Namespace) -> int:
    if arguments.path is None:
        from zoo.registry.lookup import cards

        rows = [
            {"name": card.name, "applies_to": list(card.applies_to), "summary": card.summary, "paper": card.paper}
            for card in cards(kind="adapter")
        ]
        if arguments.json:
            print_json({"methods": rows})
            return 0
        width = max((len(str(row["name"])) for row in rows), default=0)
        for row in rows:
            say(f"{row['name']:{width}}  {row['summary']}")
        if not rows:
            say("zoo: no method is installed: pip install modalzoo-adapters", file=sys.stderr)
        return 0
    if arguments.path.is_dir():
        return _list_folder(arguments)
    from zoo.adapters.files import read

    record = read(arguments.path)
    count = sum(one.numel() for one in record.state.values())
    if arguments.json:
        print_json(
            {
                "file": str(arguments.path),
                "method": record.method,
                "options": record.options,
                "parameters": count,
                "base": record.base,
                "drawn": record.drawn,
            }
        )
        return 0
    weights = record.base.get("weights", record.base.get("vectors", "?"))[:12]
    untrained = "; it was drawn and never trained" if record.drawn else ""
    say(f"{record.method}, {count:,} numbers, for {record.base.get('model', 'a model')} with weights {weights}{untrained}")
    for name, value in record.options.items():
        say(f"  {name} = {value}")
    return 0


def _list_folder(arguments: argparse.Namespace) -> int:
    """What a folder of HF PEFT's holds."""
    from zoo.adapters.peft import read_config, read_tensors

    config, state = read_config(arguments.path), read_tensors(arguments.path)
    count = sum(one.numel() for one in state.values())
    if arguments.json:
        print_json(
            {"folder": str(arguments.path), "peft_type": config.get("peft_type"), "options": config, "parameters": count}
        )
        return 0
    say(f"{config.get('peft_type')} of HF PEFT, {count:,} numbers, for {config.get('base_model_name_or_path')}")
    for name in (
        "r",
        "lora_alpha",
        "use_dora",
        "use_rslora",
        "target_modules",
        "feedforward_modules",
        "num_virtual_tokens",
    ):
        if config.get(name) is not None:
            say(f"  {name} = {config[name]}")
    return 0


def _opened(arguments: argparse.Namespace) -> tuple[Any, dict[str, Any]]:
    """The adapters of the model, that of the file active, and what the document says of parameters that were drawn."""
    from zoo.adapters.adapt import adapters_of
    from zoo.models.build import open_model
    from zoo.models.provenance import provenance_of

    _prepare(arguments)
    built = open_model(_spec(arguments))
    adapters = adapters_of(built)
    adapters.load(arguments.path, name=arguments.path.stem, other_base=arguments.other_base)
    made_of = provenance_of(built)
    warn_of_random_weights(made_of)
    return adapters, {"random_weights": made_of.random_weights, "random_parts": list(made_of.random_parts)}


def _merge(arguments: argparse.Namespace) -> int:
    from zoo.weights.writing import write_module

    adapters, drawn = _opened(arguments)
    adapters.merge()
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    write_module(arguments.out, adapters.model)
    if arguments.json:
        print_json({"model": arguments.model, **drawn, "file": str(arguments.out)})
        return 0
    say(arguments.out)
    say(f"zoo: use them with --model {arguments.model} --weights {arguments.out}", file=sys.stderr)
    return 0


def _export(arguments: argparse.Namespace) -> int:
    adapters, drawn = _opened(arguments)
    adapters.export(arguments.path.stem, arguments.out)
    if arguments.json:
        print_json({"model": arguments.model, **drawn, "folder": str(arguments.out)})
        return 0
    say(arguments.out)
    return 0
