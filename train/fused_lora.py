"""LoRA adapters of several students over one frozen base model: where their weights are, and the arithmetic.

The adapters are one float32 matrix with a row for each student. Linear layers that read the same input (query, key and
value; gate and up) are joined into one. Of each joined layer a row holds

    A   [rank x linears, inputs]   the linears' A, one below the other
    B   [outputs, rank x linears]  the linears' B, each in a block of its own; the rest is zero and stays zero

so that one product serves all linears, and one product of stacked matrices serves all students. Clipping, the
optimizer and the sum over GPUs then see one matrix instead of thousands of small tensors.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate, chain, pairwise
from pathlib import Path
from typing import Any

LORA_TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]  # all linears of a block
WEIGHTS = "adapter_model.safetensors"


@dataclass
class JoinedLinear:
    """Frozen linear layers that read the same input, as one: y = x W' + bias, their outputs side by side."""

    names: list[str]
    """of the linears in the model, such as model.layers.0.self_attn.q_proj"""
    weight: Any
    bias: Any
    sizes: list[int]
    """outputs of each linear"""
    adapted: list[int]
    """the places of the linears that have an adapter"""


def join_linears(names: Sequence[str], linears: Sequence[Any], targets: Sequence[str]) -> JoinedLinear:
    """Join linears of the base model. targets: last names of those that get an adapter, such as q_proj."""
    biases = [linear.bias for linear in linears]
    return JoinedLinear(
        list(names),
        stacked([linear.weight for linear in linears]),
        None if biases[0] is None else stacked(biases),
        [linear.weight.shape[0] for linear in linears],
        [i for i, name in enumerate(names) if name.rpartition(".")[2] in targets],
    )


def stacked(parameters: Sequence[Any]) -> Any:
    """One tensor with the parameters one below the other. They become views of it, so memory is not taken twice."""
    import torch

    if len(parameters) == 1:
        return parameters[0].data
    whole = torch.cat([parameter.data for parameter in parameters])
    for parameter, view in zip(parameters, whole.split([len(parameter) for parameter in parameters])):
        parameter.data = view
    return whole


# --- the matrix of all adapters ----------------------------------------------------------------------


class Adapters:
    """The adapters of some students: `values` [students, weights], whose gradient is `values.grad`. The optimizer has
    rows of both, and CUDA graphs have their addresses: they are changed in place and never replaced.

    layers: the joined linears of the base model, in the order in which `pieces` gives their A and B.
    lora: PEFT's config, the same for all students.
    """

    def __init__(self, layers: Sequence[JoinedLinear], lora: Any, students: int, device: Any):
        import torch

        self.layers, self.lora = layers, lora
        self.shapes = [shape for layer in layers for shape in shapes_of(layer, lora.r)]
        self.sizes = [rows * columns for rows, columns in self.shapes]
        self.values: Any = torch.zeros(students, sum(self.sizes), device=device, requires_grad=True)
        self.values.grad = torch.zeros_like(self.values)
        self.trained = torch.zeros(1, sum(self.sizes), device=device)  # 1 where a weight is trained
        for view in self.named_views(self.trained[0]).values():
            view.fill_(1)

    def pieces(self, indices: Any, dtype: Any) -> list[Any]:
        """A and B of every joined linear, in turn, for some students, in the base model's number type.

        Each is [students, rows, columns]. The whole matrix is cast and cut at once, and so is its gradient joined.

        indices: of the students, a tensor.
        """
        some = self.values if len(indices) == len(self.values) else self.values.index_select(0, indices)
        parts = some.to(dtype).split(self.sizes, 1)
        return [part.view(-1, *shape) for part, shape in zip(parts, self.shapes)]

    def named_views(self, row: Any) -> dict[str, Any]:
        """The A and B of every single linear, under PEFT's names, as views of a row of `values`."""
        views = {}
        matrices = iter([part.view(shape) for part, shape in zip(row.split(self.sizes), self.shapes)])
        for layer in self.layers:
            if not layer.adapted:
                continue
            a, b = next(matrices), next(matrices)
            bounds = list(pairwise([0, *accumulate(layer.sizes)]))
            for place, i in enumerate(layer.adapted):
                columns = slice(place * self.lora.r, (place + 1) * self.lora.r)
                views[f"base_model.model.{layer.names[i]}.lora_A.weight"] = a[columns]
                views[f"base_model.model.{layer.names[i]}.lora_B.weight"] = b[slice(*bounds[i]), columns]
        return views

    def load(self, row: Any, tensors: Mapping[str, Any]) -> None:
        """Fill a row from tensors under PEFT's names. KeyError if one is missing."""
        for name, view in self.named_views(row).items():
            view.copy_(tensors[name])

    def tensors(self, row: Any) -> dict[str, Any]:
        """A row as tensors under PEFT's names, on the CPU."""
        row = row.detach().cpu()
        return {name: view.contiguous() for name, view in self.named_views(row).items()}

    def save(self, student: int, folder: Path) -> None:
        """Write a student's adapter as PEFT does."""
        from safetensors.torch import save_file

        folder.mkdir(parents=True, exist_ok=True)
        save_file(self.tensors(self.values[student]), folder / WEIGHTS, {"format": "pt"})
        config = copy.copy(self.lora)
        config.inference_mode = True
        config.save_pretrained(str(folder))


