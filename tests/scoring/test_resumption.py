"""A walk that was stopped goes on where it was, and ends as if it had not been."""

import os
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import architectures
import pytest
import torch

import shortstack.decoder.batching
import shortstack.decoder.decoder
import shortstack.scoring.resumption
from shortstack.checkpoint import Checkpoint
from shortstack.data import Tokens
from shortstack.machine.cache import cache_directory
from shortstack.machine.device import Compute
from shortstack.scoring import METRICS, score, sweep
from zoo import tiny

IDS = torch.randint(3, 90, (6, 10), generator=torch.Generator().manual_seed(3))
TOKENS = Tokens(IDS, "made", False, 0)


class Stopped(Exception):
    pass


@pytest.fixture(autouse=True)
def always_kept(monkeypatch, tmp_path):
    monkeypatch.setenv("SHORTSTACK_CACHE", str(tmp_path))
    monkeypatch.setattr(shortstack.scoring.resumption, "KEEP_SECONDS", 0)
    monkeypatch.setattr(shortstack.scoring.resumption, "SHARE", float("inf"))


def kept() -> list[Path]:
    return [*cache_directory("walks").iterdir()]


def stopping(share: float):
    """A progress that stops the walk when that share of it is done."""

    def progress(stage: str, done: int, total: int, **_: object) -> None:
        if stage.startswith(("scoring", "sweeping")) and done > share * total:
            raise Stopped

    return progress


SINGLES = [name for name, metric in METRICS.items() if metric.singles]


def without_time(scores):
    return replace(scores, seconds=0, peak_rss_bytes=0)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.7, 0.9, 0.99])
@pytest.mark.parametrize("turns", [1, 3])
@pytest.mark.parametrize("metrics", [["ppl"], SINGLES])
def test_a_stopped_score_goes_on_and_finds_the_same(share, turns, metrics, monkeypatch):
    checkpoint = Checkpoint.open(tiny("llama"))
    if turns > 1:
        monkeypatch.setattr(shortstack.decoder.batching, "BATCH_TOKENS", 20)
        monkeypatch.setattr(shortstack.decoder.decoder, "STREAM_BYTES", 1)
    whole = score(checkpoint, TOKENS, metrics=metrics, window=3)
    with pytest.raises(Stopped):
        score(checkpoint, TOKENS, metrics=metrics, window=3, progress=stopping(share))
    (state,) = kept()
    seen = []
    again = score(checkpoint, TOKENS, metrics=metrics, window=3, progress=lambda *each, **_: seen.append(each))
    walked = [(done, total) for stage, done, total in seen if stage == "scoring (continued)"]
    assert walked[0][0] > max(share - 0.35, 0.02) * walked[0][1], "what was done is not done again"
    assert walked[-1][0] == walked[-1][1]
    assert without_time(again) == without_time(whole)
    assert not state.exists()


def test_stopped_again_and_again():
    checkpoint = Checkpoint.open(tiny("llama"))
    whole = score(checkpoint, TOKENS, metrics=SINGLES, compute=Compute(stream=False))
    for share in (0.2, 0.4, 0.6, 0.8):
        with pytest.raises(Stopped):
            score(checkpoint, TOKENS, metrics=SINGLES, progress=stopping(share))
    found = score(checkpoint, TOKENS, metrics=SINGLES, compute=Compute(stream=True))
    assert without_time(found) == without_time(whole), "streamed or not is no matter"


def test_a_stopped_sweep_goes_on():
    checkpoint = Checkpoint.open(tiny("gpt2"))
    whole = sweep(checkpoint, TOKENS)
    with pytest.raises(Stopped):
        sweep(checkpoint, TOKENS, progress=stopping(0.6))
    seen = []
    assert replace(sweep(checkpoint, TOKENS, progress=lambda *each, **_: seen.append(each)), seconds=0) == replace(
        whole, seconds=0
    )
    assert seen[0][0] == "sweeping (continued)"
    assert not kept()


KILLED = """
import os, signal, sys
import torch
import shortstack.scoring.resumption
from shortstack.checkpoint.checkpoint import Checkpoint
from shortstack.scoring.scorer import score
from shortstack.data.tokens import Tokens
shortstack.scoring.resumption.KEEP_SECONDS, shortstack.scoring.resumption.SHARE = 0, float("inf")
def progress(stage, done, total, **_):
    if stage == "scoring" and done > total / 2:
        os.kill(os.getpid(), signal.SIGKILL)
ids = torch.randint(3, 90, (6, 10), generator=torch.Generator().manual_seed(3))
score(Checkpoint.open(sys.argv[1]), Tokens(ids, "made", False, 0), metrics=["ppl", "taylor"], progress=progress)
"""


def test_a_killed_process_leaves_what_another_goes_on_with():
    directory = tiny("llama")
    ended = subprocess.run([sys.executable, "-c", KILLED, str(directory)], capture_output=True, check=False)
    assert ended.returncode == -signal.SIGKILL, ended.stderr
    checkpoint, seen = Checkpoint.open(directory), []
    found = score(checkpoint, TOKENS, metrics=["ppl", "taylor"], progress=lambda *each, **_: seen.append(each))
    assert {stage for stage, _, _ in seen} == {"scoring (continued)"}
    assert not kept()
    assert without_time(found) == without_time(score(checkpoint, TOKENS, metrics=["ppl", "taylor"]))


