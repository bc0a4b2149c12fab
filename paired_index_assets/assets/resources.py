"""What assets are handed: the settings, and a way to say how far they are."""

import time
from typing import TYPE_CHECKING, Any

import dagster as dg
from pydantic import create_model
from pydantic.fields import FieldInfo

from paired_index_assets.progress import Progress
from paired_index_assets.settings import Settings

if TYPE_CHECKING:  # Dagster reads these modules in every process it starts: what is only worked with is imported by the work
    from paired_index_assets.builds.opened import OpenBuild

LOG_EVERY_SECONDS = 10.0

# The same fields as `Settings`, by construction: a setting added there can be given in the launchpad at once.
_fields: dict[str, Any] = {name: (field.annotation, field) for name, field in Settings.model_fields.items()}
_SettingsFields: Any = create_model("_SettingsFields", __base__=dg.ConfigurableResource, **_fields)


class SettingsResource(_SettingsFields):  # type: ignore[misc]  # its base is made at run time
    """The settings of the build, validated again with whatever the launchpad or a backfill's config changed."""

    def read(self) -> Settings:
        return Settings(**{name: getattr(self, name) for name in Settings.model_fields})

    def open(self) -> "OpenBuild":
        from paired_index_assets.builds.opened import OpenBuild

        return OpenBuild(self.read())


def settings_resource(settings: Settings) -> SettingsResource:
    """The resource that holds `settings`, and of which a run's config may change some.

    Its fields' defaults are the settings: Dagster fills up a config that names some fields with the defaults of the class, not with what
    an instance was made of.
    """
    values: dict[str, Any] = {
        name: (field.annotation, FieldInfo.merge_field_infos(field, default=getattr(settings, name)))
        for name, field in Settings.model_fields.items()
    }
    made: SettingsResource = create_model("SettingsResource", __base__=SettingsResource, **values)()
    return made


class ProgressLog:
    """Progress as lines of the run's log; the command line puts bars in its place."""

    def of(self, context: dg.AssetExecutionContext | dg.OpExecutionContext) -> Progress:
        last: dict[str, float] = {}

        def log(step: str, done: int, total: int, /, **facts: float | int | str) -> None:
            now = time.monotonic()
            if done >= total or now - last.get(step, 0.0) >= LOG_EVERY_SECONDS:
                last[step] = now
                context.log.info("%s: %s of %s%s", step, f"{done:,}", f"{total:,}", "".join(f", {k} {_short(v)}" for k, v in facts.items()))

        return log


class ForwardedProgress(ProgressLog):
    """Every asset reports to one callback."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress

    def of(self, context: dg.AssetExecutionContext | dg.OpExecutionContext) -> Progress:
        return self._progress


def _short(value: float | int | str) -> str:
    return f"{value:,.4g}" if isinstance(value, float) else str(value)
