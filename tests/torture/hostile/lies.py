"""The corpus: what lies, as changes to a folder that is whole. Outside of it lie files that nobody may read, with a canary.

Each is a function of the folder of a model, or of the folder that holds a .gguf file, a study or a recipe.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

CANARY = "canary-7f3a"  # stands in every file outside, and in no other
MARKUP = "<img src=x onerror=alert(1)>[a](https://evil.example)`|\x1b[31m\n```\n"
OUTSIDE, RAN = "elsewhere", "ran"  # beside the model's: the folder with the canaries, and what code that runs makes
CODE = "import pathlib\n(pathlib.Path(__file__).parents[1] / 'ran').touch()\npathlib.Path({ran!r}).touch()\n"
Lie = Callable[[Path], None]


def edited(path: Path, **fields: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


def fields_of(name: str) -> Callable[..., Lie]:
    """Lies that are other fields of a JSON file."""
    return lambda **fields: lambda model: edited(model / name, **fields)


config, tokenizer, record = map(fields_of, ("config.json", "tokenizer_config.json", "shortstack.json"))


def told(value: Callable[[Path], Any], into: Callable[..., Lie], field: str) -> Lie:
    """A field with a value that is known once the folder is there, such as a path outside of it."""
    return lambda model: into(**{field: value(model)})(model)


def outside(name: str) -> Callable[[Path], str]:
    return lambda model: str(model.parent / OUTSIDE / name)


def manifest(name: Callable[[Path], str]) -> Lie:
    """One more file in the manifest; with the size and the digest of the one outside."""

    def lie(model: Path) -> None:
        from shortstack.machine.files import file_digest

        secret = model.parent / OUTSIDE / "secret.json"
        files = json.loads((model / "shortstack.json").read_text())["files"]
        seen = {"size": secret.stat().st_size, "sha256": file_digest(secret)}
        edited(model / "shortstack.json", files={**files, name(model): seen})

    return lie


def index(name: Callable[[Path], str], *, beside: bool = False) -> Lie:
    """The weights in a file of that name, by an index. beside: next to model.safetensors."""

    def lie(model: Path) -> None:
        from shortstack.checkpoint.safetensors import read_shard

        single = model / "model.safetensors"
        names = [tensor.name for tensor in read_shard(single)]
        weight_map = dict.fromkeys(names, name(model))
        (model / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
        if not beside:
            single.unlink()

    return lie


def link(name: str, to: str) -> Lie:
    def lie(model: Path) -> None:
        (model / name).unlink(missing_ok=True)
        (model / name).symlink_to(model.parent / OUTSIDE / to)

    return lie


def code(**auto_map: Any) -> Lie:
    """Python beside the model, named by all configs."""

    def lie(model: Path) -> None:
        (model / "own.py").write_text(CODE.format(ran=str(model.parent / RAN)))
        for name in ("config.json", "tokenizer_config.json", "generation_config.json"):
            edited(model / name, auto_map=auto_map)

    return lie


def pickled(model: Path) -> None:
    harm = b"cos\nmkdir\n(S'" + str(model.parent / RAN).encode() + b"'\ntR."
    for name in ("pytorch_model.bin", "training_args.bin", "optimizer.pt"):
        (model / name).write_bytes(harm)


def header(length: int | None = None, **entry: Any) -> Lie:
    """A header of another length, or with one tensor told otherwise."""

    def lie(model: Path) -> None:
        path = model / "model.safetensors"
        data = path.read_bytes()
        size = int.from_bytes(data[:8], "little")
        told = json.loads(data[8 : 8 + size])
        first = next(name for name in told if name != "__metadata__")
        told[first] |= entry
        new = json.dumps(told).encode()
        path.write_bytes((length or len(new)).to_bytes(8, "little") + new + data[8 + size :])

    return lie


def written(name: str, text: str) -> Lie:
    return lambda model: (model / name).write_text(text) and None


def adapter(model: Path) -> None:
    told = {"peft_type": "LORA", "base_model_name_or_path": str(model.parent / OUTSIDE)}
    (model / "adapter_config.json").write_text(json.dumps(told))


def adapter_alone(model: Path) -> None:
    adapter(model)
    (model / "config.json").unlink()


REACHING = "{{ ''.__class__.__mro__[1].__subclasses__() }}{{ messages.__init__.__globals__ }}"
CHECKPOINTS: dict[str, Lie] = {
    "manifest: absolute": manifest(outside("secret.json")),
    "manifest: above": manifest(lambda _: f"../{OUTSIDE}/secret.json"),
    "manifest: a backslash": manifest(lambda _: f"..\\{OUTSIDE}\\secret.json"),
    "manifest: below templates": manifest(lambda _: f"additional_chat_templates/../../{OUTSIDE}/secret.json"),
    "manifest: by case": manifest(lambda _: "CONFIG.json"),
    "index: absolute": index(outside("secret.safetensors")),
    "index: above": index(lambda _: f"../{OUTSIDE}/secret.safetensors"),
    "index: another than the weights": index(lambda _: "other.safetensors", beside=True),
    "index: by case": index(lambda _: "MODEL.safetensors"),
    "weights by name: absolute": told(outside("secret.safetensors"), config, "transformers_weights"),
    "config: another config": config(configuration_files=[f"../{OUTSIDE}/config.4.0.0.json"]),
    "tokenizer: another tokenizer": tokenizer(fast_tokenizer_files=[f"../{OUTSIDE}/tokenizer.4.0.0.json"]),
    "tokenizer: a vocabulary elsewhere": told(outside("secret.json"), tokenizer, "vocab_file"),
    **{
        f"link: {name}": link(name, "secret.safetensors" if name.endswith(".safetensors") else "secret.json")
        for name in ("model.safetensors", "config.json", "tokenizer.json", "README.md", "notes.txt", "merges.txt")
    },
    "link: templates": link("additional_chat_templates", "."),
    "adapter: beside weights": adapter,
    "adapter: alone": adapter_alone,
    "code: its own": code(AutoConfig="own.C", AutoModelForCausalLM="own.M", AutoTokenizer=[None, "own.T"]),
    "code: another's": code(AutoConfig="evil/repo--own.C", AutoTokenizer=["evil/repo--own.T", None]),
    "code: a type of its own": config(model_type="own", auto_map={"AutoConfig": "own.C"}),
    "code: pickles": pickled,
    "template: reaches out": written("chat_template.jinja", REACHING),
    "template: reads files": written("chat_template.jinja", "{% include '/etc/passwd' %}{% import 'os' as os %}"),
    "size: a header": header(2**63),
    "size: a shape": header(shape=[2**40, 2**40]),
    "size: offsets": header(data_offsets=[0, 2**62]),
    "size: layers": config(num_hidden_layers=10**9),
    "size: a vocabulary": config(vocab_size=10**12),
    "size: a width": config(hidden_size=2**40, intermediate_size=2**40),
    "size: depth of JSON": written("config.json", "[" * 100_000),
    "markup: architecture": config(architectures=[MARKUP]),
    "markup: type": config(model_type=MARKUP),
    "markup: verb": record(verb=MARKUP),
    "markup: source": record(source={"id": MARKUP}),
    "markup: version": record(versions={"shortstack": MARKUP}),
    "markup: card": written("README.md", f"---\nlicense: {json.dumps(MARKUP)}\n---\n"),
    "card: metadata that is none": lambda model: (model / "README.md").write_bytes(b"---\n: [\xff\n---\n") and None,
    "markup: end of a text": tokenizer(eos_token=f"</s>{MARKUP}"),
}


def counted(place: int, value: int) -> Lie:
    """Of a .gguf file, the count at a place: 8 of tensors, 16 of metadata, 24 the length of the first key."""

    def lie(folder: Path) -> None:
        data = bytearray((folder / "model.gguf").read_bytes())
        struct.pack_into("<Q", data, place, value)
        (folder / "model.gguf").write_bytes(data)

    return lie


def gguf_entry(name: str, value: str) -> Lie:
    def lie(folder: Path) -> None:
        from shortstack.checkpoint.gguf_file import Entry, read_gguf, write_gguf

        model = read_gguf(folder / "model.gguf")
        write_gguf(folder / "new.gguf", {**model.entries, name: Entry.text(value)}, model.tensors, like=model)
        (folder / "new.gguf").replace(folder / "model.gguf")

    return lie


def gguf_part_elsewhere(folder: Path) -> None:
    """The file given is one of two parts; the other is a link."""
    (folder / "model.gguf").rename(folder / "model-00001-of-00002.gguf")
    (folder / "model-00002-of-00002.gguf").symlink_to(folder.parent / OUTSIDE / "secret.gguf")


def gguf_beside(folder: Path) -> None:
    """An adapter and a tokenizer's config with code lie beside it, which transformers would read."""
    (folder / "own.py").write_text(CODE.format(ran=str(folder.parent / RAN)))
    (folder / "tokenizer_config.json").write_text(json.dumps({"auto_map": {"AutoTokenizer": [None, "own.T"]}}))
    adapter(folder)


