import pytest

from lore_lib.errors import ArtifactError, ConfigError, DataError, EngineError, LoreError, nearest


@pytest.mark.parametrize("kind", [ConfigError, ArtifactError, DataError, EngineError])
def test_every_kind_is_a_lore_error(kind: type[LoreError]) -> None:
    assert issubclass(kind, LoreError)


def test_nearest_names_the_closest_word_or_all_of_them() -> None:
    assert nearest("gpro", ["grpo", "sft"]) == "did you mean 'grpo'?"
    assert nearest("xyz", ["grpo", "sft"]) == "known: grpo, sft"
