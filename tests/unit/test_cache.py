"""Room behind keys and values changes where they lie, and no number."""

from pathlib import Path

import pytest
import torch
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from lore_lib.sampling import engine as engine_module
from lore_lib.sampling.cache import RoomyLayer, make_room
from lore_lib.sampling.engine import HfEngine, Sampling, load_model, load_tokenizer

PROMPTS = [f"query: navy dress {'soft ' * i}\ntitle: dress" for i in range(5)]


def states(tokens: int, rows: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(rows, 2, tokens, 4), torch.randn(rows, 2, tokens, 4)


def test_a_layer_with_room_holds_what_a_plain_one_holds() -> None:
    plain = DynamicLayer()
    plain.update(*states(5))
    roomy = RoomyLayer(plain, room=3)
    rows = torch.tensor([5, 0, 3])
    for step, tokens in enumerate([1, 1, 1, 1, 2, 1, 9, 1]):
        if step == 3:
            for layer in (plain, roomy):
                layer.batch_repeat_interleave(2)
        if step == 5:
            for layer in (plain, roomy):
                layer.batch_select_indices(rows)
        if step == 6:
            for layer in (plain, roomy):
                layer.crop(-2)
        new = states(tokens, len(plain.keys))
        for mine, theirs in zip(roomy.update(*new), plain.update(*new), strict=True):
            assert torch.equal(mine, theirs)
        assert roomy.get_mask_sizes(1) == plain.get_mask_sizes(1)


def test_a_token_is_written_into_its_place_until_the_room_is_used_up() -> None:
    plain = DynamicLayer()
    plain.update(*states(5))
    roomy = RoomyLayer(plain, room=3)
    held = [roomy.update(*states(1))[0] for _ in range(9)]  # all alive, so that no room is given out twice
    places = [keys.data_ptr() for keys in held]
    assert [places.count(place) for place in dict.fromkeys(places)] == [4, 4, 1]


def test_layers_of_another_kind_stay_as_they_are() -> None:
    cache = DynamicCache()
    cache.layers = [DynamicLayer(), DynamicSlidingWindowLayer(sliding_window=4)]
    for place in (0, 1):
        cache.update(*states(3), place)
    make_room(cache, 16)
    assert [type(layer) for layer in cache.layers] == [RoomyLayer, DynamicSlidingWindowLayer]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_room_changes_no_completion(
    tiny_model: Path, temperature: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = HfEngine(load_model(str(tiny_model), device="cpu"), load_tokenizer(str(tiny_model)))
    how = Sampling(n=3, temperature=temperature, max_completion_tokens=40, batch_completions=6)
    with_room = engine.generate(PROMPTS, how)
    monkeypatch.setattr(engine_module, "make_room", lambda cache, room: None)
    assert engine.generate(PROMPTS, how) == with_room
