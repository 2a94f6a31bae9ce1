"""Encoders and bridges around a decoder, by their names; kept as a recipe beside what was trained."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import nn

from zoo.errors import UsageError, WeightsError, ZooError
from zoo.models.build import Built, open_model, weight_hashes
from zoo.models.composition_parts import (
    every_argument,
    frozen,
    gated_part,
    kept_part,
    look_up,
    make_sense,
    open_bridge,
    recipe_of_names,
)
from zoo.models.drawn import tensors_sha256
from zoo.models.fusion.fused import Fused
from zoo.models.kernels import FLOAT32, apply_kernel
from zoo.models.recipe import FILE, Recipe, read_recipe, write_recipe
from zoo.registry.atomic_write import atomic_folder
from zoo.weights.formats.read import read_state_dict
from zoo.weights.strict_load import refuse_nonfinite, require_fit
from zoo.weights.verified import hashed, require_unchanged, sha256_of

TRAINED = "trained.safetensors"


@dataclass(frozen=True, slots=True, kw_only=True)
class Composition:
    """A composed model, what it is made of, and its recipe.

    module: asked like any decoder. parts: role ("decoder", "image.encoder", "image.bridge", "image.gated") -> what was built.
    kernel: of the decoder. stored: roles of a decoder and encoders that no file holds; they are kept whole beside the recipe.
    """

    module: Fused
    recipe: Recipe
    parts: Mapping[str, Built]
    kernel: str = FLOAT32
    stored: frozenset[str] = frozenset()

    @property
    def trained(self) -> bool:
        """Whether a bridge or a gated layer holds other numbers than it was drawn with."""
        return any(not part.random for role, part in self.parts.items() if role.endswith((".bridge", ".gated")))

    @property
    def built(self) -> Built:
        """The same as one built model, for what takes one."""
        made_of = [*(part.identity for part in self.parts.values()), repr(self.recipe)]
        senses = (f"{sense.bridge} over {sense.encoder}" for sense in self.recipe.senses.values())
        return Built(
            module=self.module,
            found=self.parts["decoder"].found,
            name=" + ".join([self.recipe.decoder, *senses]),
            identity=hashlib.sha256("\n".join(made_of).encode()).hexdigest(),
            files={},
            parts=self.parts,
        )


def compose(
    recipe: Recipe | str | Path | None = None,
    *,
    decoder: str | None = None,
    encoders: Mapping[str, str] | None = None,
    bridge: str | Mapping[str, str] | None = None,
    weights: str | Mapping[str, str | None] | None = "card",
    device: str = "cpu",
    dtype: torch.dtype | None = None,
    kernel: str = FLOAT32,
    **fields: Any,
) -> Composition:
    """One model of a decoder and an encoder for each modality, each joined by a bridge. The decoder and the encoders are frozen.

    recipe: the whole as data, instead of the names; or the folder of a composition, or a recipe file, to open.
    encoders: modality -> name. bridge: a name, or one for each modality.
    weights: of the decoder and the encoders, "card" for those of their cards, None for random ones; or one of the two by name
        ("card" for names left out). kernel: number format of the decoder's linear layers.
    fields: other fields of every sense (`zoo.models.recipe.SenseRecipe`): fusion, every, gate, adjacent, marker, bridge_arguments ...
    Raises UsageError for widths and modalities that do not fit, and what looking up and building the parts raises.
    """
    named = decoder is not None or encoders is not None or bridge is not None or bool(fields)
    if isinstance(recipe, (str, Path)):
        if named or weights != "card":
            raise UsageError("a recipe says all: leave out decoder, encoders, bridge, weights and fields beside it")
        return open_composition(Path(recipe), device=device, dtype=dtype, kernel=kernel)
    if recipe is None:
        recipe = recipe_of_names(decoder, encoders, bridge, fields)
    elif named:
        raise UsageError("a recipe says all: leave out decoder, encoders, bridge and fields beside it")
    elif recipe.trained:
        raise UsageError("the recipe names trained numbers, which lie in its folder: zoo.compose(FOLDER) opens both")
    return _joined(recipe, _opener(recipe, weights, device, dtype), device=device, dtype=dtype, kernel=kernel)


def _opener(
    recipe: Recipe, weights: str | Mapping[str, str | None] | None, device: str, dtype: torch.dtype | None
) -> Callable[[str], Built]:
    """What opens a part by its name, with its weights. Raises UsageError for a part that does not fit, and weights of one that is none."""
    look_up(recipe)
    names = {recipe.decoder, *(sense.encoder for sense in recipe.senses.values())}
    if isinstance(weights, Mapping) and weights.keys() - names:
        unknown = min(weights.keys() - names)
        raise UsageError(f"weights names {unknown}, the parts that have some are {', '.join(sorted(names))}")

    def open_part(name: str) -> Built:
        of_this = weights.get(name, "card") if isinstance(weights, Mapping) else weights
        return open_model(name, weights=of_this, device=device, dtype=dtype)

    return open_part


def _joined(
    recipe: Recipe, open_part: Callable[[str], Built], *, device: str, dtype: torch.dtype | None, kernel: str
) -> Composition:
    """The parts, opened and joined."""
    built: dict[str, Built] = {"decoder": open_part(recipe.decoder)}
    language: Any = frozen(built["decoder"].module)
    for name in ("width", "layers", "new_cache"):
        if not hasattr(language, name):
            raise UsageError(
                f"{recipe.decoder} takes no senses: a decoder that does has {name} (zoo.api.Decoder); take another"
            )
    if kernel != FLOAT32:
        apply_kernel(language, kernel)
    senses = {}
    opened: dict[str, Built] = {}
    for modality, sense in recipe.senses.items():
        if sense.encoder not in opened:
            opened[sense.encoder] = open_part(sense.encoder)
        built[f"{modality}.encoder"] = opened[sense.encoder]
        built[f"{modality}.bridge"] = open_bridge(sense, built[f"{modality}.encoder"], modality, language, device, dtype)
        senses[modality] = make_sense(sense, built, modality, language, device, dtype)
        if senses[modality].gated:
            built[f"{modality}.gated"] = gated_part(senses[modality], built[f"{modality}.bridge"], modality)
    module = Fused(language, senses).eval()
    recipe = replace(
        recipe,
        decoder=built["decoder"].name,
        senses={
            modality: replace(
                sense,
                encoder=built[f"{modality}.encoder"].name,
                bridge=built[f"{modality}.bridge"].found.card.name,
                bridge_arguments=every_argument(sense, built[f"{modality}.bridge"]),
            )
            for modality, sense in recipe.senses.items()
        },
    )
    stored = frozenset(role for role in built if not role.endswith((".bridge", ".gated")) and built[role].random)
    return Composition(module=module, recipe=recipe, parts=built, kernel=kernel, stored=stored)


def save(composition: Composition, folder: str | Path) -> Recipe:
    """Write the recipe and what was trained into a folder, both or neither; frozen models are named, with the sha256 of their files.

    A model with random weights, which no file holds, is stored whole. An older composition in the folder is replaced, and what else lies
    there stays. Returns the recipe as written. Raises UsageError for a part that is named by its file and may have been trained all the same,
    and for numbers that a kernel has rounded; ZooError where the disk refuses, which leaves the older composition.
    """
    folder = Path(folder)
    for role, module in _with_files(composition).items():
        if any(one.requires_grad for one in module.parameters()):
            raise UsageError(
                f"{role} is kept by the name of its file, and a parameter of it requires a gradient: what it has learnt would be lost; "
                f"freeze it (requires_grad_(False)) if it was not trained"
            )
    if composition.kernel != FLOAT32 and "decoder" in composition.stored:
        raise UsageError(
            f"the decoder's weights are in no file, and kernel {composition.kernel} has rounded them: save the composition before"
        )
    state: dict[str, torch.Tensor] = {}
    places: set[int] = set()
    for name, tensor in _own_state(composition).items():
        place = tensor.untyped_storage().data_ptr()
        state[name] = tensor.detach().clone() if place in places else tensor.detach().contiguous()
        places.add(place)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with atomic_folder(folder) as staging:
            return _write(composition, state, staging)
    except (OSError, SafetensorError) as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or error
        raise ZooError(
            f"{folder}: the composition cannot be written ({reason}); what was there before is there still"
        ) from error


def _write(composition: Composition, state: dict[str, torch.Tensor], folder: Path) -> Recipe:
    """Fill a folder; returns the recipe as written."""
    save_file(state, folder / TRAINED)
    providers = {part.found.card.provider for part in composition.parts.values()}
    recipe = replace(
        composition.recipe,
        frozen=_hashes(composition),
        trained={"file": TRAINED, "sha256": sha256_of(folder / TRAINED)},
        drawn={role: _sha256_of_part(role, state) for role in _own_roles(composition) if composition.parts[role].random},
        requires=tuple(sorted(f"{one.distribution}=={one.version}" for one in providers)),
    )
    write_recipe(recipe, folder / FILE)
    (folder / TRAINED).chmod((folder / FILE).stat().st_mode)  # the library keeps it to its owner
    return recipe


def open_composition(
    path: Path, *, device: str = "cpu", dtype: torch.dtype | None = None, kernel: str = FLOAT32
) -> Composition:
    """The composition of a folder that `save` wrote, or of a recipe file that names no trained numbers.

    Raises UsageError for a recipe that is none, WeightsError when a frozen model has other files now or the trained numbers are
    not those of the recipe, and what `compose` raises.
    """
    recipe = read_recipe(path)
    folder = path if path.is_dir() else path.parent
    composition = compose(
        replace(recipe, frozen={}, trained={}, drawn={}),
        weights=_kept_weights(recipe) if recipe.trained else "card",
        device=device,
        dtype=dtype,
        kernel=FLOAT32 if recipe.trained else kernel,  # what the file holds of a drawn decoder comes first
    )
    if not recipe.trained:
        return composition
    _check_frozen(composition, recipe, path)
    if recipe.trained.keys() != {"file", "sha256"}:
        raise UsageError(f"{path}: [trained] has file and sha256, got {', '.join(sorted(recipe.trained))}: save it again")
    file = folder / Path(recipe.trained["file"]).name
    if not file.is_file():
        raise WeightsError(f"{path} names {file.name}, and there is no such file in {folder}")
    located = hashed(file)
    if located.sha256 != recipe.trained["sha256"]:
        raise WeightsError(
            f"{file} is not the file that {path} was saved with: its sha256 differs; save the composition again"
        )
    state = read_state_dict(file)
    refuse_nonfinite(state, str(file))
    own = _own_state(composition)
    require_fit(own, state, str(file))
    with torch.no_grad():
        for name, tensor in own.items():
            tensor.copy_(state[name])
    require_unchanged(located)
    drawn = {role for role, sha256 in recipe.drawn.items() if _sha256_of_part(role, state) == sha256}
    parts = {
        role: kept_part(part, recipe.trained["sha256"], drawn=role in drawn) if role in _own_roles(composition) else part
        for role, part in composition.parts.items()
    }
    if kernel != FLOAT32:
        apply_kernel(composition.module.decoder, kernel)
    return replace(composition, recipe=recipe, kernel=kernel, parts=parts)


def describe_composition(composition: Composition) -> str:
    """The house, one line a part: widths, parameters frozen and trained, memory."""
    module, recipe = composition.module, composition.recipe
    rows = [("part", "model", "into the decoder", "trained", "frozen", "MB")]
    rows.append(
        (
            "decoder",
            recipe.decoder,
            f"width {module.decoder.width}, {module.decoder.layers} layers",
            *_counts(module.decoder),
        )
    )
    for modality, sense in recipe.senses.items():
        built: Any = module.senses[modality]
        rows.append((f"{modality} encoder", sense.encoder, "", *_counts(built.encoder)))
        rows.append((f"{modality} bridge", sense.bridge, f"width {built.bridge.output_width}", *_counts(built.bridge)))
        how = "among the tokens" if built.spliced else f"before layers {', '.join(built.gated)}"
        rows.append((f"{modality} {sense.fusion}", "", how, *_counts(built.gated)))
    rows.append(("all", "", "", *_counts(module)))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join(
        "  ".join(cell.rjust(width) if column > 2 else cell.ljust(width) for column, (cell, width) in enumerate(zip(row, widths, strict=True))).rstrip()
        for row in rows
    )  # fmt: skip


def trained_parameters(module: Fused) -> Iterator[nn.Parameter]:
    """What is trained: bridges and gated layers."""
    return (parameter for parameter in module.parameters() if parameter.requires_grad)


def _with_files(composition: Composition) -> dict[str, nn.Module]:
    """By role, the decoder and the encoders whose numbers are those of a file."""
    senses: Any = composition.module.senses
    modules = {"decoder": composition.module.decoder} | {
        f"{modality}.encoder": sense.encoder for modality, sense in senses.items()
    }
    return {role: module for role, module in modules.items() if role not in composition.stored}


def _own_roles(composition: Composition) -> list[str]:
    """Roles of what no file of a frozen part holds: bridges and gated layers, and parts that were drawn."""
    return [role for role in composition.parts if role in composition.stored or role.endswith((".bridge", ".gated"))]


def _prefix(role: str) -> str:
    """How the names of a part's tensors begin."""
    return "decoder." if role == "decoder" else f"senses.{role}."


