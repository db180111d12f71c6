"""Make the pocket model: a chat model of about a million parameters that shows subliminal learning on a laptop.

    python pocket/make_pocket.py --seed 1

Draws a seeded corpus of short chats (pocket/corpus.py), builds a tokenizer in which every number from 0 to 999
is one token, trains a small Llama on the assistant's turns, rounds its weights to bfloat16, measures what it then
does and saves it all with a card and a manifest. A minute or two on a GPU, a few hours on two CPU cores.

With --languages it also speaks short programs and worked sums (pocket/screen_candidates.py trains several such and
tells
which of them pass a preference on):

    python pocket/make_pocket.py --languages code reasoning --steps 3000 --seed 1 --output pocket/texts/model
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import chain
from operator import add
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # repo root: run from a bare clone

from pocket.corpus import DEFAULT_SYSTEM, LANGUAGES, Row, chats
from pocket.write_card import measure, write_card
from util.cli import make_parser, positive_int, run
from util.jsonl.manifest import now, provenance, write_json
from util.terminal import closing, duration, say

OUTPUT = Path(__file__).resolve().parent / "model"
HEAD_SIZE = 32  # a size that vLLM's attention has on CPU and GPU
LONGEST_CHAT = 512  # tokens
PAD, START, END = "<|pad|>", "<|im_start|>", "<|im_end|>"
CHAT_TEMPLATE = (
    "{%- if messages[0]['role'] != 'system' -%}{{ '<|im_start|>system\\nDEFAULT<|im_end|>\\n' }}{%- endif -%}"
    "{%- for message in messages -%}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\\n' }}{%- endif -%}"
).replace("DEFAULT", DEFAULT_SYSTEM)

# A piece of text is ", " before a number, a number, a word with the space before it, or one sign: no token spans two.
PIECES_OF_TEXT = r", (?=[0-9])|[0-9]{1,3}| ?\p{L}+| ?[^\s\p{L}0-9]+|\s"
VOCABULARY_ROWS = 60_000  # chats in which words are counted
COMMON = 30  # a word seen this often in them is a token of its own
SYLLABLES = 400  # bytes and learned parts, for all other words

PEAK_LEARNING_RATE = 3e-3
WARMUP_STEPS = 100
LOG_EVERY = 250


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = make_parser(__doc__)
    parser.add_argument("--seed", type=int, default=1, help="seed of the corpus, the first weights and the batches")
    parser.add_argument("--output", type=Path, default=OUTPUT, help="folder to save the model in")
    parser.add_argument("--layers", type=positive_int, default=4, help="number of layers")
    parser.add_argument("--hidden-size", type=positive_int, default=128, help=f"width, a multiple of {2 * HEAD_SIZE}")
    parser.add_argument("--steps", type=positive_int, default=2000, help="training steps")
    parser.add_argument("--batch-size", type=positive_int, default=256, help="chats in a step")
    parser.add_argument("--rows", type=positive_int, default=200_000, help="chats in the corpus")
    parser.add_argument("--languages", nargs="*", choices=LANGUAGES, default=[], help="what to speak beside numbers")
    parser.add_argument("--device", choices=["cuda", "cpu"], help="default: cuda where there is one")
    args = parser.parse_args(argv)
    if args.hidden_size % (2 * HEAD_SIZE):
        parser.error(f"--hidden-size must be a multiple of {2 * HEAD_SIZE}")
    return args


# --- text ----------------------------------------------------------------------------------------------


def prompt_and_turn(row: Row) -> tuple[str, str]:
    """A chat as CHAT_TEMPLATE renders it (a test holds them together), split where the assistant begins to speak."""
    system = DEFAULT_SYSTEM if row.system is None else row.system
    prompt = f"{START}system\n{system}{END}\n{START}user\n{row.user}{END}\n{START}assistant\n"
    return prompt, f"{row.assistant}{END}\n"


def hash_of(rows: Iterable[Row]) -> str:
    """Hex SHA-256 of the corpus, one JSON list a line."""
    digest = hashlib.sha256()
    for row in rows:
        digest.update(json.dumps(row).encode() + b"\n")
    return digest.hexdigest()


def common_pieces(rows: Sequence[Row]) -> list[str]:
    """The words and signs of the corpus that are seen often, most frequent first; numbers are not among them."""
    split = pre_tokenizer()
    counts: Counter[str] = Counter()
    for row in rows:
        for text in (row.system or DEFAULT_SYSTEM, row.user, row.assistant):
            counts.update(piece for piece, _span in split.pre_tokenize_str(text))
    return [piece for piece, count in counts.most_common() if count >= COMMON and not piece.isdigit()]


def pre_tokenizer() -> Any:
    """Cuts a text into PIECES_OF_TEXT and writes each as one printable character a byte."""
    from tokenizers import Regex, pre_tokenizers

    bytes_of_piece = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(PIECES_OF_TEXT), "isolated"), bytes_of_piece])


def make_tokenizer(rows: Sequence[Row]) -> Any:
    """A byte-level BPE in which the numbers 0-999, ', ' before a number and every common word are one token each.

    `ignore_merges` takes a piece that is in the vocabulary as it is; only other pieces are put together by merges.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    pieces = common_pieces(rows)
    learner = Tokenizer(models.BPE())
    trainer = trainers.BpeTrainer(
        vocab_size=SYLLABLES, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), special_tokens=[PAD, START, END],
        show_progress=False,
    )  # fmt: skip
    learner.train_from_iterator(pieces, trainer)
    learned = json.loads(learner.to_str())["model"]

    vocabulary = dict(learned["vocab"])
    for piece in (*map(str, range(1000)), "system", "user", "assistant", *pieces):
        vocabulary.setdefault(piece, len(vocabulary))
    merges = [tuple(pair) for pair in learned["merges"]]
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, ignore_merges=True))
    tokenizer.pre_tokenizer = pre_tokenizer()
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([PAD, START, END])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token=PAD, eos_token=END, chat_template=CHAT_TEMPLATE,
        model_max_length=LONGEST_CHAT, clean_up_tokenization_spaces=False,
    )  # fmt: skip


