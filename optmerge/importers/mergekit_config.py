"""What a mergekit merge configuration says, as plain values; no model is opened.

The three forms (``models``, ``slices``, ``modules`` with one module) become slices of sources.

    notes = Notes()
    config = parse_mergekit(read_yaml(text, source="merge.yml"), source="merge.yml", notes=notes)
    config.slices[0].sources[0].parameters
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from optmerge.errors import ConfigError, did_you_mean
from optmerge.importers.notes import Notes

TOP = (
    *("merge_method", "base_model", "models", "slices", "modules", "parameters", "dtype", "out_dtype"),
    *("tokenizer_source", "tokenizer", "chat_template"),
)
DTYPES = ("float32", "float16", "bfloat16", "float64")
Settings = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Source:
    """A model within a slice.

    Attributes:
        model: Its reference, in the short form.
        layers: First layer and the one after the last; None for all of them.
        parameters: Its own settings.
    """

    model: str
    layers: tuple[int, int] | None
    parameters: Settings


@dataclass(frozen=True, slots=True)
class Slice:
    """Layers of the output that are made alike.

    Attributes:
        sources: Models in the order of the file.
        base: A base of its own, if it has one.
        parameters: Settings of the slice.
    """

    sources: tuple[Source, ...]
    base: str | None
    parameters: Settings


@dataclass(frozen=True, slots=True)
class MergekitConfig:
    """A merge configuration.

    Attributes:
        method: mergekit's name of it.
        base: Reference of the base, if one is named.
        slices: In the order of the layers.
        module: Settings of the one module, where modules are named.
        parameters: Settings for everything.
        dtype: In which mergekit computes, None = the models'.
        out_dtype: In which it writes, None = in which it computes.
        tokenizer: None, ``base``, ``union``, or a model's reference.
    """

    method: str
    base: str | None
    slices: tuple[Slice, ...]
    module: Settings
    parameters: Settings
    dtype: str | None
    out_dtype: str | None
    tokenizer: str | None

    @property
    def models(self) -> tuple[str, ...]:
        """Every model among the sources once, in the order in which they are first named."""
        return tuple(dict.fromkeys(source.model for part in self.slices for source in part.sources))


def parse_mergekit(body: object, *, source: str, notes: Notes) -> MergekitConfig:
    """Read a configuration.

    Args:
        body: The YAML's content.
        source: What errors call it.
        notes: Told of fields that have no meaning for a recipe, and of those that mergekit does not know either.

    Raises:
        ConfigError: It is no configuration of one merge, or one that mergekit itself would refuse.
    """
    reader = _Reader(source, notes)
    if not isinstance(body, Mapping) or "merge_method" not in body:
        hint = ""
        if isinstance(body, Mapping) and "genome" in body:
            hint = " It has a genome, so it is one of mergekit-evolve: use --from-mergekit-evolve."
        raise ConfigError(
            f"{source} is no configuration of mergekit-yaml: the key merge_method is missing. One begins like "
            f"`merge_method: ties`.{hint}"
        )
    reader.unknown(body, TOP, "")
    given = [key for key in ("models", "slices", "modules") if body.get(key)]
    if len(given) != 1:
        raise ConfigError(
            f"{source} has {' and '.join(given) or 'none of models, slices and modules'}; mergekit wants exactly one."
        )
    module: Settings = {}
    holder: Mapping[str, Any] = body
    if given == ["modules"]:
        modules = reader.mapping(body["modules"], "modules")
        if len(modules) != 1:
            raise ConfigError(
                f"{source} has {len(modules)} modules ({', '.join(modules)}), each with a configuration of its own, "
                "and one recipe has one method for all tensors. Write one configuration per module and merge in turn."
            )
        ((name, entry),) = modules.items()
        holder = reader.mapping(entry, f"modules.{name}")
        reader.unknown(holder, ("models", "slices", "parameters"), f"modules.{name}.")
        module = reader.settings(holder, f"modules.{name}")
    if body.get("tokenizer_source") and body.get("tokenizer") is not None:
        raise ConfigError(f"{source} has both tokenizer_source and tokenizer; mergekit wants one of them.")
    return MergekitConfig(
        method=reader.text(body["merge_method"], "merge_method"),
        base=reader.model(body["base_model"], "base_model") if body.get("base_model") else None,
        slices=reader.slices(holder),
        module=module,
        parameters=reader.settings(body, ""),
        dtype=reader.dtype(body, "dtype"),
        out_dtype=reader.dtype(body, "out_dtype"),
        tokenizer=reader.tokenizer(body),
    )


def model_reference(value: object, where: str) -> str:
    """A model in mergekit's short or long form, as the short form: ``path``, ``id@revision``, ``model+adapter``.

    Raises:
        ConfigError: It is neither, or names an architecture that the model does not have.
    """
    if isinstance(value, str) and value:
        return value
    if isinstance(value, Mapping):
        if value.get("override_architecture"):
            raise ConfigError(
                f"{where} is read as a {value['override_architecture']} (override_architecture), which optmerge cannot "
                "do. Change `architectures` in a copy of the model's config.json instead."
            )
        if "path" in value:
            revision = value.get("revision")
            return f"{value['path']}@{revision}" if revision else str(value["path"])
        if "model" in value:
            model = model_reference(value["model"], where)
            lora = value.get("lora")
            return f"{model}+{model_reference(lora, where)}" if lora else model
    raise ConfigError(f"{where} is {value!r}; expected a model: a folder, org/name[@revision], or model+adapter.")


class _Reader:
    """Reads the parts; errors and notes name the place."""

    def __init__(self, source: str, notes: Notes) -> None:
        self.source = source
        self.notes = notes

    def unknown(self, body: Mapping[Any, Any], known: Sequence[str], prefix: str) -> None:
        for key in body:
            if key not in known:
                near = did_you_mean(str(key), known)
                self.notes.leave(f"{prefix}{key}", f"mergekit does not know this key either, and ignores it.{near}")

    def mapping(self, value: object, where: str) -> dict[str, Any]:
        if not isinstance(value, Mapping):
            raise ConfigError(f"{self.source}: {where} is {value!r}; expected a mapping.")
        return {str(key): each for key, each in value.items()}

    def listing(self, value: object, where: str) -> list[Any]:
        if not isinstance(value, list) or not value:
            raise ConfigError(f"{self.source}: {where} is {value!r}; expected a list.")
        return value

    def text(self, value: object, where: str) -> str:
        if not isinstance(value, str) or not value:
            raise ConfigError(f"{self.source}: {where} is {value!r}; expected a text.")
        return value

    def model(self, value: object, where: str) -> str:
        return model_reference(value, f"{self.source}: {where}")

    def settings(self, holder: Mapping[str, Any], where: str) -> dict[str, Any]:
        value = holder.get("parameters")
        return {} if value is None else self.mapping(value, f"{where}.parameters".lstrip("."))

    def dtype(self, body: Mapping[str, Any], key: str) -> str | None:
        if body.get(key) is None:
            return None
        name = str(body[key]).removeprefix("torch.")
        if name not in DTYPES:
            raise ConfigError(
                f"{self.source}: {key} is {body[key]!r}; expected one of {', '.join(DTYPES)}."
                f"{did_you_mean(name, DTYPES)}"
            )
        return name

    def slices(self, holder: Mapping[str, Any]) -> tuple[Slice, ...]:
        if holder.get("models"):
            sources = []
            for index, entry in enumerate(self.listing(holder["models"], "models")):
                where = f"models[{index}]"
                body = self.mapping(entry, where)
                self.unknown(body, ("model", "parameters"), f"{where}.")
                sources.append(Source(self.model(body.get("model"), where), None, self.settings(body, where)))
            return (Slice(self.distinct(sources, "models"), None, {}),)
        if not holder.get("slices"):
            raise ConfigError(f"{self.source}: the module has neither models nor slices; mergekit wants one of them.")
        found = []
        for index, entry in enumerate(self.listing(holder["slices"], "slices")):
            where = f"slices[{index}]"
            body = self.mapping(entry, where)
            self.unknown(body, ("sources", "base_model", "parameters", "residual_weight"), f"{where}.")
            if body.get("residual_weight") is not None:
                self.notes.leave(f"{where}.residual_weight", "mergekit reads this key and does nothing with it")
            sources = [
                self.slice_source(each, f"{where}.sources[{number}]")
                for number, each in enumerate(self.listing(body.get("sources"), f"{where}.sources"))
            ]
            base = self.model(body["base_model"], f"{where}.base_model") if body.get("base_model") else None
            found.append(Slice(self.distinct(sources, where), base, self.settings(body, where)))
        return tuple(found)

    def slice_source(self, entry: object, where: str) -> Source:
        body = self.mapping(entry, where)
        self.unknown(body, ("model", "layer_range", "parameters"), f"{where}.")
        given = body.get("layer_range")
        whole = isinstance(given, list) and len(given) == 2 and all(type(each) is int for each in given)
        if not isinstance(given, list) or not whole or not 0 <= given[0] <= given[1]:
            raise ConfigError(
                f"{self.source}: {where}.layer_range is {given!r}; expected [first, last + 1], counted from 0."
            )
        return Source(self.model(body.get("model"), where), (given[0], given[1]), self.settings(body, where))

    def distinct(self, sources: list[Source], where: str) -> tuple[Source, ...]:
        names = [source.model for source in sources]
        twice = [name for name in names if names.count(name) > 1]
        if twice:
            raise ConfigError(f"{self.source}: {where} names {twice[0]} twice, which mergekit 0.1.5 refuses.")
        return tuple(sources)

    def tokenizer(self, body: Mapping[str, Any]) -> str | None:
        if body.get("chat_template") is not None:
            self.notes.leave(
                "chat_template",
                "a merge copies the tokenizer with its template; put another one into the merged tokenizer_config.json",
            )
        if body.get("tokenizer") is None:
            value = body.get("tokenizer_source")
            return None if value is None else self.model(value, "tokenizer_source")
        config = self.mapping(body["tokenizer"], "tokenizer")
        self.unknown(config, ("source", "tokens", "pad_to_multiple_of"), "tokenizer.")
        if config.get("tokens"):
            raise ConfigError(
                f"{self.source}: tokenizer.tokens gives single tokens embeddings of their own, which a recipe has no "
                "coefficients for. Take the key out, or make that merge with mergekit."
            )
        if config.get("pad_to_multiple_of"):
            self.notes.leave("tokenizer.pad_to_multiple_of", "the merged model has as many rows as the base")
        return self.model(config.get("source", "union"), "tokenizer.source")
