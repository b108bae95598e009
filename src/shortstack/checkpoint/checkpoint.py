"""Checkpoints, read lazily: directories, hub ids, .gguf files, `demo`, and loaded models, saved into the cache."""

from __future__ import annotations

import functools
import hashlib
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from shortstack.architecture import Anatomy, anatomy
from shortstack.architecture.config_fields import depth_axis
from shortstack.architecture.layer_names import LayerNames
from shortstack.checkpoint.file_names import VOCABULARIES
from shortstack.checkpoint.index import how_to_load, read_tensors
from shortstack.checkpoint.pieces import Span
from shortstack.checkpoint.record_file import read_record
from shortstack.checkpoint.safetensors import StoredTensor
from shortstack.checkpoint.side_files import check_own_files, side_files
from shortstack.checkpoint.sizes import Sizes
from shortstack.checkpoint.source import commit_of, locate
from shortstack.errors import CheckpointError, InputError, one_line
from shortstack.machine.cache import cache_directory, content_key, kept_folder, make_room, mark_used
from shortstack.machine.files import check_disk, digest, file_digest
from shortstack.machine.memory import Memory
from shortstack.machine.progress import Progress, hush_transformers, silent

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


SAMPLE = 4, 16 << 10  # blocks of each weight, and their bytes
ALIGNMENT = 64  # bytes: a cache line, and what torch itself gives a tensor it makes
Model: TypeAlias = "str | Path | Checkpoint | PreTrainedModel"  # what functions take for one: see Checkpoint.of()


