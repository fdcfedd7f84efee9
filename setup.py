"""The packages of this distribution: every folder of the five rooms that has an `__init__.py`."""

from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.egg_info import egg_info

HOME = "qwen_image_engine"
ROOMS = ("calibration", "engines", "export", "reference", "runtime")
OPTIMUM = "optimum.commands.register"  # a folder of optimum's, into which one file is put


class EggInfo(egg_info):
    """Metadata whose `top_level.txt` leaves out `optimum`: one file is put in its namespace, and no more.

    `importlib.metadata.packages_distributions` reads it. Libraries that ask there who provides `optimum` would take
    this distribution for it, or warn that there are two.
    """

    def run(self) -> None:
        """Write the metadata."""
        super().run()
        Path(self.egg_info, "top_level.txt").write_text(f"{HOME}\n", encoding="utf-8")


found = find_packages(include=[pattern for room in ROOMS for pattern in (room, f"{room}.*")])
setup(
    packages=[OPTIMUM, *(f"{HOME}.{name}" for name in found)],
    package_dir={HOME: "", OPTIMUM: "export/optimum"},
    cmdclass={"egg_info": EggInfo},
)
