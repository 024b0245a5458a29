"""Pushing, with a stand-in for the Hub: what is uploaded, what is refused, and what a refusal says."""

from __future__ import annotations

import fnmatch
import json
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import huggingface_hub
import pytest
from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

from optmerge.errors import ExportError
from optmerge.export.push import PushPlan, plan_push, push

CARD = "---\nlicense: mit\ntags: [merge]\n---\n# A merge\n"


@dataclass
class StandIn:
    """The part of ``HfApi`` that pushing needs; nothing of it reaches a network.

    Attributes:
        repos: Repository -> whether it is private.
        refuses: What uploading raises.
        calls: What was asked for, in order.
    """

    repos: dict[str, bool] = field(default_factory=dict)
    refuses: Exception | None = None
    calls: list[str] = field(default_factory=list)
    uploaded: dict[str, bytes] = field(default_factory=dict)

    def repo_exists(self, repo_id: str) -> bool:
        self.calls.append("repo_exists")
        return repo_id in self.repos

    def repo_info(self, repo_id: str) -> Any:
        return SimpleNamespace(private=self.repos[repo_id])

    def create_repo(self, repo_id: str, *, private: bool) -> None:
        self.calls.append("create_repo")
        self.repos[repo_id] = private

    def upload_folder(self, *, repo_id: str, folder_path: Path, allow_patterns: list[str], commit_message: str) -> None:
        self.calls.append("upload_folder")
        if self.refuses:
            raise self.refuses
        assert repo_id in self.repos
        assert commit_message
        for path in sorted(Path(folder_path).rglob("*")):
            name = path.relative_to(folder_path).as_posix()
            if path.is_file() and any(fnmatch.fnmatch(name, pattern) for pattern in allow_patterns):
                self.uploaded[name] = path.read_bytes()


@pytest.fixture(autouse=True)
def token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: "hf_a_token")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Something like an export, with a file whose name looks like a pattern."""
    made = tmp_path / "merged"
    (made / "a[1]").mkdir(parents=True)
    (made / "README.md").write_text(CARD)
    (made / "model.safetensors").write_bytes(b"0" * 1000)
    (made / "a[1]" / "config.json").write_text("{}")
    return made


def planned(folder: Path, **options: bool) -> PushPlan:
    return plan_push(folder, "me/merged", **options)


class TestPlan:
    """What is known before anything happens."""

    def test_every_file_with_its_size(self, folder: Path) -> None:
        plan = planned(folder)
        assert plan.files == {"README.md": len(CARD), "a[1]/config.json": 2, "model.safetensors": 1000}
        assert plan.nbytes == 1002 + len(CARD)
        assert plan.url == "https://huggingface.co/me/merged"
        assert not plan.public
        assert plan.notes == ()

    def test_what_git_and_the_hubs_client_keep_is_left_out(self, folder: Path) -> None:
        for name in (".git", ".cache/huggingface"):
            (folder / name).mkdir(parents=True)
            (folder / name / "file").touch()
        assert set(planned(folder).files) == {"README.md", "a[1]/config.json", "model.safetensors"}

    def test_a_card_without_licence_is_noted(self, folder: Path) -> None:
        (folder / "README.md").write_text("---\ntags: [merge]\n---\n")
        assert "states no licence" in planned(folder).notes[0]

    def test_places_of_this_machine_are_noted(self, folder: Path) -> None:
        recipe = {"base": {"reference": "/home/me/base"}, "experts": ["/home/me/one", "org/two"], "format": 1}
        (folder / "optmerge.json").write_text(json.dumps({"recipe": recipe}))
        (note,) = planned(folder).notes
        assert "/home/me/base and 1 other places of this machine" in note

    def test_no_folder(self, tmp_path: Path) -> None:
        with pytest.raises(ExportError, match=r"There is no folder .*optmerge export"):
            planned(tmp_path / "nowhere")

    def test_no_card(self, folder: Path) -> None:
        (folder / "README.md").unlink()
        with pytest.raises(ExportError, match=r"has no model card \(README.md\).*optmerge export"):
            planned(folder)

    @pytest.mark.parametrize(("card", "said"), [("# A card\n", "has no metadata"), ("---\na: [\n---\n", "be read")])
    def test_a_card_that_the_hub_could_not_read(self, card: str, said: str, folder: Path) -> None:
        (folder / "README.md").write_text(card)
        with pytest.raises(ExportError, match=said):
            planned(folder)

    @pytest.mark.parametrize(
        ("name", "said"), [("merged", "YOU/merged"), ("a/b/c", "cannot be the name"), ("me/a..b", "cannot be the name")]
    )
    def test_a_name_that_cannot_be(self, name: str, said: str, folder: Path) -> None:
        with pytest.raises(ExportError, match=said):
            plan_push(folder, name)


class TestUpload:
    """What reaches the Hub."""

    @pytest.mark.parametrize("public", [False, True])
    def test_exactly_the_plan_in_a_new_repository(self, public: bool, folder: Path) -> None:
        hub, plan = StandIn(), planned(folder, public=public)
        (folder / "later.txt").write_text("written after the plan was shown")
        assert push(plan, api=hub) == "https://huggingface.co/me/merged"
        assert hub.repos == {"me/merged": not public}
        assert {name: len(content) for name, content in hub.uploaded.items()} == plan.files
        assert hub.calls == ["repo_exists", "create_repo", "upload_folder"]

    def test_a_repository_that_is_there_is_used(self, folder: Path) -> None:
        hub = StandIn({"me/merged": True})
        push(planned(folder), api=hub)
        assert "create_repo" not in hub.calls
        assert set(hub.uploaded) == set(planned(folder).files)

    @pytest.mark.parametrize(("private", "is_"), [(False, "public"), (True, "private")])
    def test_one_that_others_can_see_than_asked_is_refused(self, private: bool, is_: str, folder: Path) -> None:
        hub = StandIn({"me/merged": private})
        with pytest.raises(ExportError, match=f"exists on the Hub and is {is_}.*Nothing was uploaded"):
            push(planned(folder, public=private), api=hub)
        assert not hub.uploaded

    def test_without_a_token(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(huggingface_hub, "get_token", lambda: None)
        hub = StandIn()
        with pytest.raises(ExportError, match="hf auth login") as told:
            push(planned(folder), api=hub)
        assert "\n" not in str(told.value)
        assert not hub.calls

    @pytest.mark.parametrize(
        ("refusal", "said"),
        [
            (
                HfHubHTTPError(
                    "403 Forbidden",
                    response=httpx.Response(403, request=httpx.Request("POST", "https://huggingface.co")),
                    server_message="You don't have the rights\nto write here",
                ),
                "You don't have the rights to write here",
            ),
            (httpx.ConnectError("no route"), "ConnectError: no route"),
            (OSError(5, "Input/output error"), "Input/output error"),
            (OfflineModeIsEnabled("offline"), "HF_HUB_OFFLINE is set"),
        ],
    )
    def test_a_refusal_is_one_paragraph(self, refusal: Exception, said: str, folder: Path) -> None:
        with pytest.raises(ExportError) as told:
            push(planned(folder), api=StandIn(refuses=refusal))
        assert said in str(told.value)
        assert "me/merged" in str(told.value)
        assert "\n" not in str(told.value)
