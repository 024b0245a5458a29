"""The files that a search's workers need, served to machines that do not share its storage.

    with closing(SearchFiles(config, problem, teachers, host=host)) as files:
        spec = files.spec(spec)                     # names files below `PLACE`, and says where to fetch them
        context = files.context(context)            # teacher outputs, at every stage

Served are models, adapters and their tokenizers, data, users' own methods and terms, the deltas of whole methods, and
teacher outputs. Models and data sets on the Hugging Face Hub stay there: every machine has them from the Hub, a model
in the revision that this process has.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from optmerge.calibration.arrow import is_saved
from optmerge.calibration.images import Picture, image_files
from optmerge.calibration.sources import is_local, read_rows
from optmerge.config.schema import SearchConfig
from optmerge.config.tasks import TaskConfig
from optmerge.errors import ConfigError, RunError
from optmerge.models.cache import facts_in_use
from optmerge.models.reference import ModelReference, model_files, resolve
from optmerge.runner.file_server import FileServer
from optmerge.runner.node_files import Fetching, FileEntry, Tree
from optmerge.runner.references import Renaming, renamed

if TYPE_CHECKING:
    from optmerge.runner.problem import Problem
    from optmerge.runner.teachers import Files
    from optmerge.runner.worker import Context, WorkerSpec

# What of the cache must be the same on all machines (which examples were chosen), or is known only to who has read all
# weights.
FACTS = ("samples", "values", "untouched", "magnitudes")


class SearchFiles:
    """Serves the files of one search until it is closed.

    Args:
        config: The whole search, with absolute references.
        problem: The search, opened.
        teachers: Of its first stage, so that a worker has their outputs before it is given work.
        host: The address of this machine by which workers' machines reach it.
    """

    def __init__(self, config: SearchConfig, problem: Problem, teachers: Files, *, host: str) -> None:
        """Hash what was not hashed before, and begin to serve.

        Raises:
            ConfigError: Some files cannot be named anew.
            RunError: The address is none of this machine's, or a file cannot be read.
        """
        try:
            self._server = FileServer(host)
        except OSError as refusal:
            raise RunError(
                f"The search cannot serve its files at {host}, the address by which the workers' machines know this "
                f"one: {refusal.strerror}. Run the search on a machine of the cluster, or put the files on storage "
                "that all machines have and set executor.files to shared."
            ) from None
        self._trees: dict[str, Tree] = {}  # by key
        self._cache = config.executor.node_cache
        try:
            self._config = self._moved(config, images=problem.family.kind.endswith("image-classification"))
            folders = problem.deltas.folders
            self._deltas = {name: Path(self._folder(_below(folder))) for name, folder in folders.items()}
            self._folder(_by_name(teachers))
        except BaseException:
            self._server.close()
            raise
        self._fetching = Fetching(self._server.source, tuple(self._trees.values()), facts_in_use(FACTS))

    def close(self) -> None:
        """Serve nothing more."""
        self._server.close()

    def spec(self, spec: WorkerSpec) -> WorkerSpec:
        """What a worker is made from that fetches all files."""
        return replace(spec, config=self._config, deltas=self._deltas, cache=self._cache, fetching=self._fetching)

    def context(self, context: Context) -> Context:
        """What evaluations share, with teacher outputs that are fetched."""
        tree = self._tree(_by_name(context.teachers))
        teachers = {key: Path(tree.folder, path.name) for key, path in context.teachers.items()}
        return replace(context, teachers=teachers, trees=(tree,))

    def _moved(self, config: SearchConfig, *, images: bool) -> SearchConfig:
        """The search with all its files below `PLACE`."""
        data = {task.data: self._data(task.data, config, images=images) for task in config.tasks.values()}
        if config.space.recipe is not None:  # where the search begins, workers are told
            space = config.space.model_copy(update={"start": "best-baseline"})
            config = config.model_copy(update={"space": space})
        pickles = config.allow_pickle
        return renamed(
            config,
            Renaming(lambda text: self._model(text, allow_pickle=pickles), data.__getitem__, self._own, _no_other),
        )

    def _model(self, text: str, *, allow_pickle: bool) -> str:
        reference = ModelReference.parse(text, relative_to=Path())
        parts = [replace(reference, adapter=None), *([reference.adapter] if reference.adapter else [])]
        return "+".join(self._part(part, allow_pickle=allow_pickle) for part in parts)

    def _part(self, reference: ModelReference, *, allow_pickle: bool) -> str:
        if not reference.local:
            return f"{reference.source}@{resolve(reference, allow_pickle=allow_pickle).revision}"
        folder = Path(reference.source)
        files = model_files(folder, allow_pickle=allow_pickle)
        return self._folder({path.relative_to(folder).as_posix(): path for path in files})

    def _data(self, text: str, config: SearchConfig, *, images: bool) -> str:
        path = Path(text)
        if not is_local(text, relative_to=Path()):
            return text
        saved = is_saved(path)
        if path.is_dir() and not saved:
            return self._folder({file.relative_to(path).as_posix(): file for file, _ in image_files(path)})
        pictures: dict[str, Path] = {}
        for name, task in config.tasks.items():
            if images and task.data == text:  # tasks may look at different columns
                pictures |= _pictures(name, task, path if saved else path.parent)
        return self._folder({**_below(path), **pictures}) if saved else self._file(path, pictures)

    def _own(self, text: str) -> str:
        file, _, name = text.rpartition(":")
        return f"{self._file(Path(file), {})}:{name}"

    def _file(self, path: Path, beside: Mapping[str, Path]) -> str:
        return f"{self._folder({path.name: path, **beside})}/{path.name}"

    def _folder(self, files: Mapping[str, Path]) -> str:
        tree = self._tree(files)
        self._trees[tree.key] = tree
        return tree.folder

    def _tree(self, files: Mapping[str, Path]) -> Tree:
        entries = []
        for name, path in files.items():
            try:
                sha256, size = self._server.register(path)
            except OSError as problem:
                raise RunError(f"{path} cannot be read, and workers' machines need it: {problem.strerror}.") from None
            entries.append(FileEntry(name, sha256, size, str(path)))
        return Tree(tuple(entries))


def _by_name(teachers: Files) -> dict[str, Path]:
    return {path.name: path for path in teachers.values()}


def _below(folder: Path) -> dict[str, Path]:
    return {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}


def _pictures(name: str, task: TaskConfig, folder: Path) -> dict[str, Path]:
    """The files of images that a task's rows name, by their names.

    Raises:
        ConfigError: One lies outside of the folder that names are relative to.
    """
    found: dict[str, Path] = {}
    for value in read_rows(task.data, {task.image}, relative_to=Path()).columns.get(task.image, []):
        picture = Picture.of(value, folder, f"tasks.{name}")
        if picture is None or not isinstance(picture.source, Path):
            continue
        named = picture.source.relative_to(folder) if picture.source.is_relative_to(folder) else picture.source
        if named.is_absolute() or ".." in named.parts:
            raise ConfigError(
                f"tasks.{name}.data: {task.data} names the image {picture.source}, which is not below its own folder, "
                "so it would have another name on other machines, and executor.files is fetch. Name images relative "
                "to the file, below its folder, or set executor.files to shared."
            )
        found[named.as_posix()] = picture.source
    return found


def _no_other(path: str) -> str:
    raise AssertionError(f"a search that fetches files names no file such as {path}: its settings were checked")
