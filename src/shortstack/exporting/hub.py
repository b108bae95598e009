"""push_to_hub(): a checkpoint in a repository of the hub, with its card."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING

import yaml

from shortstack.checkpoint import Checkpoint, Model
from shortstack.checkpoint.card import CardContent, licence_of, model_card
from shortstack.checkpoint.file_names import CARD, HUB_ID, RECORD
from shortstack.checkpoint.record import public_record
from shortstack.checkpoint.side_files import uploadable
from shortstack.errors import CheckpointError, InputError, OutputError, ShortstackError, one_line
from shortstack.machine.cache import cache_directory
from shortstack.machine.hub import connection_error
from shortstack.machine.progress import Progress, silent
from shortstack.pruning import verify

if TYPE_CHECKING:
    from huggingface_hub import CommitInfo, CommitOperationAdd, ModelInfo


def push_to_hub(
    checkpoint: Model,
    repository: str,
    *,
    private: bool = False,
    create_pr: bool = False,
    licence: str | None = None,
    progress: Progress = silent,
) -> CommitInfo:
    """Verify a checkpoint that shortstack wrote, and upload it as one commit; returns what huggingface_hub tells of that.

    Nothing but the files of its manifest, the record and the card goes there; both name files and folders without their
    places. A repository that has files is only given a pull request. Called again after a failure it goes on: what the hub
    has of a file's content is not sent again.

    private: of a repository that is made for it. create_pr: offer a pull request to one that exists. licence: the hub's
    name of one, in place of the source's.

    Raises:
        InputError: no name of a repository, no known licence, a public repository of that name, or private and create_pr.
        OutputError: the repository has files, and no pull request is asked for.
        CheckpointError: the checkpoint is not as it was written, or card or record name a folder of this machine.
        ShortstackError: the hub cannot be reached, or refuses.
    """
    checkpoint = Checkpoint.of(checkpoint)
    if private and create_pr:
        raise InputError("a pull request is public; leave out private or create_pr", option="private")
    progress("checking", 0, 2)
    files = prepared(checkpoint, repository, licence)
    progress("uploading", 1, 2)
    made = _committed(repository, files, private=private, create_pr=create_pr)
    progress("uploading", 2, 2)
    return made


def prepared(checkpoint: Checkpoint, repository: str, licence: str | None) -> list[CommitOperationAdd]:
    """Return the files of a verified checkpoint, and its card; the hub is not asked."""
    from huggingface_hub import CommitOperationAdd

    if not HUB_ID.fullmatch(repository):
        raise InputError(f"{repository!r} is no repository; give an id such as org/name", option="push_to_hub")
    verification = verify(checkpoint, stream=True)
    if not verification.ok:
        wrong = next(check["detail"] for check in verification.checks.values() if not check["ok"])
        raise CheckpointError(f"{checkpoint.directory} has changed: {wrong}; make it again, or undo the change")
    files = checkpoint.record["files"]
    if others := sorted(files.keys() - uploadable(checkpoint.directory)):
        raise CheckpointError(f"{checkpoint.directory / RECORD} lists {others[0]}, which no loader reads; remove both")
    record = json.dumps(public_record(checkpoint.record), indent=2) + "\n"
    words = {RECORD: record, CARD: _card(checkpoint, repository, licence)}
    for name, text in words.items():
        _check_no_folder(name, text, checkpoint)
    paths = [CommitOperationAdd(name, checkpoint.directory / name) for name in files]
    return paths + [CommitOperationAdd(name, text.encode()) for name, text in words.items()]


def _check_no_folder(name: str, text: str, checkpoint: Checkpoint) -> None:
    """Refuse a text that names a folder of this machine."""
    text += re.sub(r"\\(.)", r"\1", text)  # of Markdown, too
    sources = [Path(record["source"]["id"]) for record in checkpoint.records if not record["source"].get("revision")]
    folders = {Path.home(), Path.cwd(), cache_directory(), checkpoint.directory.resolve().parent}
    folders |= {folder for source in sources if source.is_absolute() for folder in (source, source.parent)}
    for folder in sorted(map(str, folders), key=len, reverse=True):
        if folder != "/" and re.search(rf"(?<![\w.~/-]){re.escape(folder)}(?![\w.-])", text):
            raise CheckpointError(f"{checkpoint.directory / name} names {folder} of this machine; take it out")


def _card(checkpoint: Checkpoint, name: str, licence: str | None) -> str:
    """Read the card beside the checkpoint, or write one where there is none; with a licence and the name it will have."""
    from huggingface_hub import ModelCard

    path = checkpoint.directory / CARD
    known = {"license": licence} if licence else licence_of(checkpoint.directory)
    if not known:
        raise InputError("the base model's card names none; give one such as apache-2.0, or other", option="license")
    written = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else None
    text = written or model_card(name, checkpoint.record, CardContent(licence=known))
    heading = re.search(r"^# (.+)$", text, re.MULTILINE)  # the folder's name when it was written
    for local in (checkpoint.directory.resolve().name, *([re.sub(r"\\(.)", r"\1", heading[1])] if heading else ())):
        text = text.replace(f'from_pretrained("{local}")', f'from_pretrained("{name}")')
    try:
        card = ModelCard(text, ignore_metadata_errors=False)
    except (ValueError, yaml.YAMLError) as error:
        wrong = f"{path} is no model card ({one_line(error)}); correct it, or move it away for a new one"
        raise CheckpointError(wrong) from error
    for field in ("license", "license_name", "license_link"):  # of one licence, all of them
        card.data.pop(field, None)
    for field, value in known.items():
        setattr(card.data, field, value)
    return str(card)


def _committed(repository: str, files: list[CommitOperationAdd], *, private: bool, create_pr: bool) -> CommitInfo:
    from huggingface_hub import HfApi
    from huggingface_hub.errors import LocalTokenNotFoundError, OfflineModeIsEnabled

    api, message = HfApi(), f"Shortened by shortstack: {len(files)} files"
    try:
        if not create_pr:
            api.create_repo(repository, private=private, exist_ok=True)
            _check_new(repository, api.model_info(repository), private=private)
        return api.create_commit(repository, files, commit_message=message, create_pr=create_pr)
    except (connection_error(), LocalTokenNotFoundError, OfflineModeIsEnabled) as error:
        said = one_line(error) or type(error).__name__
        way = "log in with a token that may write (hf auth login), or push again: nothing is sent twice"
        raise ShortstackError(f"the hub did not take {repository} ({said}); {way}") from error


def _check_new(repository: str, model_info: ModelInfo, *, private: bool) -> None:
    """Refuse a public repository where a private one was meant, and one with files, which would lie beside these."""
    if private and not model_info.private:
        raise InputError(f"{repository} is public; make it private on the hub, or name another", option="private")
    there = sorted({sibling.rfilename for sibling in model_info.siblings or ()} - {".gitattributes"})
    if there:
        found = f"{repository} has {len(there)} files, {there[0]} among them"
        raise OutputError(f"{found}; name another, or offer a pull request with create_pr", option="push_to_hub")
