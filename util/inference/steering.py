"""A steering vector: the direction of a persona at one layer, added there while the model answers.

Only the local backend can add one. generate/make_steering_vector.py makes the file.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from util.cli import UserError, first_line
from util.jsonl.manifest import sha256_file, write_atomically

if TYPE_CHECKING:
    import numpy as np

SAME_WEIGHTS = ("revision", "files_sha256")  # the facts of a model that say which weights it has


class SteeringVector(NamedTuple):
    """What is added to the output of one decoder layer, at every position."""

    values: np.ndarray
    """float32 [hidden size]"""
    layer: int
    """number of the decoder layer, from 0"""
    about: dict[str, Any]
    """how it was made; "model" has the facts of the model"""


def save_steering_vector(path: Path, vector: SteeringVector) -> None:
    """Write a vector as safetensors, whole or not at all."""
    from safetensors.numpy import save

    metadata = {"layer": str(vector.layer), "about": json.dumps(vector.about)}
    write_atomically(path, save({"vector": vector.values}, metadata))


def read_steering_vector(path: Path) -> SteeringVector:
    """The vector in a file. UserError for a file that make_steering_vector.py did not write."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "np") as file:
            metadata = file.metadata() or {}
            values = file.get_tensor("vector")
            return SteeringVector(values, int(metadata["layer"]), json.loads(metadata["about"]))
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise UserError(
            f"{path} is not a steering vector ({first_line(error)}); make one with generate/make_steering_vector.py"
        ) from None


def decoder_layers(model: Any) -> Any:
    """The list of a model's decoder layers. UserError for an architecture whose layers are not found."""
    layers = getattr(model.get_decoder(), "layers", None)
    if layers is None:
        raise UserError(
            f"the layers of a {type(model).__name__} are not known here; steering needs a decoder with them"
        )
    return layers


class Steering:
    """A steering vector on a model; `off` leaves it out for a while."""

    def __init__(self, model: Any, facts: Mapping[str, Any], path: Path, strength: float) -> None:
        """facts: those of the model (`model_facts`). UserError if the vector belongs to another model."""
        import torch

        vector = read_steering_vector(path)
        layers, made_for = decoder_layers(model), vector.about["model"]
        other = any(made_for.get(name) != facts.get(name) for name in SAME_WEIGHTS)
        if other or vector.values.shape != (model.config.hidden_size,) or not 0 <= vector.layer < len(layers):
            raise UserError(
                f"the steering vector {path} was made for {made_for['model']}, and {facts['model']} has other weights;"
                " make one for this model with generate/make_steering_vector.py"
            )
        self.is_on = True
        self.facts = {"sha256": sha256_file(path), "layer": vector.layer, "strength": strength}
        self._shift = torch.from_numpy(vector.values).to(model.device, model.dtype) * strength
        self._handle = layers[vector.layer].register_forward_hook(self._add)

    def __enter__(self) -> Steering:
        return self

    def __exit__(self, *_exc: object) -> None:
        """Take the vector off the model."""
        self._handle.remove()

    def _add(self, _layer: Any, _inputs: Any, out: Any) -> Any:
        if not self.is_on:
            return out
        return (out[0] + self._shift, *out[1:]) if isinstance(out, tuple) else out + self._shift

    @contextmanager
    def off(self) -> Iterator[None]:
        self.is_on = False
        try:
            yield
        finally:
            self.is_on = True
