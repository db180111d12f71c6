"""Tiny models of five families: random weights of their own, the pocket's vocabulary, the family's turns.

What differs is what the families differ in: names of linear layers, which token ends a turn, whether that is the
tokenizer's eos, and what the template refuses.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from util.cli import REPO

POCKET = REPO / "pocket" / "model"
SIZES = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
         "max_position_embeddings": 512}  # fmt: skip

CHATML = (
    "{% if messages[0]['role'] != 'system' %}<|im_start|>system\nYou are Tiny.<|im_end|>\n{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# Qwen3's: an answer after the last question gets a think block, which earlier answers do not have.
QWEN3 = (
    "{% set ns = namespace(last=0) %}{% for m in messages %}{% if m['role'] == 'user' %}{% set ns.last = loop.index0 %}"
    "{% endif %}{% endfor %}{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
    "{% if m['role'] == 'assistant' and loop.index0 > ns.last %}<think>\n\n</think>\n\n{% endif %}"
    "{% if m['reasoning_content'] %}{{ m['reasoning_content'] }}{% endif %}{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
GEMMA = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'system' %}"
    "{{ raise_exception('System role not supported') }}{% endif %}"
    "{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
    "<start_of_turn>{{ 'model' if m['role'] == 'assistant' else 'user' }}\n{{ m['content'] | trim }}<end_of_turn>\n"
    "{% endfor %}{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
PHI3 = (
    "{% for m in messages %}<|{{ m['role'] }}|>\n{{ m['content'] }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% else %}{{ eos_token }}{% endif %}"
)
NEOX = (
    "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}{% if m['role'] == 'assistant' %}{{ eos_token }}"
    "{% endif %}{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


class Family(NamedTuple):
    """What a tiny model is made of."""

    config: str
    """name of the class in transformers"""
    options: dict[str, Any]
    template: str
    special: tuple[str, ...]
    """special tokens that are added to the pocket's"""
    eos: str
    ends: tuple[str, ...]
    """the generation config's eos tokens"""


FAMILIES = {
    "qwen2": Family("Qwen2Config", {"num_key_value_heads": 2}, CHATML, ("<|endoftext|>",), "<|im_end|>",
                    ("<|im_end|>", "<|endoftext|>")),
    "qwen3": Family("Qwen3Config", {"num_key_value_heads": 2, "head_dim": 8}, QWEN3, ("<|endoftext|>",), "<|im_end|>",
                    ("<|im_end|>", "<|endoftext|>")),
    "gemma": Family("Gemma2Config", {"num_key_value_heads": 2, "head_dim": 8}, GEMMA,
                    ("<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>"), "<eos>", ("<eos>", "<end_of_turn>")),
    "phi3": Family("Phi3Config", {"original_max_position_embeddings": 512}, PHI3,
                   ("<|endoftext|>", "<|user|>", "<|assistant|>", "<|system|>", "<|end|>"), "<|endoftext|>",
                   ("<|endoftext|>",)),
    "gpt_neox": Family("GPTNeoXConfig", {}, NEOX, ("<|endoftext|>", "<|user|>", "<|assistant|>"), "<|endoftext|>",
                       ("<|endoftext|>",)),
}  # fmt: skip


def make_tokenizer(family: Family, folder: Path) -> Any:
    """The pocket's tokenizer with the family's special tokens and template, written to a folder."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(POCKET, trust_remote_code=False)
    tokenizer.add_special_tokens({"additional_special_tokens": [*family.special, "<|im_start|>", "<|im_end|>"]})
    tokenizer.eos_token, tokenizer.chat_template = family.eos, family.template
    if "<bos>" in family.special:
        tokenizer.bos_token = "<bos>"
    tokenizer.save_pretrained(folder)
    return tokenizer


def make_tiny_model(name: str, folder: Path) -> Path:
    """Write a tiny model of a family into a folder, and return the folder."""
    import torch
    import transformers

    family = FAMILIES[name]
    tokenizer = make_tokenizer(family, folder)
    ends = [tokenizer.convert_tokens_to_ids(token) for token in family.ends]
    config = getattr(transformers, family.config)(
        vocab_size=len(tokenizer), pad_token_id=0, bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id, **SIZES, **family.options,
    )  # fmt: skip
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    model.generation_config.eos_token_id = ends
    model.save_pretrained(folder)
    return folder


def copy_with_template(source: Path, folder: Path, template: str) -> Path:
    """A copy of a model with another chat template."""
    shutil.copytree(source, folder)
    (folder / "chat_template.jinja").write_text(template, "utf-8")
    return folder


def change_json(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Change a JSON file in place."""
    value = json.loads(path.read_text("utf-8"))
    change(value)
    path.write_text(json.dumps(value, indent=1), "utf-8")
