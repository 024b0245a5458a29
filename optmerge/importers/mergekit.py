"""A mergekit merge configuration as a recipe that ``optmerge merge`` runs and a search can go on from.

Every tensor's values are found by mergekit's own rules, from the names in the models' headers; tensors with the same
values become a group.

    translation = recipe_from_mergekit(Path("merge.yml"), to=Path("recipe.yaml"))
    translation.text, translation.notes.lines()
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from optmerge.config.reading import read_yaml
from optmerge.errors import ConfigError, did_you_mean
from optmerge.export.mergekit_layouts import LAYOUTS
from optmerge.importers.mergekit_config import MergekitConfig, parse_mergekit
from optmerge.importers.mergekit_methods import BEYOND, RULES, Names, Row, Rule, Term
from optmerge.importers.mergekit_settings import has_gradient
from optmerge.importers.mergekit_values import Place, TensorValues, values_of
from optmerge.importers.notes import Notes, comment
from optmerge.importers.references import expert_names, reference_from
from optmerge.importers.source import read_source
from optmerge.importers.translation import Translation
from optmerge.merging.merge import rows_of_parameters
from optmerge.merging.recipe import EVERYTHING, FORMAT, Recipe
from optmerge.models.family import Family, open_family

_BEFORE = ("embed", ".wte.", ".wpe.")
"""What mergekit's definitions of the architectures in `LAYOUTS` have before the layers; a test compares them."""


def recipe_from_mergekit(file: Path, *, to: Path, allow_pickle: bool = False) -> Translation:
    """Translate a configuration.

    Args:
        file: mergekit's YAML. Folders of models in it are relative to the working directory, as mergekit has it.
        to: Where the recipe will be; it is not written.
        allow_pickle: Read ``pytorch_model.bin`` where there are no safetensors.

    Raises:
        ConfigError: It is no configuration of a merge, or a recipe cannot say the same.
        ModelError: A model is missing or does not fit the others.
    """
    notes = Notes()
    config = parse_mergekit(read_yaml(read_source(file), source=str(file)), source=str(file), notes=notes)
    rule = _rule(config)
    names = _names(config, rule)
    folder = to.parent
    family = open_family(
        reference_from(names.base, folder),
        {name: reference_from(reference, folder) for reference, name in names.experts.items()},
        relative_to=folder,
        heads="merged",
        allow_pickle=allow_pickle,
        check_values=False,
    )
    values = values_of(config, rule.parameters, _places(family, config), num_layers=family.num_layers)
    rows, names = _rows(values, rule, names, config)
    by_parameter = _by_parameter(rows, family)
    body = _body(config, names, by_parameter, family, folder)
    _note(config, rule, names, notes)
    text = _head(file, to, notes) + yaml.safe_dump(
        body, sort_keys=False, default_flow_style=None, width=120, allow_unicode=True
    )
    rows_of_parameters(Recipe.from_yaml(text, to), family)  # what is written can be read
    return Translation(text, notes)


def _rule(config: MergekitConfig) -> Rule:
    if config.method in BEYOND:
        raise ConfigError(
            f"optmerge has no {config.method}: {BEYOND[config.method]}. Make this merge with mergekit; its result "
            "can be an expert of a search. See `optmerge ls methods` for what there is instead."
        )
    if config.method not in RULES:
        raise ConfigError(
            f"merge_method is {config.method!r}, which mergekit 0.1.5 does not have; expected one of "
            f"{', '.join(RULES)}.{did_you_mean(config.method, RULES)}"
        )
    rule = RULES[config.method]
    if rule.base == "required" and config.base is None and not all(part.base for part in config.slices):
        raise ConfigError(f"{config.method} needs a base_model, and the file names none. Add `base_model: ...`.")
    return rule


def _names(config: MergekitConfig, rule: Rule) -> Names:
    """The recipe's base and experts.

    Where mergekit has no base, the first model is the recipe's, since a recipe adds to one.
    """
    base = config.base or config.slices[0].base or config.models[0]
    listed = list(config.models)
    if config.base is not None and config.base not in listed and rule.base_takes_part:
        listed.append(config.base)
    alone = [model for model in listed if model != base]
    whole = rule.base_takes_part or (config.base is None and rule.base == "optional" and rule.all_alike)
    return Names(base, expert_names(listed if whole or not alone else alone))


def _places(family: Family, config: MergekitConfig) -> dict[str, Place]:
    """Where every tensor on the base's disk stands.

    Raises:
        ConfigError: There are several stacks of layers, and the configuration tells layers apart.
    """
    roles = [parameter.role for parameter in family.parameters.values()]
    stacks = getattr(family.configs["base"], "is_encoder_decoder", False) or any(role.part for role in roles)
    if stacks and (_tells_layers_apart(config)):
        raise ConfigError(
            "The models have several stacks of layers (an encoder and a decoder, or a vision tower), and the "
            "configuration has slices or gradients over layers, which mergekit reads stack by stack. Write the values "
            "with filters, by tensor name."
        )
    known = (getattr(family.configs["base"], "architectures", None) or [""])[0] in LAYOUTS
    places = {}
    for name, parameter in family.parameters.items():
        layer = None if stacks else parameter.role.layer
        for disk in family.disk_names(name):
            if layer is not None:
                places[disk] = Place("layer", layer)
            elif not known:
                places[disk] = Place("outside")
            else:
                places[disk] = Place("before" if any(part in disk for part in _BEFORE) else "after")
    return places