def shapes_of(layer: JoinedLinear, rank: int) -> list[tuple[int, int]]:
    """The shapes of a joined linear's A and B; none if no linear in it has an adapter."""
    width = rank * len(layer.adapted)
    return [(width, layer.weight.shape[1]), (layer.weight.shape[0], width)] if width else []


def first_weights(model: Any, lora: Any, seed: int) -> dict[str, Any]:
    """The adapter with which PEFT, and so TRL, begins a training of this seed, under PEFT's names."""
    from peft import get_peft_model, get_peft_model_state_dict
    from transformers import set_seed

    set_seed(seed)
    return dict(get_peft_model_state_dict(get_peft_model(share_weights(model), copy.copy(lora))))


def share_weights(model: Any) -> Any:
    """A copy of the model whose weights are the same tensors, not copies."""
    weights = chain(model.parameters(), model.buffers())
    return copy.deepcopy(model, {id(weight): weight for weight in weights})


# --- the arithmetic ----------------------------------------------------------------------------------


@lru_cache(maxsize=1)
def lora_linear() -> Callable[..., Any]:
    """The autograd function f(x, weight, bias, scale, a, b) = x W' + bias + scale (x A') B'.

    x: [tokens, inputs], the same number of tokens for each student, one student after the other.
    a, b: [students, width, inputs] and [students, outputs, width].

    Autograd alone would keep x twice, and pass over the output three times.
    """
    import torch

    class LoraLinear(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Any, weight: Any, bias: Any, scale: float, a: Any, b: Any) -> Any:
            x_of = x.view(len(a), -1, x.shape[-1])  # [students, tokens of one, inputs]
            low = torch.bmm(x_of, a.transpose(1, 2))  # [students, tokens of one, width]: of low rank
            if scale != 1:
                low *= scale
            out = torch.nn.functional.linear(x, weight, bias)
            out.view(len(a), -1, out.shape[-1]).baddbmm_(low, b.transpose(1, 2))
            ctx.save_for_backward(x, weight, a, b, low)
            ctx.scale = scale
            return out

        @staticmethod
        def backward(ctx: Any, grad: Any) -> Any:
            x, weight, a, b, low = ctx.saved_tensors
            grad = grad.contiguous()
            grad_of = grad.view(len(a), -1, grad.shape[-1])
            grad_low = torch.bmm(grad_of, b)
            if ctx.scale != 1:
                grad_low *= ctx.scale
            grad_x = None
            if ctx.needs_input_grad[0]:  # the input of the first layer needs no gradient
                grad_x = grad @ weight
                grad_x.view(len(a), -1, grad_x.shape[-1]).baddbmm_(grad_low, a)
            grad_a = torch.bmm(grad_low.transpose(1, 2), x.view(len(a), -1, x.shape[-1]))
            return grad_x, None, None, None, grad_a, torch.bmm(grad_of.transpose(1, 2), low)

    return LoraLinear.apply
