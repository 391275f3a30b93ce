"""Keys and values of a decoding with room behind them: a new token is written into its place.

The cache of transformers concatenates: each token copies all that came before it, in every layer. With a few
hundred completions at once that was 70 % of the time of sampling on a CPU.
"""

from __future__ import annotations

import torch
from transformers import Cache
from transformers.cache_utils import DynamicLayer


class RoomyLayer(DynamicLayer):
    """A layer that copies what it holds only when its room is used up; its numbers are its base class's.

    ``keys`` and ``values``, (rows, heads, tokens, head size), are views of the front of a larger tensor each.

    Args:
        layer: what has been read so far.
        room: tokens that fit before what is held is copied again.
    """

    def __init__(self, layer: DynamicLayer, room: int) -> None:
        super().__init__()
        self.lazy_initialization(layer.keys, layer.values)
        self.keys, self.values, self._room = layer.keys, layer.values, room
        self._whole: tuple[torch.Tensor, ...] = (self.keys, self.values)

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: object, **kwargs: object
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Append new tokens and return all."""
        held, new = (self.keys, self.values), (key_states, value_states)
        start = self.get_seq_length()
        end = start + key_states.shape[-2]
        moved = any(a.data_ptr() != b.data_ptr() for a, b in zip(held, self._whole, strict=True))
        if moved or end > self._whole[0].shape[-2]:  # rows were repeated or chosen, or the room is used up
            self._whole = tuple(_roomier(part, end + self._room) for part in held)
        for whole, part in zip(self._whole, new, strict=True):
            whole[..., start:end, :] = part
        self.keys, self.values = (whole[..., :end, :] for whole in self._whole)
        return self.keys, self.values


def _roomier(part: torch.Tensor, tokens: int) -> torch.Tensor:
    whole = part.new_empty(*part.shape[:-2], tokens, part.shape[-1])
    whole[..., : part.shape[-2], :] = part
    return whole


def make_room(cache: Cache, room: int) -> None:
    """Give the layers of a cache room for so many tokens; those of another kind (sliding windows) stay."""
    cache.layers = [
        RoomyLayer(layer, room) if type(layer) is DynamicLayer else layer for layer in cache.layers
    ]
