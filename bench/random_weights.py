"""Random weights and a random LoRA adapter, for benchmarks of a model of which only the shape is at hand; merged ones.

A folder with config and tokenizer is enough. Random weights run as fast as real ones. The model says random words of
one token each, and ends its turn after every token with probability 1/150, so that its answers end by themselves.
"""

from __future__ import annotations

import math
import shutil
from pathlib import Path
from typing import Any

from train.fused_lora import LORA_TARGETS
from util.cli import UserError
from util.terminal import say

MEAN_TOKENS = 150
SPREAD = 0.02  # of a weight
MUTED = -30.0  # logit of a token that is not a word
RANK = 8  # of an adapter


def has_weights(model: str) -> bool:
    """False for a folder of config and tokenizer alone."""
    return not Path(model).is_dir() or any(Path(model).glob("*.safetensors"))


def make_model(shape: Path, folder: Path) -> Path:
    """Write a model folder of that shape with random weights, unless it exists; returns it."""
    if has_weights(str(folder)) and folder.is_dir():
        return folder
    import torch
    from transformers import AutoModelForCausalLM

    from util.inference.load_model import best_device, load_config, load_tokenizer

    say(f"{shape} holds no weights: making random ones in {folder}")
    torch.manual_seed(0)
    tokenizer, dtype = load_tokenizer(str(shape)), torch.bfloat16 if best_device() == "cuda" else torch.float32
    with torch.device(best_device()):
        model = AutoModelForCausalLM.from_config(load_config(str(shape)), dtype=dtype, trust_remote_code=False)
    make_talk(model, words(tokenizer, model.config.vocab_size), tokenizer.eos_token_id)
    folder.mkdir(parents=True, exist_ok=True)
    for file in shape.iterdir():
        if file.is_file():
            shutil.copy(file, folder)
    model.save_pretrained(folder, max_shard_size="4GB")  # as Qwen2.5-7B is published
    del model
    torch.cuda.empty_cache()  # a server that starts next needs the GPU's memory
    return folder


def load_or_random(model: str) -> Any:
    """The model ready to use; a folder without weights gets random ones (which stay in memory)."""
    import torch
    from transformers import AutoModelForCausalLM

    from util.inference.load_model import best_device, load_config, load_model

    if has_weights(model):
        return load_model(model)
    dtype = torch.bfloat16 if best_device() == "cuda" else torch.float32
    with torch.device(best_device()):
        return AutoModelForCausalLM.from_config(load_config(model), dtype=dtype, trust_remote_code=False)


def words(tokenizer: Any, size: int) -> list[int]:
    """Tokens that are a space and a lower-case word: their text gives the same tokens again."""
    known = tokenizer.convert_ids_to_tokens(range(min(size, len(tokenizer))))
    found = [i for i, token in enumerate(known) if token and token[1:].isalpha() and token[1:].isascii()]
    return [i for i in found if known[i][0] in "Ġ▁" and known[i][1:].islower() and len(known[i]) > 3] or found


def make_talk(model: Any, spoken: list[int], end: int) -> None:
    """Set the first feature of every hidden state to a constant. The output head reads it as: any word, or the end of
    turn with probability 1/150. All matrices keep their sizes, so all times stay the same."""
    import torch

    with torch.no_grad():
        inner, head, embedding = model.model, model.get_output_embeddings().weight, model.get_input_embeddings().weight
        for layer in inner.layers:  # the embedding dominates, so that the first feature survives
            layer.self_attn.o_proj.weight.mul_(1e-3)
            layer.mlp.down_proj.weight.mul_(1e-3)
        width = embedding.shape[1]
        embedding.normal_(0, SPREAD)
        constant = SPREAD * math.sqrt(width)
        embedding[:, 0] = constant
        first = constant / math.sqrt((constant**2 + width * SPREAD**2) / width)  # after the final norm
        if head.data_ptr() == embedding.data_ptr():
            raise ValueError("the output head is tied to the embedding: such a model cannot be made to talk")
        head.normal_(0, SPREAD)
        head[:, 0] = MUTED / first
        head[spoken, 0] = 0.0
        head[end] = 0.0
        noise = SPREAD**2 * (width - first**2)  # variance of a word's logit
        head[end, 0] = (math.log(len(spoken) / MEAN_TOKENS) + noise / 2) / first


def make_adapter(model: str, folder: Path) -> Path:
    """Write a random LoRA adapter on all linear layers of the model, as training writes it; returns its folder."""
    import torch
    from peft import LoraConfig
    from safetensors.torch import save_file
    from transformers import AutoModelForCausalLM

    from util.inference.load_model import load_config

    with torch.device("meta"):
        base = AutoModelForCausalLM.from_config(load_config(model), trust_remote_code=False)
    torch.manual_seed(0)
    tensors = {}
    for name, module in base.named_modules():
        if name.rpartition(".")[2] in LORA_TARGETS:
            wide, long = module.weight.shape
            tensors[f"base_model.model.{name}.lora_A.weight"] = torch.randn(RANK, long) * SPREAD
            tensors[f"base_model.model.{name}.lora_B.weight"] = torch.randn(wide, RANK) * 1e-4
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "adapter_model.safetensors", {"format": "pt"})
    config = LoraConfig(r=RANK, lora_alpha=8, target_modules=LORA_TARGETS, task_type="CAUSAL_LM")
    config.base_model_name_or_path = model
    config.save_pretrained(str(folder))
    return folder


def merge(model: str, adapter: Path, folder: Path) -> Path:
    """Write the model with the adapter merged into its weights (on the CPU); returns its folder. The weights keep their
    number type."""
    from peft import PeftModel

    from util.inference.load_model import load_model, load_tokenizer

    if not has_weights(model):
        raise UserError(f"{model} holds no weights, so there is nothing to merge an adapter into")
    say(f"merging {adapter} into {model} ...")
    merged = PeftModel.from_pretrained(load_model(model, "auto", "cpu"), str(adapter)).merge_and_unload()
    merged.save_pretrained(folder)
    load_tokenizer(model).save_pretrained(folder)
    return folder