def test_another_run_does_not_take_it(tmp_path):
    checkpoint = Checkpoint.open(tiny("llama"))
    copied = Checkpoint.open(shutil.copytree(checkpoint.directory, tmp_path / "other"))
    with pytest.raises(Stopped):
        score(checkpoint, TOKENS, metrics=["ppl"], progress=stopping(0.8))
    for other, tokens, options in (
        (checkpoint, Tokens(IDS.flip(0), "made", False, 0), {"metrics": ["ppl"]}),
        (checkpoint, TOKENS, {"metrics": ["kl"]}),
        (checkpoint, TOKENS, {"metrics": ["ppl"], "window": 2}),
        (checkpoint, TOKENS, {"metrics": ["ppl"], "compute": Compute(dtype="bfloat16")}),
        (copied, TOKENS, {"metrics": ["ppl"]}),
    ):
        seen = []
        score(other, tokens, **options, progress=lambda stage, *_, seen=seen, **_more: seen.append(stage))
        assert set(seen) == {"scoring"}
    assert len(kept()) == 1


def test_a_walk_of_a_checkpoint_with_other_files_beside_it_does_not_take_it(tmp_path):
    folder = shutil.copytree(Checkpoint.open(tiny("llama")).directory, tmp_path / "model")
    with pytest.raises(Stopped):
        score(Checkpoint.open(folder), TOKENS, metrics=["ppl"], progress=stopping(0.8))
    (folder / "modeling_own.py").write_text("def forward(): ...")
    seen = []
    trusted = Checkpoint.open(folder, trust_remote_code=True)
    score(trusted, TOKENS, metrics=["ppl"], progress=lambda stage, *_, **_more: seen.append(stage))
    assert set(seen) == {"scoring"}


@pytest.mark.parametrize("broken", [b"", b"\x10\x00\x00\x00\x00\x00\x00\x00{}"])
def test_a_state_that_a_power_cut_broke_is_as_good_as_none(broken):
    checkpoint = Checkpoint.open(tiny("llama"))
    with pytest.raises(Stopped):
        score(checkpoint, TOKENS, metrics=["ppl"], progress=stopping(0.8))
    (state,) = kept()
    state.write_bytes(broken)
    assert without_time(score(checkpoint, TOKENS)) == without_time(score(checkpoint, TOKENS))


def test_on_a_full_disk_the_walk_says_so_and_goes_on_without(monkeypatch):
    usage = type("usage", (), {"free": 1000})
    monkeypatch.setattr(shortstack.scoring.resumption.shutil, "disk_usage", lambda _path: usage)
    whole = score(Checkpoint.open(tiny("llama")), TOKENS)
    with pytest.warns(UserWarning, match="not kept.*MB free") as said:
        found = score(Checkpoint.open(tiny("llama")), TOKENS)
    assert len(said) == 1, "once, not after every layer"
    assert found.scores == whole.scores
    assert not kept()


def test_what_nobody_used_goes_where_the_state_needs_its_room(monkeypatch):
    old, walk = cache_directory("answers") / "old.json", cache_directory("walks") / "another.safetensors"
    for path in (old, walk):
        path.write_text("{}")
        os.utime(path, (0, 0))
    score(Checkpoint.open(tiny("llama")), TOKENS)
    assert old.exists()
    assert walk.exists()
    monkeypatch.setenv("SHORTSTACK_CACHE_LIMIT", "1KB")
    score(Checkpoint.open(tiny("llama")), TOKENS)
    assert not old.exists()
    assert not walk.exists()


def test_without_a_cache_that_can_be_written_scoring_says_so_and_goes_on(monkeypatch, tmp_path):
    checkpoint = Checkpoint.open(tiny("llama"))
    whole = score(checkpoint, TOKENS)
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("SHORTSTACK_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.warns(UserWarning, match="not kept"):
        assert score(checkpoint, TOKENS).scores == whole.scores


def test_a_walk_divided_otherwise_does_not_take_it(monkeypatch):
    """With less memory there are more turns; what was kept is of another division."""
    checkpoint = Checkpoint.open(tiny("llama"))
    monkeypatch.setattr(shortstack.decoder.batching, "BATCH_TOKENS", 20)
    one_batch = 20 * 32 * 4 * 9  # tokens, width, bytes, streams
    monkeypatch.setattr(shortstack.decoder.decoder, "STREAM_BYTES", 2 * one_batch)
    whole = score(checkpoint, TOKENS)
    with pytest.raises(Stopped):
        score(checkpoint, TOKENS, progress=stopping(0.8))
    monkeypatch.setattr(shortstack.decoder.decoder, "STREAM_BYTES", one_batch)
    seen = []
    found = score(checkpoint, TOKENS, progress=lambda stage, *_, **_more: seen.append(stage))
    assert set(seen) == {"scoring"}
    assert found.scores["ppl"] == pytest.approx(whole.scores["ppl"], rel=1e-5)


def test_layers_that_carry_more_than_hidden_states_start_again(tmp_path):
    checkpoint = Checkpoint.open(architectures.make("gemma3n_text", tmp_path / "model"))
    with pytest.raises(Stopped):
        score(checkpoint, TOKENS, metrics=["bi"], progress=stopping(0.8))
    assert not kept()
