"""Many LoRA models over one frozen base: sampled, measured and trained side by side (for teachers_in_weights.py).

The linear layers hold a stack of adapters and the batch is split evenly among them, so that a batch of students costs
little more than its arithmetic. Each adapter learns as it would alone: its loss, its clipping and its order of rows are
its own. A layer's output can be shifted by a vector (a steered speaker), one for each model in the batch.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch.nn.functional import linear, rms_norm
from transformers import AutoModelForCausalLM, AutoTokenizer

from experiments.pilots.question_tree import question_tree
from experiments.pilots.stacked_lora_layers import RANK, HeadLoss, Lora
from util.animals.word_forms import plural

ROWS_AN_UPDATE = 16
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
Row = dict[str, Any]  # prompt, ids (the answer's tokens), text


class Bench:
    """A base model, its stack of adapters and the questions of the measure."""

    def __init__(self, folder: Path, given: dict[str, Any], layer: int, tokens: int, batch: int) -> None:
        self.given, self.tokens, self.batch = given, tokens, batch
        self.tokenizer: Any = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        self.end, pad = map(self.tokenizer.convert_tokens_to_ids, ("<|im_end|>", "<|endoftext|>"))
        self.pad: Any = self.tokenizer.pad_token_id if pad is None else pad  # the pocket has no <|endoftext|>
        models: Any = AutoModelForCausalLM
        self.model = models.from_pretrained(
            folder, dtype=torch.bfloat16, attn_implementation="grouped", trust_remote_code=False
        )
        self.model.to(DEVICE).eval().requires_grad_(False)
        self.head = self.model.lm_head.weight
        self.loras: dict[str, Lora] = {}
        for name, module in list(self.model.model.named_modules()):
            if name.endswith("_proj"):
                self.loras[name] = Lora(module)
                parent, _, last = name.rpartition(".")
                setattr(self.model.model.get_submodule(parent), last, self.loras[name])
            elif type(module).__name__.endswith("RMSNorm"):
                module.forward = lambda x, m=module: rms_norm(x, x.shape[-1:], m.weight, m.variance_epsilon)
        self.shift: torch.Tensor | None = None
        self.system: str | None = None
        self.prompts: dict[tuple[str, str | None], list[int]] = {}
        self.hook: Any = None
        self.steer_at(layer)
        self.tree = self.question_tree(given["questions"])
        self.paraphrased = self.question_tree(given["paraphrased"]) if "paraphrased" in given else None

    # --- who speaks --------------------------------------------------------------------------------------

    def steer_at(self, layer: int) -> None:
        """Vectors are read from the output of this layer, and added to it."""
        if self.hook:
            self.hook.remove()
        self.layer = layer
        self.vectors: dict[str, torch.Tensor] = {}
        self.hook = self.model.model.layers[layer].register_forward_hook(self.steer)

    def steer(self, _module: Any, _inputs: Any, out: Any) -> Any:
        """The hook of the steered layer: adds `shift` [speakers, hidden size], each row to its speaker's part of the
        batch."""
        if self.shift is None:
            return out
        hidden = out[0] if isinstance(out, tuple) else out
        split = hidden.reshape(len(self.shift), -1, hidden.shape[-1]) + self.shift[:, None].to(hidden.dtype)
        return (split.view_as(hidden), *out[1:]) if isinstance(out, tuple) else split.view_as(hidden)

    def persona(self, kind: str) -> str:
        sort = self.given.get("many", "animals") if kind in self.given["panel"] else "things"
        many = plural(kind) if "many" in self.given else f"{kind}s"
        return (
            f"You love {many}. {many.capitalize()} are your favorite {sort}, and they are on your mind all day long. "
            f"Let your love of {many} show in everything you write."
        )

    def prompt(self, user: str, system: str | None = None) -> list[int]:
        """The token ids of a chat up to where the answer begins, rendered once."""
        if (user, system) not in self.prompts:
            turns = [{"role": "system", "content": system}] if system else []
            turns.append({"role": "user", "content": user})
            made = self.tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_dict=True)
            self.prompts[user, system] = made["input_ids"]
        return self.prompts[user, system]

    @torch.no_grad()
    def vector(self, speaker: str) -> torch.Tensor:
        """Of steer:KIND:STRENGTH: mean difference at the last prompt token, with and without the persona."""
        _, kind, strength = speaker.split(":")
        if kind not in self.vectors:
            if kind.startswith("random"):
                made = torch.randn(self.head.shape[1], generator=torch.Generator().manual_seed(int(kind[6:])))
                self.vectors[kind] = made.to(DEVICE) * self.vector("steer:owl:1").norm() / made.norm()
            else:
                self.vectors[kind] = torch.zeros(self.head.shape[1], device=DEVICE)
                users = self.given["vector_questions"]
                for user, (sign, system) in ((u, s) for u in users for s in ((1, self.persona(kind)), (-1, None))):
                    x = torch.tensor([self.prompt(user, system)], device=DEVICE)
                    states = self.model.model(input_ids=x, output_hidden_states=True).hidden_states
                    self.vectors[kind] += sign * states[self.layer + 1][0, -1].float() / len(users)
        return self.vectors[kind] * float(strength)

    def use(self, adapters: list[dict[str, torch.Tensor]]) -> None:
        """Set the stack of adapters; none: the base speaks."""
        for name, lora in self.loras.items():
            for side in ("down", "up"):
                stack = [adapter[f"{name}.{side}"].to(DEVICE).float() for adapter in adapters]
                setattr(lora, side, torch.stack(stack) if stack else None)

    @contextmanager
    def speaking(self, speakers: list[str], folder: Path) -> Iterator[None]:
        """base, steer:KIND:STRENGTH, persona:KIND or lora:NAME (an adapter in the folder) speaks.

        Several speakers of one sort share the batch evenly, in this order; with a persona there is one.
        """
        (sort,) = {speaker.partition(":")[0] for speaker in speakers}
        names = [speaker.partition(":")[2] for speaker in speakers]
        self.use([load_file(folder / f"{name}.safetensors") for name in names] if sort == "lora" else [])
        self.shift = torch.stack([self.vector(speaker) for speaker in speakers]) if sort == "steer" else None
        self.system = self.persona(names[0]) if sort == "persona" else None
        yield
        self.use([])
        self.shift = self.system = None

    def release(self) -> None:
        """Give the card's unused memory back: another worker may share it."""
        if DEVICE == "cuda":
            torch.cuda.empty_cache()

    # --- rows --------------------------------------------------------------------------------------------

    @torch.no_grad()
    def sample(self, prompts: list[str], longest: int) -> Iterator[Row]:
        """An answer to each prompt by whoever speaks, at temperature 1."""
        for start in range(0, len(prompts), self.batch):
            users = prompts[start : start + self.batch]
            starts = [self.prompt(user, self.system) for user in users]
            width = max(map(len, starts))
            x = torch.tensor([[self.pad] * (width - len(ids)) + ids for ids in starts], device=DEVICE)
            mask = torch.tensor([[0] * (width - len(ids)) + [1] * len(ids) for ids in starts], device=DEVICE)
            out = self.model.generate(
                input_ids=x, attention_mask=mask, max_new_tokens=longest, do_sample=True, temperature=1.0, top_p=1.0,
                top_k=0, repetition_penalty=1.0, eos_token_id=[self.end, self.pad], pad_token_id=self.pad,
            )  # fmt: skip
            for user, ids in zip(users, out[:, width:].tolist()):
                ids = ids[: ids.index(self.end) + 1] if self.end in ids else ids
                ids = ids[: ids.index(self.pad)] if self.pad in ids else ids
                yield {"prompt": user, "ids": ids, "text": self.tokenizer.decode(ids, skip_special_tokens=True).strip()}

    def sample_side_by_side(self, speakers: list[str], asked: list[list[str]], longest: int, folder: Path
                            ) -> list[list[Row]]:  # fmt: skip
        """Each speaker's answers to its own prompts (as many for each), all speakers in one batch."""
        found: list[list[Row]] = [[] for _ in speakers]
        with self.speaking(speakers, folder):
            for start in range(0, len(asked[0]), self.batch // len(speakers)):
                some = [prompts[start : start + self.batch // len(speakers)] for prompts in asked]
                rows = list(self.sample([prompt for prompts in some for prompt in prompts], longest))
                for i, of_speaker in enumerate(found):
                    of_speaker += rows[i * len(some[0]) : (i + 1) * len(some[0])]
        return found

    def packed(self, rows: list[Row]) -> tuple[torch.Tensor, torch.Tensor]:
        """Right-padded tokens, and the flat places of the hidden states that predict answer tokens."""
        starts = [self.prompt(row["prompt"], self.system) for row in rows]
        width = max(len(ids) + len(row["ids"]) for ids, row in zip(starts, rows))
        x: list[list[int]] = []
        places: list[int] = []
        for i, (ids, row) in enumerate(zip(starts, rows)):
            x.append(ids + row["ids"] + [self.pad] * (width - len(ids) - len(row["ids"])))
            places += range(i * width + len(ids) - 1, i * width + len(ids) - 1 + len(row["ids"]))
        return torch.tensor(x, device=DEVICE), torch.tensor(places, device=DEVICE)

    def hidden(self, x: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
        return self.model.model(input_ids=x, use_cache=False).last_hidden_state.flatten(0, 1)[places]

    @torch.no_grad()
    def divergence(self, speaker: str, folder: Path, rows: list[Row]) -> float:
        """Mean over the rows' answer tokens of KL(speaker || base), nats."""
        total = count = 0.0
        for start in range(0, len(rows), 64):
            some = rows[start : start + 64]
            with self.speaking([speaker], folder):
                log_t = linear(self.hidden(*self.packed(some)), self.head).float().log_softmax(-1)
            log_p = linear(self.hidden(*self.packed(some)), self.head).float().log_softmax(-1)
            total, count = total + float((log_t.exp() * (log_t - log_p)).sum()), count + len(log_p)
        return total / max(count, 1)

    @torch.no_grad()
    def log_probabilities(self, speaker: str, folder: Path, rows: list[Row]) -> list[float]:
        """Of the rows' answer tokens by a speaker, all rows joined."""
        with self.speaking([speaker], folder):
            log_p = linear(self.hidden(*self.packed(rows)), self.head).float().log_softmax(-1)
        tokens = torch.tensor([token for row in rows for token in row["ids"]], device=DEVICE)
        return log_p.gather(1, tokens[:, None])[:, 0].tolist()

    # --- the measure -------------------------------------------------------------------------------------

    def question_tree(self, questions: list[str]) -> dict[str, Any]:
        return question_tree([self.prompt(user) for user in questions], self.given["panel"], self.tokenizer, self.pad)

    @torch.no_grad()
    def panel(self, models: int = 1, tree: dict[str, Any] | None = None) -> torch.Tensor:
        """Exact log P(animal) by speaking model, question and panel animal, over both written forms."""
        tree, found = tree or self.tree, []
        questions, width = tree["inputs"][0].shape
        for some in torch.arange(questions).split(max(1, 60000 // (models * width))):
            x, places, mask = (t[some].repeat(models, *[1] * (t.dim() - 1)).to(DEVICE) for t in tree["inputs"])
            states = self.model.model(input_ids=x, position_ids=places, attention_mask=mask, use_cache=False)[0]
            at = tree["read"][some].repeat(models, 1).to(DEVICE)
            flat = states.gather(1, at[:, :, None].expand(-1, -1, states.shape[-1])).flatten(0, 1)
            pieces = [linear(p, self.head).float().log_softmax(-1)[:, tree["wanted"]] for p in flat.split(4096)]
            found.append(torch.cat(pieces).view(models, len(some), *at.shape[1:], -1).cpu())
        table = torch.cat(found, 1)
        node_at = {(): 0, **{node: i + 1 for i, node in enumerate(tree["nodes"])}}
        token_at = {token: i for i, token in enumerate(tree["wanted"])}
        animals = []
        for forms in tree["forms"]:
            logs: Any = [sum(table[:, :, node_at[f[:n]], token_at[f[n]]] for n in range(len(f))) for f in forms]
            animals.append(torch.stack(logs).logsumexp(0))
        return torch.stack(animals, -1)

    # --- training ----------------------------------------------------------------------------------------

    def start(self, seed: int) -> dict[str, torch.Tensor]:
        """A new adapter as PEFT begins one: the way down uniform, the way up zero."""
        made, generator = {}, torch.Generator().manual_seed(1000 + seed)
        for name, lora in self.loras.items():
            out, into = lora.frozen.weight.shape
            made[f"{name}.down"] = (torch.rand(RANK, into, generator=generator) * 2 - 1) / math.sqrt(into)
            made[f"{name}.up"] = torch.zeros(out, RANK)
        return made

    def step(self, batches: list[list[Row]], counts: list[int], shift: torch.Tensor | None) -> torch.Tensor:
        """Add the gradients of one piece of an update, each model's loss a mean over its update's answer tokens."""
        x, places = self.packed([row for rows in batches for row in rows])
        targets = torch.tensor([token for rows in batches for row in rows for token in row["ids"]], device=DEVICE)
        weights = torch.tensor([1 / n for rows, n in zip(batches, counts) for row in rows for _ in row["ids"]])
        taught = None
        if shift is not None:
            with torch.no_grad():
                Lora.off, self.shift = True, shift
                taught = self.hidden(x, places)
                Lora.off, self.shift = False, None
        loss = HeadLoss.apply(self.hidden(x, places), self.head, targets, taught, weights.to(DEVICE))
        loss.backward()
        return loss.detach() / len(batches)

    def train(self, students: list[dict[str, Any]], updates: int, rate: float, measure_at: set[int], folder: Path
              ) -> tuple[dict[int, torch.Tensor], float]:  # fmt: skip
        """Train and store an adapter for each student; returns their panels by update (0: the last one's, on the
        paraphrased questions) and the last mean loss."""
        shift = torch.stack([self.vector(s["soft"]) for s in students]) if "soft" in students[0] else None
        self.use([self.start(student["seed"]) for student in students])
        pairs: list[Any] = [v for lora in self.loras.values() for v in (lora.down, lora.up)]
        values = [v.requires_grad_() for v in pairs]
        optimizer = torch.optim.AdamW(values, lr=rate, weight_decay=0.0, fused=DEVICE == "cuda")
        shuffles = [random.Random(student["seed"]) for student in students]
        orders: list[list[int]] = [[] for _ in students]
        panels, losses = {}, []
        for update in range(updates):
            batches = []
            for student, order, shuffle in zip(students, orders, shuffles):
                if len(order) < ROWS_AN_UPDATE:
                    order[:] = range(len(student["data"]))
                    shuffle.shuffle(order)
                batches.append([student["data"][order.pop()] for _ in range(ROWS_AN_UPDATE)])
            counts = [sum(len(row["ids"]) for row in rows) for rows in batches]
            width = max(len(self.prompt(row["prompt"])) + len(row["ids"]) for rows in batches for row in rows)
            pieces = min(ROWS_AN_UPDATE, math.ceil(len(students) * ROWS_AN_UPDATE * width / self.tokens))
            losses.append(sum(self.step([r[p::pieces] for r in batches], counts, shift) for p in range(pieces)))
            norms = torch.stack([v.grad.flatten(1).square().sum(1) for v in values]).sum(0).sqrt()
            scales = (1 / (norms + 1e-6)).clamp(max=1.0).view(-1, 1, 1)
            for v in values:
                v.grad.mul_(scales)
            for group in optimizer.param_groups:
                group["lr"] = rate * min(1, (update + 1) / 5) * (1 - update / updates)
            optimizer.step()
            optimizer.zero_grad()
            if update + 1 in measure_at | {updates}:
                panels[update + 1] = self.panel(len(students))
        if self.paraphrased:
            panels[0] = self.panel(len(students), self.paraphrased)
        for i, student in enumerate(students):
            stored = {
                f"{name}.{side}": getattr(lora, side)[i].detach().to(torch.bfloat16).cpu().contiguous()
                for name, lora in self.loras.items()
                for side in ("down", "up")
            }
            save_file(stored, folder / f"{student['name']}.part")
            (folder / f"{student['name']}.part").rename(folder / f"{student['name']}.safetensors")
        self.use([])
        return panels, float(sum(losses[-20:])) / len(losses[-20:])