def _tells_layers_apart(config: MergekitConfig) -> bool:
    settings = [config.parameters, config.module, *(part.parameters for part in config.slices)]
    settings += [source.parameters for part in config.slices for source in part.sources]
    gradients = any(has_gradient(value) for each in settings for value in each.values())
    return gradients or any(source.layers is not None for part in config.slices for source in part.sources)


def _rows(
    values: Mapping[str, TensorValues], rule: Rule, names: Names, config: MergekitConfig
) -> tuple[dict[str, Row], Names]:
    """Every tensor's row, and the names that they use: a sum of whole models may have the base as one."""
    for tensor, each in values.items():
        _check_models(each, rule, names, config, tensor)
    rows = {tensor: rule.row(each, names) for tensor, each in values.items()}
    sums = any(dict(term.method).get("name") == "linear" for row in rows.values() for term in row)
    if sums and names.base in config.models and names.base not in names.experts:
        names = Names(names.base, expert_names(config.models))
        rows = {tensor: rule.row(each, names) for tensor, each in values.items()}
    return rows, names


def _check_models(values: TensorValues, rule: Rule, names: Names, config: MergekitConfig, tensor: str) -> None:
    if rule.base == "required" and values.base is None:
        raise ConfigError(
            f"{config.method} needs its base among the sources of every slice, and for {tensor} they are "
            f"{', '.join(values.models)}. Add the base with the same layer_range and without parameters."
        )
    if not rule.all_alike:
        own_base = rule.base == "required" and config.method != "slerp" and values.base != names.base
    else:
        wanted = values.models if rule.base_takes_part else values.experts
        same = set(wanted) == set(names.experts) if rule.base_takes_part else wanted == tuple(names.experts)
        if not same:
            raise ConfigError(
                f"{config.method} looks at all of its models together, and for {tensor} they are {', '.join(wanted)}, "
                f"not {', '.join(names.experts)} as elsewhere. Use the same models in the same order in every slice."
            )
        own_base = values.base is not None and values.base != names.base
    if own_base:
        raise ConfigError(
            f"A slice has the base {values.base} and the recipe {names.base}; a recipe has one base. Make one merge "
            "per base, and put their layers together by passthrough."
        )


def _by_parameter(rows: Mapping[str, Row], family: Family) -> dict[str, Row]:
    """The rows by parameter, for some have several tensors on disk.

    Raises:
        ConfigError: The tensors of one parameter have different rows.
    """
    found = {}
    for parameter in family.parameters:
        disk = family.disk_names(parameter)
        different = [name for name in disk if rows[name] != rows[disk[0]]]
        if different:
            raise ConfigError(
                f"The tensors {disk[0]} and {different[0]} have different values, and transformers keeps both in one "
                f"parameter, {parameter}, which has one coefficient. Give them the same."
            )
        found[parameter] = rows[disk[0]]
    return found


def _body(
    config: MergekitConfig, names: Names, rows: Mapping[str, Row], family: Family, folder: Path
) -> dict[str, Any]:
    """The recipe as plain data."""
    body: dict[str, Any] = {
        "optmerge_recipe": FORMAT,
        "base": reference_from(names.base, folder),
        "experts": {name: reference_from(reference, folder) for reference, name in names.experts.items()},
    }
    terms = _terms(rows.values(), names)
    if not terms:  # everything stays as it is in the base
        terms = [Term(next(iter(names.experts.values())))]
    titles = _titles(terms)
    if [titles[term] for term in terms] != list(names.experts.values()) or any(term.method for term in terms):
        body["directions"] = [_direction(term, title) for term, title in titles.items()]
    body |= {"heads": "merged", "dtype": config.out_dtype or config.dtype or "auto"}
    body["tokenizer"] = _tokenizer(config, names)
    groups = _groups(rows, family)
    coefficients = [{title: row.get(term, 0.0) for term, title in titles.items()} for row, _ in groups]
    if len(groups) == 1:
        body["coefficients"] = coefficients[0]
    else:
        body["groups"] = [
            {**group, "coefficients": values} for (_, group), values in zip(groups, coefficients, strict=True)
        ]
    return body


def _terms(rows: Iterable[Row], names: Names) -> list[Term]:
    """All directions: task vectors and parts in the order of the experts, whole methods as they come."""
    order = list(names.experts.values())
    met = list(dict.fromkeys(term for row in rows for term in row))
    return sorted(met, key=lambda term: order.index(term.expert) if term.expert else len(order))


