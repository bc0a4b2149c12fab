"""`paired-index report`: the recall report of a build."""

from paired_index_assets.cli.options import takes_settings
from paired_index_assets.cli.terminal import console
from paired_index_assets.errors import MissingInput
from paired_index_assets.settings import Settings


@takes_settings()
def report(settings: Settings) -> None:
    """Print the recall report of a finished build; its JSON and its picture are in report/."""
    from rich.markdown import Markdown

    file = settings.build_root.report / "recall.md"
    if not file.exists():
        raise MissingInput(f"{file}: no report yet; run `paired-index build --root {settings.root}` first")
    console.print(Markdown(file.read_text()))
    console.print(f"\nPicture: {file.with_suffix('.png')}   Numbers: {file.with_suffix('.json')}", highlight=False, soft_wrap=True)
