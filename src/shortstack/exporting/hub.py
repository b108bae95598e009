"""push_to_hub(): a checkpoint in a repository of the hub, with its card."""

from __future__ import annotations

import tempfile
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from shortstack.checkpoint import Checkpoint, Model
from shortstack.checkpoint.card import HUB_ID, CardContent, Evaluated, licence_of, model_card, results_section
from shortstack.checkpoint.file_names import CARD, RECORD
from shortstack.errors import CheckpointError, InputError, OutputError, ShortstackError, one_line
from shortstack.machine.hub import connection_error
from shortstack.machine.progress import Progress, in_notebooks
from shortstack.machine.typed import typed
from shortstack.pruning import verify

EMPTY = {".gitattributes"}  # what a new repository has
AGAIN = "call it again: what was uploaded of a file is not sent twice"
STEPS = ("checking", "making the repository", "uploading")


@dataclass(frozen=True)
class Pushed:
    """Where a checkpoint is now. pull_request: the page of the pull request, where that was asked for."""

    repository: str
    url: str
    commit: str
    pull_request: str | None
    files: tuple[str, ...]


@typed
def push_to_hub(
    checkpoint: Model,
    repository: str,
    *,
    private: bool = False,
    pr: bool = False,
    licence: str | None = None,
    results: Sequence[Evaluated] = (),
    endpoint: str | None = None,
    progress: Progress = in_notebooks,
) -> Pushed:
    """Verify a checkpoint that shortstack wrote, and upload it as one commit; returns where it is.

    Nothing but the files of its manifest, the record and the card goes there. A repository that has other files is only
    given a pull request. Called again after a failure it goes on: what the hub has of a file's content is not sent again.

    pr: offer it as a pull request. licence: the hub's name of one, where the source's is not known. results: what evaluate
    found, for the card.

    Raises:
        InputError: no name of a repository; nobody knows the licence.
        OutputError: the repository has files, and no pull request is asked for.
        CheckpointError: the checkpoint is not as it was written.
        ShortstackError: the hub cannot be reached, or refuses.
    """
    checkpoint = Checkpoint.of(checkpoint)
    progress(STEPS[0], 0, len(STEPS))
    files, card = prepared(checkpoint, repository, licence=licence, results=results)
    with _said(repository):
        return _pushed(repository, files, card, (private, pr), endpoint, progress)


def prepared(
    checkpoint: Checkpoint, repository: str, *, licence: str | None = None, results: Sequence[Evaluated] = ()
) -> tuple[dict[str, Path], str]:
    """The files that are uploaded, by their names there, and the card; the hub is not asked."""
    _check_name(repository)
    _check_whole(checkpoint)
    card = card_for(checkpoint, repository, licence=licence, results=results)
    return {name: checkpoint.directory / name for name in (*checkpoint.record["files"], RECORD)}, card


def card_for(checkpoint: Checkpoint, name: str, *, licence: str | None, results: Sequence[Evaluated]) -> str:
    """The card beside the checkpoint, or a new one where there is none; with a licence, results, and the name it
    will have.
    """
    from huggingface_hub import ModelCard

    path = checkpoint.directory / CARD
    said = licence_of(checkpoint.directory)
    if licence and said.get("license", licence) != licence:
        expected, fix = f"the licence of the source, {said.get('license')}", "leave it out, or correct the card"
        raise InputError(licence, expected=expected, fix=fix, option="license")
    known = {**({"license": licence} if licence else {}), **said}
    if not known:
        fix = "say it, such as apache-2.0, or other, with its terms in the card"
        raise InputError("none that is known", expected="the licence of the source", fix=fix, option="license")
    try:
        text = (
            path.read_text(encoding="utf-8")
            if path.is_file()
            else model_card(name, checkpoint.record, CardContent(licence=known))
        )
        ModelCard(text, ignore_metadata_errors=False)
    except (ValueError, yaml.YAMLError) as error:
        fix = "correct it, or move it away: then a new one is written"
        raise CheckpointError(one_line(error), expected="a model card", fix=fix, where=path) from error
    text = text.replace(f'from_pretrained("{checkpoint.directory.resolve().name}")', f'from_pretrained("{name}")')
    card = ModelCard(text, ignore_metadata_errors=False)
    for field, value in known.items():
        setattr(card.data, field, value)
    return f"{card}{results_section(results)}"


