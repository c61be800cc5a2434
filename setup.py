"""What is installed: components/ under the name `unmask_policies`, alone, so that it meets no one else's folder.

An editable install puts the repository's root on the path instead; there unmask_policies/ is an alias of components/.
Everything else is in pyproject.toml.
"""

import sys

from setuptools import find_packages, setup

NAME = "unmask_policies"

if "editable_wheel" in sys.argv:
    setup(package_dir={"": "."}, packages=[NAME])
else:
    inner = [f"{NAME}.{package}" for package in find_packages("components")]
    setup(package_dir={NAME: "components"}, packages=[NAME, *inner])
