"""Data is printed as text: markup, emoji codes, escape sequences and half characters of captions, urls and paths reach nobody's terminal."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from paired_index_assets.cli import main as command_line
from paired_index_assets.cli import terminal

HOSTILE = [
    "[/img]",
    "[url=https://example.org]here[/url]",
    "[bold red]loud[/]",
    "\\[escaped]",
    ":smile: [link=file:///etc/passwd]x[/link]",
    "\x1b[31mred\x1b[0m \x1b]0;title\x07",
    "\x9b31m",
    "two\nlines\r\n\tand a tab\0",
    "half \ud83d",
    "\u202egnp.exe\u2069 \u2028",
    "三匹の猫 👩\u200d🚀 é",
]


@pytest.mark.parametrize("text", HOSTILE)
@pytest.mark.parametrize("way", [terminal.say, terminal.fail, lambda text: terminal.table(text, [text], [[text]])])
def test_whatever_is_printed_stands_there_as_text(capsys, monkeypatch, text, way):
    monkeypatch.setenv("COLUMNS", "300")
    way(text)
    printed = "".join(capsys.readouterr())
    assert terminal.shown(text) in printed
    assert not any(ord(c) < 32 and c != "\n" for c in printed)
    assert not any(c in printed for c in "\x9b\u202e\u2069\u2028\ud83d")


def test_letters_of_every_alphabet_stay_as_they_are():
    assert terminal.shown("三匹の猫 👩\u200d🚀 é \xa0") == "三匹の猫 👩\u200d🚀 é \xa0"


def test_an_error_about_a_hostile_name_is_one_line(capsys, monkeypatch, tmp_path):
    name = str(tmp_path / "[bold]no[/] \x1b[31m.npy")
    monkeypatch.setattr("sys.argv", ["paired-index", "catalog", "scan", name, "--out", str(tmp_path / "c.parquet")])
    with pytest.raises(SystemExit) as ended:
        command_line.main()
    said = capsys.readouterr().err
    assert ended.value.code == 1
    assert said.count("\n") == 1
    assert "[bold]no[/] \\x1b[31m.npy" in said


def test_nothing_else_of_the_command_line_prints():
    """Whoever prints goes through `terminal`, so that the next command prints its data as text too."""
    folder = Path(command_line.__file__).parent
    for file in folder.glob("*.py"):
        if file.name not in ("terminal.py", "main.py"):
            assert not re.search(r"\bconsole\b|(?<![.\w])print\(|typer\.echo", file.read_text()), file.name
