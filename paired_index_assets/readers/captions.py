"""Captions as text: which encoding their bytes are in, and what becomes of one that is not text. Decided here, for every reader."""

from __future__ import annotations

import codecs

OK = "ok"
NO_CAPTION = "no caption"
EMPTY_CAPTION = "empty caption"
LONG_CAPTION = "caption too long"
NOT_TEXT = "caption is not text"
MAX_CAPTION = 2000  # characters; a caption of more is a page, of which a model's 77 tokens see the head only

# Byte order marks, the longer first: that of UTF-32 begins with that of UTF-16.
_MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
MARK_BYTES = 4
REPLACEMENT = "\ufffd"


def encoding_of(head: bytes) -> tuple[str, int]:
    """The encoding that the byte order mark at the start of a file says, and the mark's length; UTF-8 and 0 without one."""
    return next(((name, len(mark)) for mark, name in _MARKS if head.startswith(mark)), ("utf-8", 0))


def decoded(content: bytes) -> str:
    """A file or a line as text, in the encoding of its byte order mark or UTF-8; line ends and the mark are taken off.

    What is not in that encoding becomes U+FFFD: no line is lost, and `caption_outcome` refuses it.
    """
    encoding, mark = encoding_of(content)
    return content[mark:].decode(encoding, "replace").rstrip("\r\n")


def whole(text: str) -> str:
    """`text` as every file can hold it: half of a surrogate pair, which JSON can say and no encoding can write, becomes U+FFFD."""
    if text.isascii():
        return text
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def caption_outcome(caption: str | None) -> str:
    if caption is None:
        return NO_CAPTION
    if not caption.strip():
        return EMPTY_CAPTION
    if len(caption) > MAX_CAPTION:
        return LONG_CAPTION
    return NOT_TEXT if "\0" in caption or REPLACEMENT in caption else OK
