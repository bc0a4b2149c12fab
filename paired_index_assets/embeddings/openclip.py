"""Any open_clip model and checkpoint as an encoder, and the one place that imports open_clip.

Two traps are handled here. A CPU build of torch beside the package registry's torchvision (built for CUDA) cannot load torchvision's
operators, and ``import open_clip`` dies on the missing ``torchvision::nms``, although only its picture transforms are wanted. And
open_clip 3 builds ``ViT-L-14`` with GELU even for weights that were trained with QuickGELU (all of OpenAI's): it warns, and gives other
vectors than OpenAI's and LAION's.
"""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from threading import Lock
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from paired_index_assets.errors import BadInput, MissingInput
from paired_index_assets.files.storage import digest_of, digest_of_parts
from paired_index_assets.rows import Float32

LOCAL_DIR = "local-dir:"
HUB = "hf-hub:"
CONFIG = "open_clip_config.json"
TEXT_BATCH = 512  # captions through the text tower together
_stand_ins: list[torch.library.Library] = []  # an operator lives as long as its library object


def import_open_clip() -> ModuleType:
    """open_clip, whichever build of torchvision is beside torch."""
    if "open_clip" not in sys.modules:
        try:
            import torchvision  # noqa: F401
        except RuntimeError as error:
            if "torchvision::nms does not exist" not in str(error):
                raise
            library: Any = torch.library.Library("torchvision", "DEF")  # type: ignore[no-untyped-call]
            library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")  # declared, not called
            library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
            _stand_ins.append(library)
    import open_clip

    return open_clip  # type: ignore[no-any-return]


