"""Which keys and values a recipe holds in FP8."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from qwen_image_engine.calibration.quantise.network import quantised_network
from qwen_image_engine.calibration.rules.quantisation import FP8_STATIC, Rule
from qwen_image_engine.reference.checkpoint.checkpoint import Checkpoint

IN_FP8 = replace(FP8_STATIC, fp8_attention=True)


def test_keys_and_values_in_fp8_are_those_that_fp8_attention_reads(random_checkpoint: Callable[..., Path]) -> None:
    folder = random_checkpoint("narrow")
    checkpoint = Checkpoint.open(folder)
    layers = checkpoint.transformer.num_layers
    both = {f"{what}_{index}" for what in ("key", "value") for index in range(layers)}

    def cache(quantisation: object) -> set[str]:
        return set(quantised_network(checkpoint, "transformer", quantisation).cache)  # type: ignore[arg-type]

    assert cache(None) == cache(FP8_STATIC) == set()
    assert cache(IN_FP8) == both
    assert cache(replace(IN_FP8, skip_blocks=(0,))) == both - {"key_0", "value_0"}
    # What is smoothed in a graph has other values than the network's own, which leave the graph.
    smoothed = (Rule("transformer_blocks.1.attn.to_*", "int8"), *FP8_STATIC.rules)
    assert cache(replace(IN_FP8, rules=smoothed)) == both - {"value_1"}


def test_bidirectional_attention_keeps_none(random_checkpoint: Callable[..., Path]) -> None:
    checkpoint = Checkpoint.open(random_checkpoint("narrow"), attention="bidirectional")
    assert not quantised_network(checkpoint, "transformer", IN_FP8).cache
