"""Settings as command-line options, by construction: a field of `Settings` is a flag of every command that takes its group."""

import functools
import inspect
from collections.abc import Callable
from typing import Annotated, Any, Literal, Optional, get_args, get_origin

import typer

from paired_index_assets.settings import OF_THE_MACHINE, Settings, load_settings


def takes_settings(
    *groups: str, also: tuple[str, ...] = (), load: Callable[..., Any] = load_settings
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command the settings of `groups` (and those named in `also`) as options; its first argument is `load(name=value, ...)`.

    The root and its cache are options of every command.

    An option that is not given is not set: the environment, the root's last build and the defaults decide, in this order.
    """
    names = [n for n, field in Settings.model_fields.items() if n in OF_THE_MACHINE or n in also or _group(field) in groups]

    def wrap(command: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(command)
        def run(**arguments: Any) -> None:
            given = {name: arguments.pop(name) for name in names}
            command(load(**given), **arguments)

        _, *own = inspect.signature(command).parameters.values()
        run.__signature__ = inspect.Signature([*own, *map(_option, names)])  # type: ignore[attr-defined]  # typer reads it
        run.__annotations__ = {p.name: p.annotation for p in run.__signature__.parameters.values()}  # type: ignore[attr-defined]
        return run

    return wrap


def _option(name: str) -> inspect.Parameter:
    field = Settings.model_fields[name]
    kind = _without_none(field.annotation)
    choices = get_args(kind) if get_origin(kind) is Literal else ()
    flag = name.replace("_", "-")
    shown = "" if field.default is None else f" [default: {field.default}]"
    option = typer.Option(
        f"--{flag}/--no-{flag}" if kind is bool else f"--{flag}",
        help=f"{field.description}{shown}".replace("[", r"\["),
        rich_help_panel=_group(field),
        show_default=False,
        metavar="|".join(choices) or None,
    )
    # Choices are left to `Settings`, so that a wrong one is one line as every other wrong setting is.
    return inspect.Parameter(
        name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[Optional[str if choices else kind], option]
    )


def _without_none(annotation: Any) -> Any:
    """`str | None` -> `str`: typer wants the one type, and makes it optional by its default."""
    members = get_args(annotation)
    return members[0] if type(None) in members else annotation


def _group(field: Any) -> str:
    return str(field.json_schema_extra["group"])