class OpenClipEncoder:
    """Unit vectors of an open_clip model, float32 on the CPU, float16 autocast on CUDA.

    `model` is open_clip's name (``ViT-L-14`` with `pretrained` ``openai`` or a checkpoint file), ``hf-hub:ORG/NAME``
    or ``local-dir:FOLDER`` (`pretrained` unused). Weights load on first use, never random ones; BadInput in one line where there
    are none.
    """

    def __init__(self, model: str = "ViT-L-14", pretrained: str | None = "openai", device: str | None = None) -> None:
        self.model = model
        self.pretrained = None if model.startswith((LOCAL_DIR, HUB)) else pretrained
        self._model: Any = None
        self._loading = Lock()
        self.device = device or ("cuda" if torch.cuda.is_available() else "cpu")

    def __getstate__(self) -> dict[str, Any]:
        # What reaches a worker process: names and the picture transform, not the weights.
        return {"model": self.model, "pretrained": self.pretrained, "device": "cpu", "_preprocess": self._preprocess}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _model=None, _loading=Lock())

    @cached_property
    def identity(self) -> str:
        """Model and weights: a registry name for published ones, a digest of the files for local ones; never a path."""
        if self.model.startswith(LOCAL_DIR):
            folder = self._folder()
            return f"open_clip:local-dir:{digest_of_parts(digest_of(folder / CONFIG), digest_of(_checkpoint(folder)))[:16]}"
        if self.pretrained and Path(self.pretrained).is_file():
            return f"open_clip:{self.model}/file:{digest_of(Path(self.pretrained))[:16]}"
        return f"open_clip:{self.model}" + (f"/{self.pretrained}" if self.pretrained else "")

    @cached_property
    def dimensions(self) -> int:
        config = self._ask(lambda clip: clip.get_model_config(self._registry_name()))
        if not config:
            raise BadInput(f"model {self.model!r}: expected one of open_clip.list_models() or local-dir:FOLDER, found neither")
        return int(config["embed_dim"])

    def encode_texts(self, texts: Sequence[str]) -> Float32:
        """(n, dimensions) float32 unit rows. Captions longer than the model's context are cut by the tokenizer."""
        out = np.empty((len(texts), self.dimensions), np.float32)
        for start in range(0, len(texts), TEXT_BATCH):
            tokens = self._tokenizer(list(texts[start : start + TEXT_BATCH])).to(self.device)
            with torch.inference_mode(), self.autocast():
                out[start : start + TEXT_BATCH] = _unit(self._weights.encode_text(tokens))
        return out

    def prepare_image(self, image: Image.Image) -> npt.NDArray[np.uint8]:
        """(height, width, 3) uint8: resized, cropped and RGB as the model's transform says; `encode_images` does the rest."""
        resize, _, _ = self._preprocess
        return np.asarray(resize(image))

    def encode_images(self, images: npt.NDArray[np.uint8]) -> Float32:
        """(n, height, width, 3) uint8 -> (n, dimensions) float32 unit rows."""
        _, mean, std = self._preprocess
        batch = torch.from_numpy(images).to(self.device, non_blocking=True).permute(0, 3, 1, 2).float().div_(255)
        batch = batch.sub_(mean.to(batch.device)).div_(std.to(batch.device)).contiguous()
        with torch.inference_mode(), self.autocast():
            return _unit(self._weights.encode_image(batch))

    @property
    def image_size(self) -> tuple[int, int]:
        """(height, width) of a prepared picture."""
        return self.prepare_image(Image.new("RGB", (8, 8))).shape[:2]

    def autocast(self) -> torch.autocast:
        kind = torch.device(self.device).type
        return torch.autocast(kind, dtype=torch.float16 if kind == "cuda" else torch.bfloat16, enabled=kind == "cuda")

    @property
    def lanes(self) -> int:
        """Batches under way at once: on a GPU the second is being copied and queued while the first is computed."""
        return 2 if torch.device(self.device).type == "cuda" else 1

    @property
    def _weights(self) -> Any:
        with self._loading:
            if self._model is None:
                options = {"precision": "fp32", "device": self.device, "require_pretrained": True, "force_quick_gelu": self.quick_gelu}
                self._model = self._ask(lambda clip: clip.create_model(self.model, self.pretrained, **options)).eval()
        return self._model

    @property
    def quick_gelu(self) -> bool:
        """Whether the published weights were trained with QuickGELU although the named architecture has GELU."""
        if self.model.startswith((LOCAL_DIR, HUB)) or not self.pretrained:
            return False
        published = import_open_clip().get_pretrained_cfg(self._registry_name(), self.pretrained)
        return bool(published and published.get("quick_gelu"))

    @cached_property
    def _tokenizer(self) -> Any:
        return self._ask(lambda clip: clip.get_tokenizer(self.model))

    @cached_property
    def _preprocess(self) -> tuple[Any, torch.Tensor, torch.Tensor]:
        """open_clip's own transform, cut before it becomes floats: pictures travel between processes as bytes."""
        clip = import_open_clip()
        from open_clip.transform import MaybeToTensor, PreprocessCfg, image_transform_v2
        from torchvision.transforms import Compose

        steps = image_transform_v2(PreprocessCfg(**clip.get_model_preprocess_cfg(self._weights)), is_train=False).transforms
        cut = next(i for i, step in enumerate(steps) if isinstance(step, MaybeToTensor))
        normalize = steps[cut + 1]
        return Compose(steps[:cut]), torch.tensor(normalize.mean).view(3, 1, 1), torch.tensor(normalize.std).view(3, 1, 1)

    def _registry_name(self) -> str:
        return self.model if self.model.startswith((LOCAL_DIR, HUB)) else self.model.replace("/", "-")

    def _folder(self) -> Path:
        folder = Path(self.model.removeprefix(LOCAL_DIR))
        if not (folder / CONFIG).is_file():
            raise MissingInput(f"model {self.model!r}: expected a folder with {CONFIG} and a checkpoint, found no {folder / CONFIG}")
        return folder

    def _ask(self, question: Any) -> Any:
        """open_clip's answer; whatever it raises becomes one line."""
        if self.model.startswith(LOCAL_DIR):
            _checkpoint(self._folder())
        elif not self.model.startswith(HUB) and not self.pretrained:
            raise BadInput(f"model {self.model!r}: expected pretrained weights (a tag such as openai, or a checkpoint file), found none")
        logging.getLogger("open_clip").setLevel(logging.ERROR)
        try:
            return question(import_open_clip())
        except Exception as error:
            reason = " ".join(str(error).split())[:300]
            raise BadInput(
                f"model {self.model!r} with pretrained {self.pretrained!r}: cannot be loaded ({type(error).__name__}: {reason}); "
                "check the names, the network, or give local-dir:FOLDER"
            ) from error


def _unit(rows: torch.Tensor) -> Float32:
    return torch.nn.functional.normalize(rows.float(), dim=-1).cpu().numpy()


def _checkpoint(folder: Path) -> Path:
    """The checkpoint open_clip would take from a ``local-dir:`` folder."""
    import_open_clip()
    from open_clip.factory import _find_checkpoint_in_dir

    try:
        json.loads((folder / CONFIG).read_text())["model_cfg"]
    except (ValueError, KeyError) as error:
        raise BadInput(f"{folder / CONFIG}: expected JSON with model_cfg, found {error!r}") from error
    found = _find_checkpoint_in_dir(folder)
    if found is None:
        raise MissingInput(f"{folder}: expected a checkpoint (*.safetensors, *.bin, *.pth) beside {CONFIG}, found none")
    return Path(found)