def _pushed(
    repository: str,
    files: Mapping[str, Path],
    card: str,
    how: tuple[bool, bool],
    endpoint: str | None,
    progress: Progress,
) -> Pushed:
    from huggingface_hub import CommitOperationAdd, HfApi

    private, pr = how
    api = HfApi(endpoint=endpoint)
    progress(STEPS[1], 1, len(STEPS))
    if pr:
        _check_there(api, repository)
    else:
        api.create_repo(repository, private=private, exist_ok=True)
        if private:
            _check_private(api, repository)
        _check_free(api, repository, files, card)
    progress(STEPS[2], 2, len(STEPS))
    additions = [CommitOperationAdd(path_in_repo=name, path_or_fileobj=path) for name, path in files.items()]
    additions.append(CommitOperationAdd(path_in_repo=CARD, path_or_fileobj=card.encode()))
    message = f"Shortened by shortstack: {len(files)} files"
    made = api.create_commit(repository, additions, commit_message=message, create_pr=pr)
    progress(STEPS[2], len(STEPS), len(STEPS))
    url = str(made.pr_url or f"{api.endpoint}/{repository}")
    return Pushed(repository, url, made.oid, made.pr_url, (*files, CARD))


def _check_there(api: Any, repository: str) -> None:
    """Refuse to offer something to a repository that does not exist, before anything is uploaded."""
    if not api.repo_exists(repository):
        fix = f"leave it out, and {repository} is made; or log in, where it is private"
        raise InputError("none", expected="a repository that exists", fix=fix, option="pr")


def _check_private(api: Any, repository: str) -> None:
    """Refuse a repository that was there before, and is public."""
    if not api.repo_info(repository).private:
        fix = "make it private on the hub, or name another"
        found = f"{repository}, which is public"
        raise InputError(found, expected="a private repository", fix=fix, option="private")


def _check_free(api: Any, repository: str, files: Mapping[str, Path], card: str) -> None:
    """Refuse a repository that has files, unless they are these: then the push goes on where it was broken off."""
    there = set(api.list_repo_files(repository)) - EMPTY
    wanted = {RECORD: files[RECORD].read_bytes(), CARD: card.encode()}
    if there and not (there <= {*files, CARD} and _lie_there(api, repository, there, wanted)):
        raise OutputError(
            f"one with {len(there)} files, {min(there)} among them",
            expected="a repository that does not exist yet, or is empty",
            fix="name another, or offer it as a pull request, with pr",
            where=repository,
        )


def _lie_there(api: Any, repository: str, there: Collection[str], wanted: Mapping[str, bytes]) -> bool:
    """Whether these files lie there: the record, with the digests of all others, and the card."""
    if not wanted.keys() <= set(there):
        return False
    with tempfile.TemporaryDirectory() as folder:
        files = {name: Path(api.hf_hub_download(repository, name, local_dir=folder)) for name in wanted}
        return all(files[name].read_bytes() == content for name, content in wanted.items())


def _check_name(repository: str) -> None:
    if not HUB_ID.fullmatch(repository):
        fix = "name an account and a model"
        raise InputError(repository, expected="an id like org/name", fix=fix, option="push_to_hub")


def _check_whole(checkpoint: Checkpoint) -> None:
    """Refuse a checkpoint that is not as it was written."""
    verification = verify(checkpoint, stream=True)
    if not verification.ok:
        wrong = next(check["detail"] for check in verification.checks.values() if not check["ok"])
        fix = "make it again, or undo the change"
        raise CheckpointError(wrong, expected="a checkpoint as it was written", fix=fix, where=checkpoint.directory)


@contextmanager
def _said(repository: str) -> Iterator[None]:
    """Raise errors of the hub, and a hub that cannot be reached, as errors of ours."""
    from huggingface_hub.errors import (
        HfHubHTTPError,
        LocalEntryNotFoundError,
        LocalTokenNotFoundError,
        OfflineModeIsEnabled,
    )

    try:
        yield
    except HfHubHTTPError as error:
        status = error.response.status_code if error.response is not None else 0
        fix = "log in with a token that may write: hf auth login" if status in (401, 403) else AGAIN
        found = f"{status}: {one_line(error)}"
        raise ShortstackError(found, expected="the hub to accept it", fix=fix, where=repository) from error
    except LocalTokenNotFoundError as error:
        fix = "log in with a token that may write: hf auth login"
        raise ShortstackError("none", expected="a token for the hub", fix=fix, where=repository) from error
    except (connection_error(), OfflineModeIsEnabled, LocalEntryNotFoundError) as error:
        found = one_line(error) or type(error).__name__
        raise ShortstackError(found, expected="the hub to answer", fix=AGAIN, where=repository) from error
