import pytest

from qwen_image_engine.engines.core.contract import Contract, TensorSpec
from qwen_image_engine.engines.core.errors import QwenImageError
from qwen_image_engine.engines.plans.entry import Profile
from qwen_image_engine.engines.plans.profile_choice import choose_profile

STEP = Contract(
    "step",
    "",
    (
        TensorSpec("latents", ("batch", "tokens", 64), "float32", ""),
        TensorSpec("cos", ("tokens", 64), "float32", ""),
        TensorSpec("key_0", ("batch", "prefix", 32, 128), "bfloat16", ""),
    ),
    (),
)
REBUILD = "qwen-image build BUNDLE"


def profile(name: str, most_tokens: int, least_tokens: int = 4, most_prefix: int = 1200, batch: int = 1) -> Profile:
    def three(shape: tuple[int, ...], largest: tuple[int, ...]) -> tuple[tuple[int, ...], ...]:
        return shape, largest, largest

    return Profile(
        name,
        {  # type: ignore[arg-type]
            "latents": three((1, least_tokens, 64), (batch, most_tokens, 64)),
            "cos": three((least_tokens, 64), (most_tokens, 64)),
            "key_0": three((1, 1, 32, 128), (batch, most_prefix, 32, 128)),
        },
    )


def shapes(tokens: int, prefix: int = 100, batch: int = 1) -> dict[str, tuple[int, ...]]:
    return {"latents": (batch, tokens, 64), "cos": (tokens, 64), "key_0": (batch, prefix, 32, 128)}


PROFILES = (profile("2048x2048", 16384), profile("512x512", 1024), profile("1024x1024", 4096))


@pytest.mark.parametrize(("tokens", "name"), [(4, 1), (1024, 1), (1025, 2), (4096, 2), (4097, 0), (16384, 0)])
def test_the_tightest_that_holds_every_shape(tokens: int, name: int) -> None:
    assert choose_profile(STEP, PROFILES, shapes(tokens), REBUILD) == name


def test_of_equals_the_first() -> None:
    assert choose_profile(STEP, (PROFILES[0], PROFILES[0]), shapes(9000), REBUILD) == 0


def test_every_input_counts() -> None:
    narrow = profile("512x512", 1024, most_prefix=50)
    assert choose_profile(STEP, (narrow, PROFILES[2]), shapes(1000, prefix=100), REBUILD) == 1


@pytest.mark.parametrize(
    ("call", "profiles", "words"),
    [
        (
            shapes(20000),
            PROFILES,
            r"step: latents \(1, 20000, 64\) \(and 1 more inputs\) fits no profile of this engine; the nearest, "
            r"2048x2048, takes \(1, 4, 64\) to \(1, 16384, 64\); build .*: qwen-image build BUNDLE and another "
            r"--profile$",
        ),
        (shapes(1500), (profile("a", 1024), profile("b", 4096, 2048)), "the nearest, a, takes"),
        (shapes(1900), (profile("a", 1024), profile("b", 4096, 2048)), "the nearest, b, takes"),
        (
            shapes(4096, prefix=5000),
            PROFILES,
            r"key_0 .* the nearest, 1024x1024, .* BUNDLE and another --prompt-tokens and --references$",
        ),
        (shapes(1024, batch=2), PROFILES, r"latents \(2, 1024, 64\).*, .* and another --batch$"),
        (
            shapes(2, prefix=2000),
            (profile("a", 1024),),
            r"and 2 more inputs.* and another --profile, --prompt-tokens and --references$",
        ),
    ],
)
def test_a_shape_outside_every_profile_names_the_nearest_and_what_to_build(
    call: dict[str, tuple[int, ...]], profiles: tuple[Profile, ...], words: str
) -> None:
    with pytest.raises(QwenImageError, match=words):
        choose_profile(STEP, profiles, call, REBUILD)
