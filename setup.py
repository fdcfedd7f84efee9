"""What pyproject.toml has no word for: which import name is this distribution's own."""

from pathlib import Path

from setuptools import setup
from setuptools.command.egg_info import egg_info


class EggInfo(egg_info):
    """Leaves `optimum` out of `top_level.txt`: one file is put in its namespace, and no more.

    `importlib.metadata.packages_distributions` reads it. Libraries that ask there who provides `optimum` would take
    this distribution for it, or warn that there are two.
    """

    def run(self) -> None:
        """Write the metadata."""
        super().run()
        Path(self.egg_info, "top_level.txt").write_text("qwen_image_engine\n", encoding="utf-8")


setup(cmdclass={"egg_info": EggInfo})