def _titles(terms: Sequence[Term]) -> dict[Term, str]:
    """What each direction is called: an expert, ``dare:math``, ``ties``, numbered where settings differ."""
    counts = Counter((term.expert, dict(term.method).get("name")) for term in terms)
    met: Counter[tuple[str, Any]] = Counter()
    titles = {}
    for term in terms:
        method = dict(term.method).get("name")
        if method is None:
            titles[term] = term.expert
            continue
        met[term.expert, method] += 1
        number = f"-{met[term.expert, method]}" if counts[term.expert, method] > 1 else ""
        titles[term] = f"{method}{number}:{term.expert}" if term.expert else f"{method}{number}"
    return titles


def _direction(term: Term, title: str) -> Any:
    if not term.method:
        return title
    return {"name": title, **({"expert": term.expert} if term.expert else {}), "method": term.settings()}


def _groups(rows: Mapping[str, Row], family: Family) -> list[tuple[Row, dict[str, Any]]]:
    """Parameters with equal rows; the largest group has the rest, the others name their tensors."""
    members: dict[tuple[tuple[Term, float], ...], list[str]] = {}
    for parameter, row in rows.items():
        members.setdefault(tuple(row.items()), []).append(parameter)
    largest = max(members, key=lambda key: len(members[key]))
    found = []
    for number, (key, parameters) in enumerate(members.items(), 1):
        layers = {family.parameters[parameter].role.layer for parameter in parameters}
        layer = next(iter(layers)) if len(layers) == 1 else None
        group: dict[str, Any] = {"name": f"group-{number}" if layer is None else f"group-{number}-layer-{layer}"}
        if layer is not None:
            group["layer"] = layer
        rest = key == largest and len(members) > 1
        group["tensors"] = EVERYTHING if rest else [disk for name in parameters for disk in family.disk_names(name)]
        found.append((dict(key), group))
    return found


def _tokenizer(config: MergekitConfig, names: Names) -> str:
    if config.tokenizer in (None, "base", "union", names.base):
        return "base"
    assert config.tokenizer is not None
    if config.tokenizer not in names.experts:
        raise ConfigError(
            f"The tokenizer is that of {config.tokenizer}, which is not among the models; a recipe copies that of "
            f"one of them ({', '.join([names.base, *names.experts])}). Name one, or copy the files afterwards."
        )
    return names.experts[config.tokenizer]


def _head(file: Path, to: Path, notes: Notes) -> str:
    said = f"Made from mergekit's {file.name} by `optmerge init --from-mergekit`. Make the merge with:"
    return comment(said) + f"#\n#   optmerge merge {to.name} --to merged\n#\n" + notes.comment()


def _note(config: MergekitConfig, rule: Rule, names: Names, notes: Notes) -> None:
    """What became of the fields that the configuration has."""
    notes.carry(
        "merge_method", f"{config.method}, as `directions`" + (f"; {rule.difference}" if rule.difference else "")
    )
    if config.base is None:
        notes.carry(
            "base_model",
            f"none is named; the recipe adds to the first model, {names.base}, and takes config and tokenizer of it "
            "(mergekit takes those of any)",
        )
    else:
        notes.carry("base_model", "base")
    notes.carry("models", "experts " + ", ".join(names.experts.values()))
    first, last = len(config.slices[0].sources), len(config.slices[-1].sources)
    if last > first:
        notes.carry(
            "slices[-1], for what follows the layers",
            f"its first {first} sources only, as mergekit 0.1.5 does where the first slice has fewer",
        )
    _note_parameters(config, rule, notes)
    if config.dtype is not None or config.out_dtype is not None:
        notes.carry("out_dtype" if config.out_dtype else "dtype", "dtype, of what is written")
    if config.dtype not in (None, "float32", "float64"):
        notes.leave(
            "dtype" if config.out_dtype else "dtype (of the arithmetic)",
            f"optmerge computes in float32 and rounds once; mergekit computes in {config.dtype}, so last bits differ",
        )
    elif config.dtype is None:
        notes.leave(
            "dtype (not given)", "mergekit then computes in the models' type; optmerge in float32, and rounds once"
        )
    if config.tokenizer is not None:
        notes.carry("tokenizer", f"tokenizer: {_tokenizer(config, names)}")
        notes.leave(
            "tokenizer (the vocabulary)",
            "no row of the embeddings is moved, added or cut; all models must have the same vocabulary, or "
            "`optmerge merge` says how they differ (`vocabulary: common` then merges by token)",
        )


def _note_parameters(config: MergekitConfig, rule: Rule, notes: Notes) -> None:
    known = {parameter.name: parameter for parameter in rule.parameters}
    levels = [("", config.parameters), ("", config.module), *(("", part.parameters) for part in config.slices)]
    own = [source.parameters for part in config.slices for source in part.sources]
    for place, settings in [*levels, *(("model ", each) for each in own)]:
        for key in settings:
            where = f"{place}parameters.{key}"
            if key not in known:
                near = did_you_mean(key, known)
                notes.leave(where, f"mergekit's {config.method} has no such parameter, and ignores it.{near}")
            elif place and known[key].scope == "shared":
                notes.leave(where, f"mergekit reads {key} for all models together, and ignores it at one of them")
            elif key in rule.unused:
                notes.leave(where, rule.unused[key])
            else:
                notes.carry(where, "the coefficients" if key in ("weight", "lambda", "scale") else "the directions")
