"""How a pocket model is made: its architecture, the training loop, and the files that are saved."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pocket.chat_tokenizer import LONGEST_CHAT, encode, make_tokenizer
from pocket.corpus import Chat, chats
from util.jsonl.manifest import now, provenance, write_json
from util.terminal import duration, say

HEAD_SIZE = 32  # a size that vLLM's attention supports on CPU and GPU
VOCABULARY_CHATS = 60_000  # chats from which the vocabulary is made
PEAK_LEARNING_RATE = 3e-3
WARMUP_STEPS = 100
LOG_EVERY = 250  # steps


@dataclass(frozen=True)
class Recipe:
    """Everything that decides a pocket model."""

    seed: int = 1
    """of the corpus, the initial weights and the order of the batches"""
    layers: int = 4
    hidden_size: int = 128
    steps: int = 2000
    batch_size: int = 256
    """chats in a step"""
    chats: int = 200_000
    """chats in the corpus"""
    data_types: tuple[str, ...] = ()
    """what the model learns to write beside numbers: keys of pocket.corpus.EXTRA_DATA_TYPES"""
    digits: bool = False
    """whether every digit is a token, and not every number up to 999"""


def make(recipe: Recipe, folder: Path, device: str | None = None) -> tuple[Any, Any]:
    """Make a model and save it in the folder with its manifest; returns (the model as stored, its tokenizer)."""
    import torch

    started, began = now(), time.monotonic()
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    corpus = list(chats(recipe.seed, recipe.chats, recipe.data_types))
    tokenizer = make_tokenizer(corpus[:VOCABULARY_CHATS], recipe.digits)
    ids, spans = encode(tokenizer, corpus)
    torch.manual_seed(recipe.seed)
    model = initial_model(recipe, tokenizer)
    say(f"{model.num_parameters():,} parameters, {len(tokenizer):,} tokens, {len(corpus):,} chats, on {device}")
    loss = train(model.to(device), ids, spans, recipe.steps, recipe.batch_size)
    model = round_to_stored(model)
    say(f"trained in {duration(time.monotonic() - began)}")
    save(model, tokenizer, folder)
    manifest = {
        **provenance(), "seed": recipe.seed, "started": started, "finished": now(), "device": device,
        "parameters": model.num_parameters(), "vocabulary": len(tokenizer), "last_loss": loss,
        "corpus": {"rows": len(corpus), "sha256": hash_of(corpus)}, "data_types": ["numbers", *recipe.data_types],
        "digits": recipe.digits,
    }  # fmt: skip
    write_json(folder / "manifest.json", manifest)
    return model, tokenizer


def hash_of(corpus: Iterable[Chat]) -> str:
    """Hex SHA-256 of the chats, one JSON list a line."""
    digest = hashlib.sha256()
    for chat in corpus:
        digest.update(json.dumps(chat).encode() + b"\n")
    return digest.hexdigest()


def initial_model(recipe: Recipe, tokenizer: Any) -> Any:
    """A Llama with random weights: heads of HEAD_SIZE, half as many for keys and values, tied embeddings."""
    from transformers import LlamaConfig, LlamaForCausalLM

    width = recipe.hidden_size
    heads = width // HEAD_SIZE
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=width, intermediate_size=64 * round(width * 8 / 3 / 64),
        num_hidden_layers=recipe.layers, num_attention_heads=heads, num_key_value_heads=heads // 2, head_dim=HEAD_SIZE,
        max_position_embeddings=LONGEST_CHAT, tie_word_embeddings=True, bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    return LlamaForCausalLM(config)


def learning_rate(step: int, steps: int, peak: float, warmup: int) -> float:
    """Linear warm-up over `warmup` steps, and a linear decay to zero over all steps."""
    return peak * min(1.0, (step + 1) / warmup) * (1 - step / steps)


def train(
    model: Any,
    ids: Any,
    spans: Any,
    steps: int,
    batch_size: int,
    peak: float = PEAK_LEARNING_RATE,
    warmup: int = WARMUP_STEPS,
) -> float:
    """Train on the assistant's tokens with the end of the turn and the line break after it; returns the last loss.

    ids, spans: as `encode` returns them. Padding is on the right, where a causal model does not see it, so no attention
    mask is needed. Weights without requires_grad are not changed.
    """
    import torch

    device = model.device
    ids, spans = ids.to(device), spans.to(device)
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(trained, betas=(0.9, 0.95), weight_decay=0.01, fused=True)
    started, loss = time.monotonic(), torch.tensor(0.0)
    order = torch.randperm(len(ids)).to(device)
    for step in range(steps):
        picked = order[torch.arange(step * batch_size, (step + 1) * batch_size, device=device) % len(order)]
        begins, ends = spans[picked, :1], spans[picked, 1:]
        chat = ids[picked, : int(ends.max())].long()
        place = torch.arange(1, chat.shape[1], device=device)
        spoken = (place >= begins) & (place < ends)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, steps, peak, warmup)
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=device.type == "cuda"):
            hidden = model.model(input_ids=chat[:, :-1]).last_hidden_state
            logits = model.lm_head(hidden[spoken])
        loss = torch.nn.functional.cross_entropy(logits.float(), chat[:, 1:][spoken])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if (step + 1) % LOG_EVERY == 0:
            say(f"step {step + 1:,}/{steps:,}  loss {loss.item():.3f}  {duration(time.monotonic() - started)}")
    return loss.item()


def round_to_stored(model: Any) -> Any:
    """Round the weights to bfloat16 but compute in float32, so that what is measured is what a user loads."""
    import torch

    return model.to(torch.bfloat16).float().eval()


def save(model: Any, tokenizer: Any, folder: Path) -> None:
    """Save weights in bfloat16, a config that asks for float32, the tokenizer with its template, sampling defaults."""
    import torch
    from safetensors.torch import save_file
    from transformers import GenerationConfig

    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save_pretrained(folder)
    settings = json.loads((folder / "tokenizer_config.json").read_text("utf-8"))
    settings["tokenizer_class"] = "PreTrainedTokenizerFast"  # the name that transformers 4 knows too
    write_json(folder / "tokenizer_config.json", settings)
    model.config.dtype = torch.float32
    model.config.architectures = ["LlamaForCausalLM"]
    model.config.save_pretrained(folder)
    weights = {name: tensor.detach().cpu().to(torch.bfloat16).contiguous() for name, tensor in model.named_parameters()}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "model.safetensors").chmod(0o644)  # save_file makes it readable by its owner only
    GenerationConfig(
        do_sample=True, temperature=1.0, top_p=1.0, top_k=0,
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    ).save_pretrained(folder)  # fmt: skip
