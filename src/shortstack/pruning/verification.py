"""verify(): digests, tensors, and logits of a pruned model equal to the base model's without those layers."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from shortstack.checkpoint import Checkpoint, Model
from shortstack.checkpoint.file_names import PICKLED, RECORD
from shortstack.checkpoint.index import how_to_load
from shortstack.checkpoint.record import changed_since, skipped_layers
from shortstack.checkpoint.safetensors import StoredTensor
from shortstack.checkpoint.weights import check_fit
from shortstack.decoder import Decoder
from shortstack.decoder.decoder import UNPRUNED, SkippedLayers
from shortstack.decoder.streaming import must_stream
from shortstack.decoder.wrapping import arithmetic
from shortstack.errors import ArchitectureError, CheckpointError, one_line
from shortstack.machine.device import pick_device
from shortstack.machine.files import file_digest, to_jsonable
from shortstack.machine.formats import show_layers
from shortstack.machine.progress import Progress, silent, under
from shortstack.machine.tables import Column, Table, Tabled
from shortstack.planning import Plan
from shortstack.pruning.pruner import kept_tensors

LOADABLE = {".safetensors", ".py", ".gguf", *PICKLED}  # weights or code that a loader might take
ROUNDING = 1e-5  # of the largest logit: what sums in another order may differ by in fp32
PROBE_TOKENS = (2, 24)  # samples and length of the random tokens whose logits are compared


@dataclass(frozen=True, repr=False)
class Verification(Tabled):
    """The checks and their outcomes: `checks[name] = {"ok": bool, "detail": str}`."""

    checks: Mapping[str, Mapping[str, Any]]

    def table(self) -> Table:
        rows = [(name, "ok" if check["ok"] else "FAILED", check["detail"]) for name, check in self.checks.items()]
        title = "all checks passed" if self.ok else "a check failed"
        return Table.of(title, ("check", "result", Column("detail", "text")), rows)

    @property
    def ok(self) -> bool:
        return all(check["ok"] for check in self.checks.values())

    def to_dict(self) -> dict[str, Any]:
        return {"ok": self.ok, **to_jsonable(self)}


def verify(
    checkpoint: Model,
    *,
    base: Model | None = None,
    device: str = "cpu",
    stream: bool | None = None,
    progress: Progress = silent,
) -> Verification:
    """Re-read a pruned model; with `base`, compare its logits with the base model's, the removed layers skipped.

    The first check that fails is the last: a changed file is not loaded, and what does not load has no logits. Quantised
    weights whose loader is not on this machine are compared byte for byte in their place.

    Logits are compared in float32 on seeded random tokens; they must be equal, difference 0. Where a tensor outside the
    layers became smaller (Gemma 3n's per-layer embeddings), products with it round anew and 1e-5 of the largest logit is
    allowed; where a step since the base model repaired or trained weights, the difference is only reported.

    stream: read weights layer by layer, which takes the memory of two layers beside embedding and head; None: where one of
    the models does not fit. Then both are walked in the dtype they compute in.

    Raises:
        CheckpointError: it has no record, or the two models do not belong together.
    """
    checkpoint = Checkpoint.of(checkpoint)
    base = Checkpoint.of(base) if base is not None else None
    if not checkpoint.record:
        raise CheckpointError(f"{checkpoint.directory} has no {RECORD}; verify an output of shortstack")
    device = pick_device(device)
    checks = {"files": _files(checkpoint, progress)}
    if not checks["files"]["ok"]:  # what somebody changed is not loaded
        return Verification(checks)
    models = [checkpoint, *([base] if base else [])]
    if stream is None:
        stream = any(must_stream(model, torch.float32, device) for model in models)
    if why := _not_loaded(checkpoint, stream=stream):
        detail = f"{len(checkpoint.tensors)} tensors; not loaded here: {why}"
        compared = {"bytes": _bytes(checkpoint, base)} if base else {}
        return Verification({**checks, "tensors": {"ok": True, "detail": detail}, **compared})
    checks["tensors"] = _tensors(checkpoint, stream=stream)
    if base is not None and checks["tensors"]["ok"]:
        checks["logits"] = _logits(checkpoint, base, device, under(progress, "comparing: ") if stream else None)
    return Verification(checks)


def _files(checkpoint: Checkpoint, progress: Progress) -> dict[str, Any]:
    """Check that every file of the manifest is as it was written, with no weights or code beside them that are not in it."""
    manifest = checkpoint.record["files"]
    strangers = sorted(
        path.name
        for path in checkpoint.directory.iterdir()
        if (path.suffix.lower() in LOADABLE or path.name.lower().startswith("adapter_")) and path.name not in manifest
    )
    wrong = [f"{name} was not written by shortstack" for name in strangers]
    for number, (name, written) in enumerate(manifest.items(), start=1):
        path = checkpoint.directory / name
        if not os.path.isfile(path):  # False for names no file can have, too
            wrong.append(f"{name} is missing")
        elif path.stat().st_size != written["size"]:
            wrong.append(f"{name} has {path.stat().st_size} bytes, not {written['size']}")
        elif file_digest(path) != written["sha256"]:
            wrong.append(f"{name} has another sha256")
        progress("checking digests", number, len(manifest))
    return {"ok": not wrong, "detail": "; ".join(wrong) or f"{len(manifest)} files as written"}


def _tensors(checkpoint: Checkpoint, *, stream: bool) -> dict[str, Any]:
    """Check that transformers loads it with nothing missing, unexpected or of another shape; stream: would, by headers."""
    try:
        check_fit(checkpoint, extra_heads=False) if stream else checkpoint.model(dtype=torch.float32, strict=True)
    except (ArchitectureError, CheckpointError) as error:
        return {"ok": False, "detail": str(error)}
    return {"ok": True, "detail": f"{len(checkpoint.tensors)} tensors, none missing or unexpected"}


def _not_loaded(checkpoint: Checkpoint, *, stream: bool) -> str | None:
    """Say why quantised weights are not loaded here: layers are read one by one, or their loader lacks something.

    That is what transformers' quantisers look at before any weight is read; each has its own kind of error for it.
    """
    settings = checkpoint.config.get("quantization_config")
    if not settings:
        return None
    if stream:
        return "quantised weights are not read layer by layer"
    from transformers.quantizers import AutoHfQuantizer

    quantisation = how_to_load(checkpoint.config).get("quantization_config") or settings
    try:
        AutoHfQuantizer.from_config(quantisation, pre_quantized=True).validate_environment(device_map=None)
    except (ImportError, RuntimeError, ValueError, TypeError, AssertionError) as error:
        return one_line(error) or type(error).__name__
    return None


def _bytes(checkpoint: Checkpoint, base: Checkpoint) -> dict[str, Any]:
    removed = tuple(sorted(skipped_layers(checkpoint, base)))
    expected = list(base.tensors.values())
    if removed:
        expected = kept_tensors(base, Plan(base.anatomy.layers, removed, "verify"))
    strangers = checkpoint.tensors.keys() - {tensor.name for tensor in expected}
    wrong = [f"{name} is not the base model's" for name in (*_differing(checkpoint, expected), *strangers)]
    said = f"{len(expected)} tensors equal to the base model's, byte for byte"
    return {"ok": not wrong, "detail": "; ".join(wrong[:3]) or said}


def _differing(checkpoint: Checkpoint, expected: Iterable[StoredTensor]) -> Iterator[str]:
    for tensor in expected:
        stored = checkpoint.tensors.get(tensor.name)
        if (
            stored is None
            or (stored.dtype, stored.shape) != (tensor.dtype, tensor.shape)
            or stored.digest() != tensor.digest()
        ):
            yield tensor.name


@torch.no_grad()
def _logits(checkpoint: Checkpoint, base: Checkpoint, device: str, streamed: Progress | None) -> dict[str, Any]:
    """Compare the logits with the base model's without those layers. streamed: read layer by layer, with its progress."""
    skipped = skipped_layers(checkpoint, base)
    vocabulary = base.vocabulary
    if vocabulary != checkpoint.vocabulary:
        message = (
            f"{checkpoint.source} has a vocabulary of {checkpoint.vocabulary} tokens, {base.source} of {vocabulary}"
        )
        raise CheckpointError(f"{message}; name the model it was made from", option="base")
    ids = torch.randint(vocabulary, PROBE_TOKENS, generator=torch.Generator().manual_seed(0)).to(device)
    resized = _resized(checkpoint, base)
    if streamed:
        dtype = torch.float32 if resized else arithmetic("auto", base, device)
        expected = _walked(base, ids, skipped, dtype=dtype, device=device, progress=streamed)
        logits = _walked(checkpoint, ids, UNPRUNED, dtype=dtype, device=device, progress=streamed)
    else:
        expected = Decoder.load(base, dtype=torch.float32, device=device).skipping(ids, skipped)
        logits = checkpoint.model(dtype=torch.float32, device=device)(input_ids=ids, use_cache=False).logits
    difference, allowed = float((logits - expected).abs().max()), 0.0
    plural = "s" if len(skipped) > 1 else ""
    without = f"without layer{plural} {show_layers(sorted(skipped))}" if skipped else "with the same layers"
    if changed := changed_since(checkpoint, base):
        without += "; it was repaired or trained since, so that only NaN or infinity fails"
    elif resized:
        allowed = ROUNDING * float(expected.abs().max())
        without += f"; up to {allowed:.0e} is rounding, since {resized} is smaller"
    return {
        "ok": bool(torch.isfinite(logits).all()) if changed else difference <= allowed,
        "detail": f"max abs difference {difference:g} {without}",
    }


def _walked(
    checkpoint: Checkpoint, ids: Tensor, skipped: SkippedLayers, *, dtype: torch.dtype, device: str, progress: Progress
) -> Tensor:
    decoder = Decoder.load(checkpoint, dtype=dtype, device=device, stream=True)
    needed = [layer for layer, form in enumerate(decoder.forms()) if layer not in skipped or form.fills]
    walk = decoder.enter(ids, [skipped])
    for layer in decoder.through([walk], needed):
        progress(str(checkpoint.source), layer + 1, len(decoder.layers))
    return decoder.logits(ids, walk.hidden[skipped])


def _resized(checkpoint: Checkpoint, base: Checkpoint) -> str | None:
    """Find a tensor outside the layers that a cut made smaller (one part of it a layer): products with it round anew."""
    for name, tensor in checkpoint.tensors.items():
        before = base.tensors.get(name)
        if checkpoint.layer_names.layer_of(name) is None and before and tensor.shape != before.shape:
            return name
    return None