@dataclass(frozen=True)
class Checkpoint:
    """A model on disk. Opening reads headers only; `model()` and `tokenizer()` load.

    in_memory: it was given as a loaded model, whose weights may be others than those of `source`, where they were loaded.

    >>> Checkpoint.open("demo").anatomy.layers  # doctest: +SKIP
    30
    """

    directory: Path
    source: str
    revision: str | None
    config: Mapping[str, Any] = field(repr=False)
    tensors: Mapping[str, StoredTensor] = field(repr=False)
    trust_remote_code: bool = False
    in_memory: bool = False

    @classmethod
    def open(
        cls,
        model: str | Path,
        *,
        revision: str | None = None,
        trust_remote_code: bool = False,
        download: bool = True,
        progress: Progress = silent,
    ) -> Checkpoint:
        """Open a directory, a hub id, a .gguf file, or `demo`. download: whether a hub model may be fetched.

        Raises:
            CheckpointError: it cannot be found, is incomplete or truncated, holds pickled weights, or links to other files.
        """
        directory = locate(str(model), revision, progress, download=download)
        check_own_files(directory)
        config = anatomy.read_config(directory)
        tensors = read_tensors(directory, config)
        anatomy.check_depth(config, len(tensors), directory)
        return cls(directory, str(model), commit_of(directory) or revision, config, tensors, trust_remote_code)

    @classmethod
    def of(cls, model: Model) -> Checkpoint:
        """Open a model however it is given: a Checkpoint, what open() takes, or a loaded model of transformers.

        The last is saved into the cache, once for each content, with the tokenizer of the place that it was loaded from.

        Raises:
            CheckpointError: as open().
            InputError: a loaded model has adapters, or weights that are quantised or not in memory.
        """
        if isinstance(model, Checkpoint):
            return model
        if isinstance(model, str | Path):
            return cls.open(model)
        opened = cls.open(_saved(model))
        commit = getattr(model.config, "_commit_hash", None)  # of one that was loaded from the hub
        return replace(opened, source=str(model.name_or_path) or opened.source, revision=commit, in_memory=True)

    @functools.cached_property
    def blueprint(self) -> PreTrainedModel:
        """The model on the meta device: structure without weights."""
        return anatomy.meta_model(self.directory, trust_remote_code=self.trust_remote_code)

    @property
    def auto_class(self) -> str:
        """The name of the class of transformers that loads the model."""
        return str(anatomy.auto_class(self.config["model_type"]).__name__)

    @functools.cached_property
    def anatomy(self) -> Anatomy:
        return anatomy.dissect(self.blueprint, self.config, self.directory)

    @property
    def vocabulary(self) -> int:
        """How many tokens the model has embeddings for; a tokenizer may know fewer."""
        return self._embedding_shape[0]

    @property
    def width(self) -> int:
        """How many numbers the embedding of a token has."""
        return self._embedding_shape[1]

    @property
    def hidden_width(self) -> int:
        """How many numbers a hidden state has: some models project the embedding into it."""
        config = self.blueprint.config.get_text_config(decoder=True)
        return int(getattr(config, "hidden_size", None) or self.width)

    @property
    def _embedding_shape(self) -> tuple[int, ...]:
        return tuple(self.blueprint.get_submodule(self.anatomy.embedding).weight.shape)

    @functools.cached_property
    def positions(self) -> int | None:
        """How many positions the model has a table for; None where they are computed."""
        return anatomy.learned_positions(self.blueprint, self.anatomy)

    @functools.cached_property
    def layer_names(self) -> LayerNames:
        """How the files name the tensors of layers."""
        return LayerNames.stored(self.anatomy, self.tensors, self.directory)

    @functools.cached_property
    def depth(self) -> int:
        """How many layers the model has: by the tensors' names where they show it, so that nothing is imported for it."""
        seen = LayerNames.seen(self.tensors, self.config)
        return seen.layers if seen else self.anatomy.layers

    @functools.cached_property
    def sizes(self) -> Sizes:
        """Parameters and stored bytes of each layer, of the rest, and of the extra heads, which go with any cut."""
        return Sizes.summed(self.anatomy.layers, self._shares())

    def _shares(self) -> Iterator[tuple[int | None, int, int]]:
        """Yield of each tensor the layer, or what it has of each layer, with its parameters and bytes."""
        layers, names = self.anatomy.layers, self.layer_names
        for tensor in self.tensors.values():
            if depth_axis(tensor.name) is not None:
                for layer in range(layers):
                    yield layer, tensor.parameters // layers, tensor.size // layers
            else:
                extra = names.is_extra_head(tensor.name)
                yield layers if extra else names.layer_of(tensor.name), tensor.parameters, tensor.size

    @property
    def weight_bytes(self) -> int:
        """Bytes of all tensors."""
        return sum(tensor.size for tensor in self.tensors.values())

    @property
    def parameters(self) -> int:
        """Stored parameters; a tied head counts once."""
        return sum(tensor.parameters for tensor in self.tensors.values())

    @functools.cached_property
    def record(self) -> Mapping[str, Any]:
        """The shortstack.json beside the weights; empty for a checkpoint that shortstack did not write.

        Raises:
            CheckpointError: it is not what shortstack writes.
        """
        return read_record(self.directory)

    @property
    def records(self) -> Iterator[Mapping[str, Any]]:
        """The checkpoint's record, that of the checkpoint it was made from, and so on to the first that has one."""
        record = self.record
        while record:
            yield record
            record = record.get("origin") or {}

    @property
    def made_from(self) -> str | None:
        """The name of the first model of the records, which was not cut; None where shortstack did not write this one."""
        return str(self.first_source["id"]) if self.first_source else None

    @property
    def first_source(self) -> Mapping[str, Any]:
        """The name and the revision of the first model of the records; empty where shortstack did not write this one."""
        return {} if not self.record else dict([*self.records][-1]["source"])

    @functools.cached_property
    def weights_sha256(self) -> str:
        """Digest of all weight files, read in full."""
        return "+".join(file_digest(path) for path in self.shards)

    @functools.cached_property
    def weights_digest(self) -> str:
        """Digest of names, shapes and a sample of each weight: tells models apart without reading them in full."""
        sha, blocks, length = hashlib.sha256(), *SAMPLE
        with ExitStack() as stack:
            files = {path: stack.enter_context(path.open("rb", buffering=0)) for path in self.shards}
            for name, tensor in sorted(self.tensors.items()):
                sha.update(f"{name} {tensor.dtype} {tensor.shape}".encode())
                assert isinstance(tensor.data, Span)  # noqa: S101  as it was read
                for start in range(0, tensor.size, max(length, tensor.size // blocks)):
                    files[tensor.file].seek(tensor.data.start + start)
                    sha.update(files[tensor.file].read(min(length, tensor.size - start)))
        return sha.hexdigest()

    @functools.cached_property
    def identity(self) -> Mapping[str, Any]:
        """All of a checkpoint that results depend on: digests of its weights, its config and the files beside them.

        Those are the tokenizer's, chat templates, the generation config, and its own code where that is trusted.
        """
        return {"weights": self.weights_sha256, "config": digest(self.config), "beside": self.beside}

    @property
    def beside(self) -> str:
        """The digest of the files beside weights and config: tokenizer, templates, generation config, code."""
        return digest({str(path.relative_to(self.directory)): file_digest(path) for path in self.side_files()})

    @property
    def shards(self) -> tuple[Path, ...]:
        """Weight files, in name order."""
        return tuple(sorted({tensor.file for tensor in self.tensors.values()}))

    def check_room(self, dtype: torch.dtype, device: str, *, fix: str = "") -> None:
        """Refuse to load the model where the device has less memory than its weights take in `dtype`. fix: what to do.

        Raises:
            InputError: the weights do not fit.
        """
        Memory(self.loaded_bytes(dtype), device).check(f"loading {self.source}", fix)

    @property
    def quantised(self) -> bool:
        return bool(self.config.get("quantization_config"))

    def loaded_bytes(self, dtype: torch.dtype) -> int:
        """Count the bytes that the weights take in memory: quantised ones as stored, unless they are unpacked on loading."""
        if not self.quantised:
            return self.parameters * dtype.itemsize
        unpacked = how_to_load(self.config) and sum(weight.numel() for weight in self.blueprint.parameters())
        return unpacked * dtype.itemsize if unpacked else self.weight_bytes

    def model(
        self,
        *,
        dtype: torch.dtype,
        device: str = "cpu",
        device_map: str | Mapping[str, str | int] | None = None,
        strict: bool = False,
    ) -> PreTrainedModel:
        """Load the model, in evaluation mode. strict: tensors the model has no place for are an error too.

        device_map: in place of a device, as accelerate takes it: which modules go where, or how that is found.

        Raises:
            CheckpointError: transformers found tensors missing, of another shape, or (strict) unexpected.
            ArchitectureError: the config describes no decoder-only language model that can be built.
            InputError: the device has less memory than the weights take.
        """
        _ = self.blueprint  # says what is wrong with the config, which from_pretrained says in many ways
        if device_map is None:
            self.check_room(dtype, device)
        model, report = self._loaded(dtype, device_map)
        wrong = {
            kind: sorted(map(str, report[kind]))
            for kind in ("missing_keys", "mismatched_keys", *(["unexpected_keys"] if strict else []))
            if report.get(kind)
        }
        if wrong:
            found = ", ".join(f"{len(names)} {kind} such as {names[0]}" for kind, names in wrong.items())
            raise CheckpointError(
                f"{self.directory}: weights do not fit the config ({found}); download or save it again"
            )
        if device_map is not None:
            return model.eval()
        if device == "cpu":
            _align(model)
        return model.eval().to(device)

    def _loaded(
        self, dtype: torch.dtype, device_map: str | Mapping[str, str | int] | None
    ) -> tuple[Any, dict[str, Any]]:
        """Load the model as transformers does, and return it with its report of what did not fit."""
        hush_transformers()
        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", "You passed `quantization_config`")  # how_to_load() did
                loaded: tuple[Any, dict[str, Any]] = anatomy.auto_class(self.config["model_type"]).from_pretrained(
                    self.directory,
                    dtype=dtype,
                    local_files_only=True,
                    use_safetensors=True,
                    trust_remote_code=self.trust_remote_code,
                    output_loading_info=True,
                    ignore_mismatched_sizes=True,  # the report names them with the others
                    device_map=device_map,
                    **how_to_load(self.config),
                )
        except ImportError as error:
            fix = "install that, or start from the unquantised model"
            raise CheckpointError(
                f"a library for the weights of {self.source} is missing ({one_line(error)}); {fix}"
            ) from error
        except ValueError as error:
            if "offload_folder" not in str(error):
                raise
            joined = f"weights of {self.source} are joined as they are read, so that none can lie on disk"
            raise InputError(f"{joined}; leave it out to read layer by layer", option="device_map") from error
        return loaded

    @property
    def has_tokenizer(self) -> bool:
        """Whether a file of a tokenizer lies beside the weights."""
        files = (path for path in self.directory.iterdir() if path.is_file())
        return any(path.name in VOCABULARIES or path.suffix in (".model", ".tiktoken") for path in files)

    def tokenizer(self) -> PreTrainedTokenizerBase:
        """Load the checkpoint's tokenizer.

        Raises:
            CheckpointError: there is none, or it cannot be read.
        """
        from transformers import AutoTokenizer

        if not self.has_tokenizer:
            raise self._no_tokenizer("no file of one")
        try:
            tokenizer = AutoTokenizer.from_pretrained(
                self.directory, local_files_only=True, trust_remote_code=self.trust_remote_code
            )
            tokenizer("a text")  # what is wrong with its settings shows here at the latest
        except BaseException as error:
            # tokenizers, which is not Python, raises nothing more special than Exception, or where it panics, BaseException.
            bare = type(error) is Exception or type(error).__name__ == "PanicException"
            if not bare and not isinstance(error, anatomy.UNBUILDABLE):
                raise
            raise self._no_tokenizer(one_line(error)) from error
        return tokenizer

    def _no_tokenizer(self, reason: str) -> CheckpointError:
        return CheckpointError(f"{self.directory} has no tokenizer ({reason}); copy its files beside the weights")

    def derived(self, folder: Path) -> Checkpoint:
        """Open what was made from this one, trusting remote code if that is trusted."""
        return Checkpoint.open(folder, trust_remote_code=self.trust_remote_code)

    def side_files(self) -> list[Path]:
        """List the files an output must carry along: tokenizer, generation config, chat template, licence.

        Code is among them only when it is trusted.
        """
        return side_files(self.directory, code=self.trust_remote_code)


def _align(model: PreTrainedModel) -> None:
    """Move weights that lie mapped at odd addresses in their file: matrix products may round by where a matrix begins."""
    for weight in (*model.parameters(), *model.buffers()):
        if weight.data_ptr() % ALIGNMENT:
            weight.data = weight.data.clone()


def _saved(model: Any) -> Path:
    """Save a loaded model as it is now, with the tokenizer of the place that it was loaded from; return the directory."""
    _check_plain(model)
    # By save_pretrained, to the config, too.
    written = {"dtype": str(model.dtype), "architectures": [type(model).__name__]}
    config, source = {**model.config.to_dict(), **written}, str(model.name_or_path)
    generation = model.generation_config.to_dict() if model.can_generate() else None
    tokenizer = _tokenizer(source)
    key = content_key(
        "models",
        weights=_weights_digest(model),
        config=config,
        source=source,
        generation=generation,
        tokenizer=tokenizer and _saved_digest(tokenizer),
    )
    place = cache_directory("models") / key
    if place.is_dir():
        mark_used(place)
        return place
    nbytes = sum(weight.numel() * weight.element_size() for weight in model.parameters())
    make_room(nbytes)
    check_disk(place.parent, nbytes, what="a model that was given in memory")
    hush_transformers()
    with kept_folder(place) as partial:
        model.save_pretrained(partial)
        if tokenizer is not None:
            tokenizer.save_pretrained(partial)
    return place


def _check_plain(model: Any) -> None:
    if not hasattr(model, "save_pretrained") or not hasattr(model, "config"):
        kinds = "a folder, a hub id, a Checkpoint or a loaded model of transformers"
        raise InputError(f"a {type(model).__name__} is no model; give {kinds}")
    away = next((name for name, weight in model.named_parameters() if weight.is_meta), None)
    quantised = getattr(model, "hf_quantizer", None) is not None
    if quantised or hasattr(model, "peft_config") or away:
        kind = "quantised weights" if quantised else f"{away} elsewhere" if away else "adapters"
        raise InputError(
            f"the model has {kind}, not plain weights in memory; name its folder, and merge adapters first"
        )


def _weights_digest(model: PreTrainedModel) -> str:
    import torch

    sha = hashlib.sha256()
    for name, weight in sorted(model.state_dict().items()):
        sha.update(f"{name} {weight.dtype} {tuple(weight.shape)}".encode())
        sha.update(memoryview(weight.detach().cpu().contiguous().flatten().view(torch.uint8).numpy()))
    return sha.hexdigest()


def _tokenizer(source: str) -> PreTrainedTokenizerBase | None:
    """Load the tokenizer of the place that a model was loaded from; None where it has none."""
    from transformers import AutoTokenizer

    try:
        tokenizer: PreTrainedTokenizerBase | None = (
            AutoTokenizer.from_pretrained(source, local_files_only=True, trust_remote_code=False) if source else None
        )
    except (OSError, ValueError):
        return None
    return tokenizer


def _saved_digest(tokenizer: PreTrainedTokenizerBase) -> str:
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        files = sorted(path for path in Path(folder).rglob("*") if path.is_file())
        return digest({str(path.relative_to(folder)): file_digest(path) for path in files})
