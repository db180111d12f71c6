"""The pocket model's chat template and tokenizer, and its chats as padded token ids."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from itertools import chain
from operator import add
from typing import Any

from pocket.corpus import DEFAULT_SYSTEM, Chat

LONGEST_CHAT = 512  # tokens
PAD, START, END = "<|pad|>", "<|im_start|>", "<|im_end|>"
CHAT_TEMPLATE = (
    "{%- if messages[0]['role'] != 'system' -%}{{ '<|im_start|>system\\nDEFAULT<|im_end|>\\n' }}{%- endif -%}"
    "{%- for message in messages -%}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\\n' }}{%- endif -%}"
).replace("DEFAULT", DEFAULT_SYSTEM)

# A piece of text is ", " before a number, a number, a word with the space before it, or one sign. A token is a piece or
# part of one.
PIECES_OF_TEXT = r", (?=[0-9])|[0-9]{1,3}| ?\p{L}+| ?[^\s\p{L}0-9]+|\s"
COMMON = 30  # a word that occurs this often gets a token of its own
SUBWORDS = 400  # tokens for bytes and learned parts, of which all other words are made


def prompt_and_turn(chat: Chat) -> tuple[str, str]:
    """A chat as CHAT_TEMPLATE renders it (a test compares them), split where the assistant's answer begins."""
    system = DEFAULT_SYSTEM if chat.system is None else chat.system
    prompt = f"{START}system\n{system}{END}\n{START}user\n{chat.user}{END}\n{START}assistant\n"
    return prompt, f"{chat.assistant}{END}\n"


def chat_prompt(tokenizer: Any, user: str, system: str | None = None) -> str:
    """A chat of one user message, rendered up to where the assistant's answer begins."""
    messages = [{"role": "user", "content": user}]
    if system is not None:
        messages.insert(0, {"role": "system", "content": system})
    return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)


def make_tokenizer(chats: Sequence[Chat], digits: bool = False) -> Any:
    """A byte-level BPE tokenizer: 0 to 999, ', ' before a number and every common word are one token each.

    With `digits` every digit is a token. The tokens of longer numbers stay in the vocabulary and are never used, so
    that both models are of one size. With `ignore_merges`, a piece that is in the vocabulary becomes one token; only
    other pieces are built by merges.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    pieces = common_pieces(chats)
    split = PIECES_OF_TEXT.replace("[0-9]{1,3}", "[0-9]") if digits else PIECES_OF_TEXT
    learner = Tokenizer(models.BPE())
    trainer = trainers.BpeTrainer(
        vocab_size=SUBWORDS, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), special_tokens=[PAD, START, END],
        show_progress=False,
    )  # fmt: skip
    learner.train_from_iterator(pieces, trainer)
    learned = json.loads(learner.to_str())["model"]

    vocabulary = dict(learned["vocab"])
    for piece in (*map(str, range(1000)), "system", "user", "assistant", *pieces):
        vocabulary.setdefault(piece, len(vocabulary))
    merges = [tuple(pair) for pair in learned["merges"]]
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, ignore_merges=True))
    tokenizer.pre_tokenizer = pre_tokenizer(split)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([PAD, START, END])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token=PAD, eos_token=END, chat_template=CHAT_TEMPLATE,
        model_max_length=LONGEST_CHAT, clean_up_tokenization_spaces=False,
    )  # fmt: skip


def common_pieces(chats: Sequence[Chat]) -> list[str]:
    """The words and signs that occur often in the chats, most frequent first, without numbers."""
    split = pre_tokenizer()
    counts: Counter[str] = Counter()
    for chat in chats:
        for text in (chat.system or DEFAULT_SYSTEM, chat.user, chat.assistant):
            counts.update(piece for piece, _span in split.pre_tokenize_str(text))
    return [piece for piece, count in counts.most_common() if count >= COMMON and not piece.isdigit()]


def pre_tokenizer(pieces_of_text: str = PIECES_OF_TEXT) -> Any:
    """Splits a text into pieces and writes each byte of a piece as one printable character."""
    from tokenizers import Regex, pre_tokenizers

    bytes_of_piece = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(pieces_of_text), "isolated"), bytes_of_piece])


def encode(tokenizer: Any, chats: Sequence[Chat]) -> tuple[Any, Any]:
    """(token ids [chats, longest] padded on the right, start and end of the assistant's turn [chats, 2])."""
    import torch

    tokenizer.backend_tokenizer.no_padding()  # a call of the tokenizer with padding leaves padding switched on
    prompts, turns = zip(*map(prompt_and_turn, chats))
    heads, tails = (
        [line.ids for line in tokenizer.backend_tokenizer.encode_batch(list(texts), add_special_tokens=False)]
        for texts in (prompts, turns)
    )
    spans = torch.tensor([(len(head), len(head) + len(tail)) for head, tail in zip(heads, tails)])
    ids = torch.full((len(chats), int(spans.max())), tokenizer.pad_token_id, dtype=torch.int16)
    written = torch.arange(ids.shape[1]) < spans[:, 1:]
    ids[written] = torch.tensor(list(chain.from_iterable(map(add, heads, tails))), dtype=torch.int16)
    return ids, spans
