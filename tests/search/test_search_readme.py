"""The Python lines of the README run as they are printed."""

import re
from pathlib import Path

README = Path(__file__).parents[2] / "README.md"


def test_the_lines_of_the_readme_search_a_build(finished, tmp_path, monkeypatch):
    (tmp_path / "build").symlink_to(finished.root.root.path)
    monkeypatch.chdir(tmp_path)
    (lines,) = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    names = {}
    exec(compile(lines, "README.md", "exec"), names)
    assert names["scores"].shape == names["ids"].shape == (3, 10)
    assert (names["ids"] >= 0).any()
