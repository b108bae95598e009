"""References for a shortened model."""

import torch

from shortstack.checkpoint import Checkpoint
from shortstack.machine.device import Compute
from shortstack.shrinking import reference
from zoo import speaking


@torch.no_grad()
def test_answers_are_greedy_in_the_models_own_template(tmp_path, monkeypatch):
    monkeypatch.setattr(reference, "PROMPTS", ("layers", "a longer prompt than the first"))
    monkeypatch.setattr(reference, "ANSWER_TOKENS", 6)
    checkpoint, expected = Checkpoint.open(speaking(tmp_path / "model")), []
    model, tokenizer = checkpoint.model(dtype=torch.float32), checkpoint.tokenizer()
    for prompt in reference.PROMPTS:
        chat = [{"role": "user", "content": prompt}]
        asked = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=True)
        ids = asked["input_ids"]
        for _ in range(6):
            ids = torch.cat([ids, model(input_ids=ids).logits[:, -1:].argmax(-1)], dim=1)
        written = ids[0, asked["input_ids"].shape[1] :].tolist()
        end = written.index(2) if 2 in written else None
        expected.append(tokenizer.decode(written[:end], skip_special_tokens=True).strip())
    assert reference.answers(checkpoint, Compute(dtype="float32")) == tuple(expected)
