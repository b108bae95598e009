"""May a study run in a folder? It is no model's, and it is of the same study."""

from __future__ import annotations

import json

from shortstack.checkpoint.file_names import CONFIG
from shortstack.errors import InputError
from shortstack.machine.yamlfile import parsed
from shortstack.runs import Store
from shortstack.runs.folder import Folder
from shortstack.study.grid import Study


def check_same(folder: Folder, study: Study, store: Store) -> None:
    """Refuse a folder of another study, unless this one only adds trials to it.

    The trials before are those in the store: what a recipe's file says may have changed since.
    """
    if not folder.study.exists():
        return
    before = parsed(folder.study.read_text(encoding="utf-8"), Study, where=str(folder.study))
    for part in ("evaluation", "compute"):
        then, now = (getattr(version, part).model_dump() for version in (before, study))
        for name in then:
            if then[name] != now[name]:
                raise _another(folder, f"{part}.{name}: {json.dumps(then[name])}", json.dumps(now[name]))
    now = {trial.id for trial in study.trials}
    for trial in store.trials():
        if trial["id"] not in now:
            raise _another(folder, f"the trial {json.dumps(trial['settings'])}", "none")


def check_outside(folder: Folder) -> None:
    """Refuse to run a study in a checkpoint's folder."""
    place = folder.root.resolve()
    for above in (place, *place.parents):
        if (above / CONFIG).exists() and any(above.glob("*.safetensors")):
            location, expected = f"it is in {above}", "a folder outside a model's"
            raise InputError(location, expected=expected, fix="name another output", where=folder.root)


def _another(folder: Folder, expected: str, now: str) -> InputError:
    fix = "name another output; trials can be added, not changed"
    return InputError(now, expected=f"{expected}, as in {folder.study}", fix=fix, where=folder.root)