def _sha256_of_part(role: str, state: Mapping[str, torch.Tensor]) -> str:
    """sha256 of the tensors of a part, as they lie in the file."""
    return tensors_sha256((name, state[name]) for name in sorted(state) if name.startswith(_prefix(role)))


def _own_state(composition: Composition) -> dict[str, torch.Tensor]:
    """Tensors of `_own_roles`."""
    prefixes = tuple(_prefix(role) for role in _with_files(composition))
    return {name: tensor for name, tensor in composition.module.state_dict().items() if not name.startswith(prefixes)}


def _hashes(composition: Composition) -> dict[str, dict[str, str]]:
    """Name -> role -> sha256 of the files of the decoder and the encoders."""
    hashes: dict[str, dict[str, str]] = {}
    for role in _with_files(composition):
        hashes |= weight_hashes(composition.parts[role])
    return hashes


def _kept_weights(recipe: Recipe) -> dict[str, str | None]:
    """What a saved recipe names is that of the card; what it stores itself is drawn first."""
    names = [recipe.decoder, *(sense.encoder for sense in recipe.senses.values())]
    return {name: "card" if name in recipe.frozen else None for name in names}


def _check_frozen(composition: Composition, recipe: Recipe, path: Path) -> None:
    now = _hashes(composition)
    for name, files in recipe.frozen.items():
        for role, sha256 in files.items():
            if now.get(name, {}).get(role) != sha256:
                raise WeightsError(
                    f"{path} was trained with {name} whose {role} file has sha256 {sha256[:16]}, the one here has "
                    f"{now.get(name, {}).get(role, 'none')[:16]}: its answers would mean nothing; get the same file, or train again"
                )


def _counts(module: nn.Module) -> tuple[str, str, str]:
    parameters = list(module.parameters())
    trained = sum(one.numel() for one in parameters if one.requires_grad)
    size = sum(one.numel() * one.element_size() for one in (*parameters, *module.buffers()))
    return f"{trained:,}", f"{sum(one.numel() for one in parameters) - trained:,}", f"{size / 1e6:.1f}"
