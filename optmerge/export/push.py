"""An exported checkpoint to the Hugging Face Hub: first what would be uploaded, then the upload of exactly that.

    plan = plan_push(Path("merged"), "me/merged")      # looks at the folder alone
    url = push(plan)                                   # creates the repository, private unless the plan says public

Nothing is uploaded that the plan does not list, and a private upload never goes into a repository that is public.
"""

from __future__ import annotations

import glob
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from optmerge.errors import ExportError
from optmerge.export.evidence import PROVENANCE
from optmerge.export.licence import CARD

if TYPE_CHECKING:
    from huggingface_hub import HfApi

_NEVER = frozenset({".git", ".cache"})  # folders that the Hub's own client leaves out, too
_EXPORT = "`optmerge export RUN --format checkpoint --to FOLDER` writes a folder with one."


@dataclass(frozen=True, slots=True)
class PushPlan:
    """What an upload would do.

    Attributes:
        folder: What is uploaded.
        repo_id: Where to.
        public: Whether everybody can see it.
        files: Path below the folder -> bytes, in the order of their names.
        notes: What one should know before.
    """

    folder: Path
    repo_id: str
    public: bool
    files: Mapping[str, int]
    notes: tuple[str, ...]

    @property
    def nbytes(self) -> int:
        """Bytes of all files."""
        return sum(self.files.values())

    @property
    def url(self) -> str:
        """Where it can be seen afterwards."""
        from huggingface_hub import constants

        return f"{constants.ENDPOINT}/{self.repo_id}"


def plan_push(folder: Path, repo_id: str, *, public: bool = False) -> PushPlan:
    """Look at a folder that is to be uploaded. The network is not asked for anything.

    Args:
        folder: An exported checkpoint.
        repo_id: ``NAMESPACE/NAME``.
        public: Whether everybody may see it.

    Raises:
        ExportError: There is no such folder, it has no model card, or the name cannot be one of a repository.
    """
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]  # documented there, not in __all__

    if not folder.is_dir():
        raise ExportError(f"There is no folder {folder} to push. {_EXPORT}")
    try:
        validate_repo_id(repo_id)
    except HFValidationError as problem:
        raise ExportError(f"{repo_id!r} cannot be the name of a repository: {problem}") from None
    if "/" not in repo_id:
        raise ExportError(
            f"The repository is {repo_id!r}; expected NAMESPACE/NAME, with your user name on the Hub or that of an "
            f"organisation: YOU/{repo_id}."
        )
    card = _card(folder)
    notes = []
    if not card.get("license"):
        notes.append(f"{CARD} states no licence, so nobody knows what they may do with the model.")
    told = sorted(set(_places(_provenance(folder))))
    if told:
        others = f" and {len(told) - 1} other places" if len(told) > 1 else ""
        notes.append(
            f"{PROVENANCE} and the recipe name {told[0]}{others} of this machine, for whoever can see the repository."
        )
    return PushPlan(folder, repo_id, public, _files(folder), tuple(notes))


def require_token() -> None:
    """Check that the Hub can be told who is uploading.

    Raises:
        ExportError: No token is stored or set.
    """
    from huggingface_hub import get_token

    if get_token() is None:
        raise ExportError(
            "Pushing needs a token of the Hugging Face Hub, and there is none on this machine. Make one that may write "
            "on https://huggingface.co/settings/tokens, then run `hf auth login` or set HF_TOKEN. `--dry-run` shows "
            "what would be uploaded, without a token."
        )


def push(plan: PushPlan, *, api: HfApi | None = None) -> str:
    """Create the repository if there is none, and upload the planned files in one go.

    Args:
        plan: From `plan_push`.
        api: The Hub's client; None makes one.

    Returns:
        The address of the model's page.

    Raises:
        ExportError: There is no token, the Hub refuses or cannot be reached, or the repository is public and the plan
            is not.
    """
    from huggingface_hub import HfApi

    require_token()
    hub = api or HfApi()
    with _told_plainly(plan):
        if hub.repo_exists(plan.repo_id):
            _require_as_private(plan, private=bool(hub.repo_info(plan.repo_id).private))
        else:
            hub.create_repo(plan.repo_id, private=not plan.public)
        hub.upload_folder(
            repo_id=plan.repo_id,
            folder_path=plan.folder,
            allow_patterns=[glob.escape(name) for name in plan.files],
            commit_message="Upload a merge made with optmerge",
        )
    return plan.url


def _require_as_private(plan: PushPlan, *, private: bool) -> None:
    """Refuse a repository that more, or fewer, people can see than was asked for."""
    if private == plan.public:
        is_, asked = ("private", "with") if private else ("public", "without")
        change = f"{plan.url}/settings"
        raise ExportError(
            f"{plan.repo_id} exists on the Hub and is {is_}, and this push is {asked} --public. Nothing was uploaded. "
            f"Push {'without' if private else 'with'} --public, choose another name, or change it on {change}."
        )


@contextmanager
def _told_plainly(plan: PushPlan) -> Iterator[None]:
    """What the Hub's client raises, as one paragraph."""
    import httpx
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    try:
        yield
    except OfflineModeIsEnabled:
        raise ExportError(
            f"HF_HUB_OFFLINE is set, so {plan.repo_id} cannot be pushed. Unset it, and try again."
        ) from None
    except HfHubHTTPError as problem:
        said = " ".join(str(problem.server_message or problem).split())
        raise ExportError(
            f"The Hub refused to push {plan.repo_id}: {said}. If it is about rights: `hf auth whoami` says who you are "
            "there, and the token has to be one that may write to the namespace. What was uploaded already is not "
            "uploaded again."
        ) from None
    except (httpx.HTTPError, OSError) as problem:
        raise ExportError(
            f"{plan.repo_id} could not be pushed, for the Hub could not be reached or a file not be read "
            f"({type(problem).__name__}: {problem}). Try again; what was uploaded already is not uploaded again."
        ) from None


def _card(folder: Path) -> dict[str, Any]:
    """The metadata of the folder's card."""
    from huggingface_hub import metadata_load

    path = folder / CARD
    if not path.is_file():
        raise ExportError(f"{folder} has no model card ({CARD}), and is not pushed without one. {_EXPORT}")
    try:
        metadata = metadata_load(path)
    except (ValueError, yaml.YAMLError) as problem:
        raise ExportError(
            f"The metadata of {path} cannot be read: {' '.join(str(problem).split())}. Mend it."
        ) from None
    if not metadata:
        raise ExportError(f"{path} has no metadata (YAML between two lines of ---), which the Hub needs. {_EXPORT}")
    return metadata


def _files(folder: Path) -> dict[str, int]:
    """Everything that is uploaded: path below the folder -> bytes."""
    found = {}
    for path in sorted(folder.rglob("*")):
        below = path.relative_to(folder)
        if path.is_file() and not _NEVER.intersection(below.parts):
            found[below.as_posix()] = path.stat().st_size
    return found


def _provenance(folder: Path) -> Any:
    path = folder / PROVENANCE
    if not path.is_file():
        return None
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as problem:
        raise ExportError(f"{path} is damaged ({problem}). Export the checkpoint again, or remove the file.") from None


def _places(value: Any) -> Iterator[str]:
    """The texts that are absolute paths, in nested mappings and lists."""
    if isinstance(value, str):
        if Path(value).is_absolute() and len(Path(value).parts) > 2:
            yield value
    elif isinstance(value, (list, Mapping)):
        for each in value.values() if isinstance(value, Mapping) else value:
            yield from _places(each)
