"""What assets are handed: the build, what a run may be told, and a way to say how far they are."""

import time
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, ClassVar

import dagster as dg
from pydantic import create_model
from pydantic.fields import FieldInfo

from paired_index_assets.progress import Progress
from paired_index_assets.settings import Settings, validated

if TYPE_CHECKING:  # Dagster reads these modules in every process it starts: what is only worked with is imported by the work
    from paired_index_assets.builds.opened import OpenBuild

LOG_EVERY_SECONDS = 10.0

OF_THE_RUN = ("root", "cache", "cache_budget_gb", "device")


class BuildResource(dg.ConfigurableResource):
    """The build that assets work on, and what of this machine they may use. Its fields are made from `Settings`, by `build_resource`."""

    given: ClassVar[Settings]

    def read(self, config: dg.Config | None = None) -> Settings:
        """The settings of the code location, with what the launchpad or a backfill's config changed, validated again. Raises BadInput."""
        changed = {name: getattr(self, name) for name in OF_THE_RUN} | ({} if config is None else config.model_dump())
        return validated(self.given.model_dump() | changed)

    def open(self, config: dg.Config | None = None) -> "OpenBuild":
        from paired_index_assets.builds.opened import OpenBuild

        return OpenBuild(self.read(config))


def build_resource(settings: Settings) -> BuildResource:
    """The resource that holds `settings`, and of which a run's config may change those `OF_THE_RUN`."""
    kind = create_model("BuildResource", __base__=BuildResource, **_fields(settings, OF_THE_RUN))
    kind.given = settings
    return kind()


def config_of(name: str, settings: Settings, takes: Iterable[str]) -> type[dg.Config]:
    """What a run may be told of `takes`: these fields of `Settings`, with the values of `settings` as their defaults."""
    return create_model(f"{name}_config", __base__=dg.Config, **_fields(settings, takes))


def _fields(settings: Settings, names: Iterable[str]) -> dict[str, Any]:
    """The fields as `Settings` has them, but for their defaults: Dagster fills up what a config leaves out with those of the class."""
    fields = {name: Settings.model_fields[name] for name in names}
    return {n: (field.annotation, FieldInfo.merge_field_infos(field, default=getattr(settings, n))) for n, field in fields.items()}


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
