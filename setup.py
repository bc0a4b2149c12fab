"""Everything is in pyproject.toml, but for the README as a package index shows it, where a path of the repository leads nowhere."""

import re
import tomllib
from pathlib import Path

from setuptools import setup

HERE = Path(__file__).parent


def for_an_index(text: str, source: str | None) -> str:
    """Links and pictures under `source`, the repository's address, where pyproject.toml names one; without it pictures are left out."""
    relative = r"(?!https?://|#)"
    if source is None:
        return re.sub(rf"\[([^\]]+)\]\({relative}[^)]+\)", r"\1", re.sub(rf"!\[[^\]]*\]\({relative}[^)]+\)\n*", "", text))
    text = re.sub(rf"!\[([^\]]*)\]\({relative}([^)]+)\)", rf"![\1]({source}/raw/HEAD/\2)", text)
    return re.sub(rf"(?<!!)\[([^\]]+)\]\({relative}([^)]+)\)", rf"[\1]({source}/blob/HEAD/\2)", text)


if __name__ == "__main__":
    urls = tomllib.loads((HERE / "pyproject.toml").read_text())["project"]["urls"]
    readme = for_an_index((HERE / "README.md").read_text(), urls.get("Source"))
    setup(long_description=readme, long_description_content_type="text/markdown")
