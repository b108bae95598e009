"""push_to_hub(): a checkpoint in a repository of the hub, with its card."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING

import yaml

from shortstack.checkpoint import Checkpoint, Model
from shortstack.checkpoint.card import CardContent, licence_of, model_card
from shortstack.checkpoint.file_names import CARD, HUB_ID, RECORD
from shortstack.checkpoint.record import without_folders
from shortstack.errors import CheckpointError, InputError, OutputError, ShortstackError, one_line
from shortstack.machine.hub import connection_error
from shortstack.machine.progress import Progress, in_notebooks
from shortstack.machine.typed import typed
from shortstack.pruning import verify

if TYPE_CHECKING:
    from huggingface_hub import CommitInfo, CommitOperationAdd, ModelInfo


@typed
def push_to_hub(
    checkpoint: Model,
    repository: str,
    *,
    private: bool = False,
    pr: bool = False,
    licence: str | None = None,
    progress: Progress = in_notebooks,
) -> CommitInfo:
    """Verify a checkpoint that shortstack wrote, and upload it as one commit; returns what huggingface_hub tells of that.

    Nothing but the files of its manifest, the record and the card goes there; both name files and folders without their
    places. A repository that has files is only given a pull request. Called again after a failure it goes on: what the hub
    has of a file's content is not sent again.

    private: of a repository that is made for it. pr: offer it as a pull request to one that exists. licence: the hub's name
    of one, in place of the source's.

    Raises:
        InputError: no name of a repository; nobody knows the licence; a public repository is there; or private and pr.
        OutputError: the repository has files, and no pull request is asked for.
        CheckpointError: the checkpoint is not as it was written.
        ShortstackError: the hub cannot be reached, or refuses.
    """
    checkpoint = Checkpoint.of(checkpoint)
    check_visibility(private=private, pr=pr)
    progress("checking", 0, 2)
    files = prepared(checkpoint, repository, licence)
    progress("uploading", 1, 2)
    made = _committed(repository, files, private=private, pr=pr)
    progress("uploading", 2, 2)
    return made


def check_visibility(*, private: bool, pr: bool) -> None:
    """Refuse a pull request of what is to be private: it goes to a repository that is there, which all may see."""
    if private and pr:
        expected, fix = "private for a new repository, or pr for one that is there", "leave one out"
        raise InputError("pr as well", expected=expected, fix=fix, option="private")


def prepared(checkpoint: Checkpoint, repository: str, licence: str | None) -> list[CommitOperationAdd]:
    """Return the files of a verified checkpoint, and its card; the hub is not asked."""
    from huggingface_hub import CommitOperationAdd

    if not HUB_ID.fullmatch(repository):
        fix = "name an account and a model"
        raise InputError(repository, expected="an id like org/name", fix=fix, option="push_to_hub")
    verification = verify(checkpoint, stream=True)
    if not verification.ok:
        wrong = next(check["detail"] for check in verification.checks.values() if not check["ok"])
        fix = "make it again, or undo the change"
        raise CheckpointError(wrong, expected="a checkpoint as it was written", fix=fix, where=checkpoint.directory)
    card = _card(checkpoint, repository, licence)
    record = json.dumps(without_folders(checkpoint.record), indent=2) + "\n"
    return [
        *(CommitOperationAdd(name, checkpoint.directory / name) for name in checkpoint.record["files"]),
        CommitOperationAdd(RECORD, record.encode()),
        CommitOperationAdd(CARD, card.encode()),
    ]


def _card(checkpoint: Checkpoint, name: str, licence: str | None) -> str:
    """Read the card beside the checkpoint, or write one where there is none; with a licence and the name it will have."""
    from huggingface_hub import ModelCard

    path = checkpoint.directory / CARD
    known = {"license": licence} if licence else licence_of(checkpoint.directory)
    if not known:
        fix = "say it, such as apache-2.0, or other, with its terms in the card"
        raise InputError("none that is known", expected="the licence of the source", fix=fix, option="license")
    written = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else None
    text = written or model_card(name, checkpoint.record, CardContent(licence=known))
    heading = re.search(r"^# (.+)$", text, re.MULTILINE)  # the folder's name when it was written
    for local in (checkpoint.directory.resolve().name, *([re.sub(r"\\(.)", r"\1", heading[1])] if heading else ())):
        text = text.replace(f'from_pretrained("{local}")', f'from_pretrained("{name}")')
    try:
        card = ModelCard(text, ignore_metadata_errors=False)
    except (ValueError, yaml.YAMLError) as error:
        fix = "correct it, or move it away: then a new one is written"
        raise CheckpointError(one_line(error), expected="a model card", fix=fix, where=path) from error
    for field in ("license", "license_name", "license_link"):  # of one licence, all of them
        card.data.pop(field, None)
    for field, value in known.items():
        setattr(card.data, field, value)
    return str(card)


def _committed(repository: str, files: list[CommitOperationAdd], *, private: bool, pr: bool) -> CommitInfo:
    from huggingface_hub import HfApi
    from huggingface_hub.errors import LocalTokenNotFoundError, OfflineModeIsEnabled

    api, message = HfApi(), f"Shortened by shortstack: {len(files)} files"
    try:
        if not pr:
            api.create_repo(repository, private=private, exist_ok=True)
            _check_new(repository, api.model_info(repository), private=private)
        return api.create_commit(repository, files, commit_message=message, create_pr=pr)
    except (connection_error(), LocalTokenNotFoundError, OfflineModeIsEnabled) as error:
        raise ShortstackError(
            one_line(error) or type(error).__name__,
            expected="the hub to take it",
            fix="log in with a token that may write (hf auth login); or call it again: nothing is sent twice",
            where=repository,
        ) from error


def _check_new(repository: str, model_info: ModelInfo, *, private: bool) -> None:
    """Refuse a public repository where a private one was meant, and one with files, which would lie beside these."""
    if private and not model_info.private:
        fix = "make it private on the hub, or name another"
        raise InputError(f"{repository}, which is public", expected="a private repository", fix=fix, option="private")
    there = sorted({sibling.rfilename for sibling in model_info.siblings or ()} - {".gitattributes"})
    if there:
        raise OutputError(
            f"one with {len(there)} files, {there[0]} among them",
            expected="a repository that does not exist yet, or is empty",
            fix="name another, or offer it as a pull request, with pr",
            where=repository,
        )