GGUFS: dict[str, Lie] = {
    "count of tensors": counted(8, 2**64 - 1),
    "count of metadata": counted(16, 2**64 - 1),
    "length of a name": counted(24, 2**63),
    "a part elsewhere": gguf_part_elsewhere,
    "code and an adapter beside it": gguf_beside,
    "template: reaches out": gguf_entry("tokenizer.chat_template", REACHING),
    "markup: architecture": gguf_entry("general.architecture", MARKUP),
    "markup: licence": gguf_entry("general.license", MARKUP),
    "markup: name": gguf_entry("general.name", MARKUP),
}

STUDY = "model: [m]\nmetric: reverse\ndrop: [2]\nevaluation: {perplexity: [text.txt], samples: 2, length: 16}\n"
RECIPE = (
    "title: one\nplan: {metric: bi, drop: 25%}\nheal: {method: lora, num_train_epochs: 1, lora_r: 4, max_length: 32}\n"
)
BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{new}: &{new} [{', '.join([f'*{old}'] * 9)}]\n" for old, new in zip("abcdefgh", "bcdefghi", strict=True)
)
TEXTS = {
    "code in a tag": "title: !!python/object/apply:pathlib.Path.touch [!!python/object/apply:pathlib.Path [RAN]]\n",
    "an object in a tag": "title: !!python/name:os.system\n",
    "a bomb of aliases": BOMB,
    "a bomb in a list": f"{BOMB}metric: *i\ntitle: *i\n",
    "absurd numbers": "title: a\nseed: 1e999\ndrop: [100000000000000000000000000]\n",
    "depth": "title: " + "[" * 5000,
    "a key above": "../elsewhere/secret.json: 1\n",
    "markup: key": f"{json.dumps(MARKUP)}: 1\n",
    "markup: title": f"title: {json.dumps(MARKUP)}\n",
}
