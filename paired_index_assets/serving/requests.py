"""What may be asked: clip-retrieval's fields, read from a body that may be anything, at a cost that its size bounds.

A picture is cut out of the body before it is read as JSON, so that what is parsed is never more than `Limits.json` bytes; lists end at
their first wrong item, and one error is enough. Values are taken as clip-retrieval's server takes them: numbers in strings, null for
false. Beside its fields there are `where`, `rerank`, `offset`, `with_vectors` and `small_pictures`, which this project's page uses.
"""

from __future__ import annotations

import binascii
import json
import re
from base64 import b64decode
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from paired_index_assets.errors import BadInput
from paired_index_assets.serving.limits import MAX_RESULTS, Limits

MAX_WIDTH = 8192  # of a vector; CLIP models have at most 1,664
ID_LIMIT = 1 << 63
PICTURE = re.compile(rb'"image"\s*:\s*"([^"]*)"')  # base64 has neither quotes nor backslashes, but a slash may be written as \/

Flag = Annotated[bool, BeforeValidator(lambda given: False if given is None or given == "" else given)]
Asked = TypeVar("Asked", bound=BaseModel)


class BadRequest(BadInput):
    """The client's mistake. Whatever else goes wrong while it is answered is the server's."""


class KnnRequest(BaseModel):
    """Exactly one of `text`, `image` (base64), `image_url`, `embedding_input` is used: the first that is given."""

    model_config = ConfigDict(extra="ignore", allow_inf_nan=False)

    text: str | None = Field(None, description="What to look for.")
    image: str | None = Field(None, description="A picture to look for: base64, with or without `data:...;base64,`.")
    image_url: str | None = Field(None, description="Refused, unless the server was given a way to fetch.")
    embedding_input: list[float] | None = Field(
        None, max_length=MAX_WIDTH, fail_fast=True, description="A vector of the index's width, from the index's model."
    )
    modality: Literal["image", "text"] = Field("image", description="`image`; there is no index of texts.")
    num_images: int = Field(40, ge=1, description="Results with their picture.")
    num_result_ids: int | None = Field(None, ge=1, description="Results in all; left out, `num_images`.")
    indice_name: str | None = Field(None, description="A name from `/indices-list`; left out or empty, the one there is.")
    use_mclip: Flag = Field(False, description="Refused: there is no multilingual model.")
    where: str | None = Field(
        None, max_length=2000, description="Only rows whose metadata meet this: `NSFW = 'UNLIKELY' AND width >= 512`."
    )
    rerank: int = Field(0, ge=0, le=20, description="Score the best this many times as many again by their embeddings; 0 for not.")
    deduplicate: Flag = Field(False, description="Of results whose stored vectors have a cosine of .94 or more, keep the best.")
    use_safety_model: Flag = Field(False, description="Leave out rows whose metadata says NSFW.")
    use_violence_detector: Flag = Field(False, description="Has no effect here.")
    aesthetic_score: float | str | None = Field(None, description="Has no effect here.")
    aesthetic_weight: float | str | None = Field(None, description="Has no effect here.")
    offset: int = Field(0, ge=0, description="Results to skip: those that were shown already.")
    with_vectors: Flag = Field(False, description="Give each result's stored vector in `vector`: a query for what is similar to it.")
    small_pictures: Flag = Field(False, description="Give pictures at most 512 pixels a side, as JPEG where they are larger.")

    @model_validator(mode="after")
    def _has_a_query(self) -> KnnRequest:
        if not (self.text or self.image or self.image_url or self.embedding_input):
            raise ValueError("expected one of text, image, image_url, embedding_input, found none")
        return self

    @property
    def is_picture(self) -> bool:
        """Whether a picture is what is looked for."""
        return not self.text and bool(self.image or self.image_url)


class MetadataRequest(BaseModel):
    """Ids to look up."""

    model_config = ConfigDict(extra="ignore")

    ids: list[Annotated[int, Field(ge=0, lt=ID_LIMIT)]] = Field(max_length=MAX_RESULTS, fail_fast=True, description="Global row ids.")
    indice_name: str | None = Field(None, description="A name from `/indices-list`; left out or empty, the one there is.")


def parsed(body: bytes, kind: type[Asked], limits: Limits) -> Asked:
    """The request in `body`. Raises BadRequest naming the first thing that is wrong with it."""
    picture = PICTURE.search(body) if kind is KnnRequest and len(body) > limits.json else None
    if picture is not None:
        body = body[: picture.start()] + b'"image":""' + body[picture.end() :]
    if len(body) > limits.json:
        raise BadRequest(f"body: expected at most {limits.json} bytes beside a picture, found {len(body)}")
    try:
        given = json.loads(body)
    except (ValueError, RecursionError) as error:  # not UTF-8 and numbers of too many digits are ValueErrors
        raise BadRequest(f"body: expected JSON, found {type(error).__name__}") from error
    if not isinstance(given, dict):
        raise BadRequest(f"body: expected a JSON object, found {type(given).__name__}")
    if picture is not None:
        given["image"] = picture[1].replace(b"\\/", b"/").decode("ascii", "replace")
    try:
        return kind.model_validate(given)
    except ValidationError as error:
        raise BadRequest(_said(error.errors(include_url=False, include_input=False)[0])) from error


def picture_bytes(text: str) -> bytes:
    """What base64 `text` stands for, ``data:image/png;base64,`` before it or not. Raises BadRequest."""
    try:
        return b64decode(text.partition("base64,")[2] if text.startswith("data:") else text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise BadRequest(f"image: expected base64, found {error}") from error


def _said(problem: Any) -> str:
    where = ".".join(str(part)[:40] for part in problem["loc"]) or "body"
    return f"{where}: {problem['msg'].removeprefix('Value error, ')}"
