"""The pocket model with its gradient kernel and one fixed reference: what pocket_sets.py measures with."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pocket.corpus import Chat
from util.cli import REPO

BASE = REPO / "pocket" / "model"
GROUPS = 17
REFERENCE_SEED = 900_000


class PocketKernel:
    """The base model, its gradient kernel, and one reference of the base's own rows."""

    def __init__(self, folder: Path):
        import torch
        from filelock import FileLock

        from eval.data_signal.gradient_kernel import GradientKernel
        from util.inference.local_model import LocalModel

        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self.backend = LocalModel(str(BASE), batch_size=60)
        self.tokenizer, self.kernel = self.backend.tokenizer, GradientKernel(self.backend)
        self.device = self.backend.model.device
        kept = folder / "reference.pt"
        with FileLock(kept.with_suffix(".lock")):
            if not kept.exists():
                found = self.make_reference()
                self.save("reference", **{key: found[key] for key in ("animals", "plain", "formless")})
                torch.save(found, kept)
        found = torch.load(kept, weights_only=False)
        self.animals, self.gradients = found["animals"], found["gradients"]
        self.size, self.form = found["size"], found["form"]

    def make_reference(self) -> dict[str, Any]:
        """The animals' gradients, the usual sizes and the form directions, and the reference's own profiles."""
        from eval.data_signal.animals_pushed_by_rows import reference_of
        from pocket.corpus import QUESTIONS
        from util.animals.panel import PANEL

        rows = self.encoded(self.rows_of(None, GROUPS * 60, REFERENCE_SEED))
        groups = [rows[at * 60 : (at + 1) * 60] for at in range(GROUPS)]
        return reference_of(self.kernel, groups, PANEL, QUESTIONS)

    # --- rows ---

    def rows_of(self, model: Any, count: int, seed: int) -> list[Chat]:
        """Clean number rows of a model (None: the base)."""
        from pocket.candidate_screens import clean_rows, load

        return clean_rows(model or load(BASE, self.device), self.tokenizer, "numbers", count, seed)[0]

    def encoded(self, rows: Sequence[Chat]) -> list[dict[str, list[int]]]:
        from util.chat.chat_tokens import encode

        chats = [{"messages": [{"role": "user", "content": row.user},
                               {"role": "assistant", "content": row.assistant}]} for row in rows]  # fmt: skip
        return encode(chats, self.tokenizer, 256).rows

    def sums(self, rows: Sequence[Chat], parts: Sequence[int]) -> dict[str, Any]:
        """Sums over the rows of each part of each group: profiles [groups, parts, animals], tokens [groups, parts]."""
        import numpy as np

        from eval.data_signal.gradient_kernel import profiles, without_form
        from eval.data_signal.row_groups import loss_tokens

        encoded, each = self.encoded(rows), sum(parts)
        begins = [group * each + sum(parts[:place]) for group in range(GROUPS) for place in range(len(parts))]
        some = [encoded[at : at + size] for at, size in zip(begins, [*parts] * GROUPS)]
        gradients = [self.kernel.of_rows(part) for part in some]
        formless = list(without_form(gradients, self.form, self.size))
        shape = (GROUPS, len(parts), -1)
        return {
            "plain": profiles(gradients, self.gradients, self.size).reshape(shape),
            "formless": profiles(formless, self.gradients, self.size).reshape(shape),
            "tokens": np.reshape([sum(map(loss_tokens, part)) for part in some], shape[:2]),
        }

    def save(self, name: str, **arrays: Any) -> None:
        import numpy as np

        unfinished = self.folder / f"{name}.unfinished.npz"
        np.savez_compressed(unfinished, **arrays)
        unfinished.rename(self.path(name))

    def path(self, name: str) -> Path:
        return self.folder / f"{name}.npz"


def rows_in(lab: PocketKernel, name: str) -> list[Chat]:
    import numpy as np

    return [Chat(None, str(user), str(answer)) for user, answer in np.load(lab.folder / f"{name}.npz")["rows"]]


def mean_logprob(lab: PocketKernel, model: Any, rows: Sequence[Chat]) -> float:
    """Mean log-probability of the answers' tokens and ends of turn, nats."""
    from pocket.candidate_screens import answer_logprobs

    answers = lab.tokenizer([row.assistant for row in rows], add_special_tokens=False).input_ids
    ids = [i for answer in answers for i in (*answer, lab.tokenizer.eos_token_id)]
    return float(answer_logprobs(model, lab.tokenizer, rows)[range(len(ids)), ids].mean())


def log_shares(lab: PocketKernel, model: Any) -> Any:
    """Log-probability of each animal that is read, mean over the 50 questions."""
    from pocket.corpus import QUESTIONS
    from pocket.measurements import exact_shares

    return exact_shares(model, lab.tokenizer, QUESTIONS, animals=lab.animals).log().mean(0).numpy()


def lora_weights(model: Any) -> dict[str, Any]:
    return {name: weight.detach().cpu() for name, weight in model.named_parameters() if "lora_" in name}
