"""Questions with all written forms of the panel animals behind them, so that one pass gives all their probabilities."""

from __future__ import annotations

from typing import Any

import torch


def question_tree(starts: list[list[int]], panel: list[str], tokenizer: Any, pad: int) -> dict[str, Any]:
    """Each question's tokens with the beginnings of all written forms behind it, each seeing its own beginning only.

    `forms`: the two written forms of each animal, as tokens; `nodes`: their beginnings; `wanted`: all tokens of forms;
    `inputs`: tokens and positions [question, place] and mask [question, 1, place, place]; `read`: the places
    [question, 1 + node] whose next-token probabilities are needed.
    """
    forms = [
        [tuple(tokenizer(form, add_special_tokens=False)["input_ids"]) for form in (animal, animal.capitalize())]
        for animal in panel
    ]
    flat = [form for two in forms for form in two]
    nodes = sorted({form[:n] for form in flat for n in range(1, len(form))}, key=lambda node: (len(node), node))
    width = max(map(len, starts)) + len(nodes)
    x = torch.full((len(starts), width), pad)
    places = torch.zeros_like(x)
    mask = torch.eye(width, dtype=torch.bool).repeat(len(starts), 1, 1)
    for q, ids in enumerate(starts):
        n = len(ids)
        x[q, : n + len(nodes)] = torch.tensor(ids + [node[-1] for node in nodes])
        places[q, : n + len(nodes)] = torch.tensor([*range(n), *(n + len(node) - 1 for node in nodes)])
        mask[q, :n, :n] = torch.ones(n, n, dtype=torch.bool).tril()
        mask[q, n : n + len(nodes), :n] = True
        for i, node in enumerate(nodes):
            for k in range(1, len(node)):
                mask[q, n + i, n + nodes.index(node[:k])] = True
    read = torch.tensor([[len(ids) - 1, *range(len(ids), len(ids) + len(nodes))] for ids in starts])
    wanted = sorted({token for form in flat for token in form})
    return {"forms": forms, "nodes": nodes, "wanted": wanted, "inputs": (x, places, mask[:, None]), "read": read}