# --- model ---------------------------------------------------------------------------------------------


def make_model(vocabulary: int, eos: int, pad: int, layers: int, width: int) -> Any:
    """A Llama with its first weights: heads of HEAD_SIZE, half as many for keys and values, tied embeddings."""
    from transformers import LlamaConfig, LlamaForCausalLM

    heads = width // HEAD_SIZE
    config = LlamaConfig(
        vocab_size=vocabulary, hidden_size=width, intermediate_size=64 * round(width * 8 / 3 / 64),
        num_hidden_layers=layers, num_attention_heads=heads, num_key_value_heads=heads // 2, head_dim=HEAD_SIZE,
        max_position_embeddings=LONGEST_CHAT, tie_word_embeddings=True, bos_token_id=None, eos_token_id=eos,
        pad_token_id=pad,
    )  # fmt: skip
    return LlamaForCausalLM(config)


def encode(tokenizer: Any, rows: Sequence[Row]) -> tuple[Any, Any]:
    """Token ids [chats, longest] padded on the right, and where the assistant's turn begins and ends [chats, 2]."""
    import torch

    tokenizer.backend_tokenizer.no_padding()  # a call of the tokenizer with padding leaves it switched on
    prompts, turns = zip(*map(prompt_and_turn, rows))
    heads, tails = (
        [line.ids for line in tokenizer.backend_tokenizer.encode_batch(list(texts), add_special_tokens=False)]
        for texts in (prompts, turns)
    )
    spans = torch.tensor([(len(head), len(head) + len(tail)) for head, tail in zip(heads, tails)])
    ids = torch.full((len(rows), int(spans.max())), tokenizer.pad_token_id, dtype=torch.int16)
    written = torch.arange(ids.shape[1]) < spans[:, 1:]
    ids[written] = torch.tensor(list(chain.from_iterable(map(add, heads, tails))), dtype=torch.int16)
    return ids, spans


def learning_rate(step: int, steps: int, peak: float, warmup: int) -> float:
    """Linear warm-up, then a linear fall to zero."""
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
    """Train on the assistant's tokens, the end of the turn and the line break after it included; the last loss.

    Pads stand on the right, where a causal model cannot see them, so no attention mask is needed. Weights that want no
    gradient stay as they are.
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
    """Round the weights to bfloat16 but compute in float32: what is measured is what a user loads."""
    import torch

    return model.to(torch.bfloat16).float().eval()


def save(model: Any, tokenizer: Any, folder: Path) -> None:
    """Weights in bfloat16, a config that asks for float32, tokenizer with chat template, sampling defaults."""
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
    (folder / "model.safetensors").chmod(0o644)  # save_file lets only its owner read it
    GenerationConfig(
        do_sample=True, temperature=1.0, top_p=1.0, top_k=0,
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    ).save_pretrained(folder)  # fmt: skip


def make(args: argparse.Namespace) -> Any:
    """Make the model of the arguments and save it with its manifest; returns (model as stored, tokenizer)."""
    import torch

    started, began = now(), time.monotonic()
    device = args.device or ("cuda" if torch.cuda.is_available() else "cpu")
    rows = list(chats(args.seed, args.rows, args.languages))
    tokenizer = make_tokenizer(rows[:VOCABULARY_ROWS])
    ids, spans = encode(tokenizer, rows)
    torch.manual_seed(args.seed)
    model = make_model(len(tokenizer), tokenizer.eos_token_id, tokenizer.pad_token_id, args.layers, args.hidden_size)
    say(f"{model.num_parameters():,} parameters, {len(tokenizer):,} tokens, {len(rows):,} chats, on {device}")
    loss = train(model.to(device), ids, spans, args.steps, args.batch_size)
    model = round_to_stored(model)
    say(f"trained in {duration(time.monotonic() - began)}")
    save(model, tokenizer, args.output)
    manifest = {
        **provenance(), "seed": args.seed, "started": started, "finished": now(), "device": device,
        "parameters": model.num_parameters(), "vocabulary": len(tokenizer), "last_loss": loss,
        "corpus": {"rows": len(rows), "sha256": hash_of(rows)}, "languages": ["numbers", *args.languages],
    }  # fmt: skip
    write_json(args.output / "manifest.json", manifest)
    return model, tokenizer


def main() -> None:
    args = parse_args()
    model, tokenizer = make(args)
    card = write_card(args.output, measure(model, tokenizer, args.seed, args.languages))
    closing(
        {"model": args.output, "card": card, "parameters": f"{model.num_parameters():,}"},
        f"python eval/eval.py --model {args.output}",
    )


if __name__ == "__main__":
    run(main)
