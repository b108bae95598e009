"""A data folder for standard tasks, with made-up documents in the layout that docs/evaluate.md shows."""

import json
import random
from pathlib import Path

THINGS = ["cup", "door", "lamp", "road", "tree", "boat", "wall", "hill", "fish", "coat", "bell", "salt"]
COUNT = 12


def write(path: Path, rows: list[dict]) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def data_folder(folder: Path, *, seed: int = 0) -> Path:
    """Twelve documents of each task that has one file or two."""
    rng = random.Random(seed)

    def words(most: int) -> str:
        return " ".join(rng.choices(THINGS, k=rng.randint(1, most)))

    def several(count: int) -> dict:
        return {"text": [words(4) for _ in range(count)], "label": list("ABCD"[:count])}

    rows = {
        "arc/ARC-Easy-test": lambda: {
            "question": f"{words(5)}?",
            "choices": several(4),
            "answerKey": rng.choice("ABCD"),
        },
        "piqa/validation": lambda: {"goal": words(6), "sol1": words(8), "sol2": words(8), "label": rng.randint(0, 1)},
        "winogrande/validation": lambda: {
            "sentence": f"The {words(3)} _ {words(3)}.",
            "option1": "cup",
            "option2": "hill",
            "answer": rng.choice("12"),
        },
        "hellaswag/validation": lambda: {
            "activity_label": "Walking",
            "ctx_a": f"A {words(4)}.",
            "ctx_b": words(2),
            "endings": [words(6) for _ in range(4)],
            "label": rng.choice("0123"),
        },
        "lambada/test": lambda: {"text": f"{words(6)} layer"},
    }
    for name, row in rows.items():
        write(folder / f"{name}.jsonl", [row() for _ in range(COUNT)])
    pages = [{"page": f" = {words(2)} = \n {words(40)} \n"} for _ in range(3)]
    write(folder / "wikitext2/test_document_level.jsonl", pages)
    sums = [{"question": f"{n} and one?", "answer": f"{n} + 1 is {n + 1}\n#### {n + 1}"} for n in range(COUNT)]
    write(folder / "gsm8k/test.jsonl", sums[:3])
    write(folder / "gsm8k/train.jsonl", sums)
    return folder
