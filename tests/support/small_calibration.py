"""A calibration of the small checkpoint that takes two seconds: what is asked for."""

from typing import Any

PROMPTS = ("a red circle in the center on a white background", "左边有一个蓝色的正方形，白色背景")
SETTINGS: dict[str, Any] = {"steps": 3, "sizes": [(64, 64), (96, 32)], "seed": 5}
FLAGS = ("--size", "64x64", "96x32", "--steps", str(SETTINGS["steps"]), "--seed", str(SETTINGS["seed"]))
RECIPE = ("--precision", "int8", "--target-error", "0.03")
