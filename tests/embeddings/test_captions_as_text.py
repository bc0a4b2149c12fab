"""Captions in the encodings people have: read as the text they are, or refused by name."""

from __future__ import annotations

import codecs

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sample_packing import pack_folder

from paired_index_assets.embeddings.run import embed_captions
from paired_index_assets.layout import BuildRoot
from paired_index_assets.readers.captions import MAX_CAPTION, caption_outcome, decoded, whole
from paired_index_assets.readers.open import PairedSource, open_source

MARKED = {
    "utf-8": codecs.BOM_UTF8,
    "utf-16-le": codecs.BOM_UTF16_LE,
    "utf-16-be": codecs.BOM_UTF16_BE,
    "utf-32-le": codecs.BOM_UTF32_LE,
    "utf-32-be": codecs.BOM_UTF32_BE,
}
TEXTS = ["one", "zwei Töpfe", "三匹の猫", "ਊ਀ ഊ", "", "four \U0001f408"]  # some of these letters hold a newline's bytes in UTF-16


def captions(spec, part_rows=1000):
    return [s.caption for part in open_source(str(spec), "captions").parts(part_rows) for s in part.read(False)]


@pytest.mark.parametrize("encoding", MARKED)
@pytest.mark.parametrize("newline", ["\n", "\r\n"])
@pytest.mark.parametrize("part_rows", [1, 2, 4, 100])
def test_a_file_of_lines_is_read_in_the_encoding_its_mark_says(tmp_path, encoding, newline, part_rows):
    (tmp_path / "c.txt").write_bytes(MARKED[encoding] + newline.join(TEXTS).encode(encoding))
    assert captions(tmp_path / "c.txt", part_rows) == TEXTS
    (tmp_path / "c.txt").write_bytes(MARKED[encoding] + "".join(text + newline for text in TEXTS).encode(encoding))
    assert captions(tmp_path / "c.txt", part_rows) == TEXTS


texts = st.lists(st.text(st.characters(exclude_characters="\n\r\ufeff", exclude_categories=["Cs"]), max_size=9), min_size=1, max_size=20)


@settings(max_examples=40, deadline=None)
@given(texts=texts, encoding=st.sampled_from(sorted(MARKED)), part_rows=st.integers(1, 7), size=st.integers(1, 9))
def test_any_text_in_any_encoding_cut_anywhere(tmp_path_factory, texts, encoding, part_rows, size):
    path = tmp_path_factory.mktemp("text") / "c.txt"
    path.write_bytes(MARKED[encoding] + "".join(f"{text}\n" for text in texts).encode(encoding))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("paired_index_assets.readers.text.READ_BYTES", size)
        assert captions(path, part_rows) == texts


@pytest.mark.parametrize("encoding", MARKED)
def test_a_caption_beside_its_picture_is_read_in_the_encoding_its_mark_says(tmp_path, pairs, encoding):
    folder = pack_folder(tmp_path / "in", pairs[:2])
    (folder / f"{pairs[0]['key']}.txt").write_bytes(MARKED[encoding] + "三匹の猫\r\n".encode(encoding))
    assert captions(folder) == ["三匹の猫", pairs[1]["caption"]]


def test_text_without_a_mark_that_is_not_utf8_is_refused_by_name(tmp_path, tiny):
    (tmp_path / "c.txt").write_bytes("plain\nein T\xf6pfchen\n".encode("latin-1") + "wide\n".encode("utf-16-le"))
    assert embed_captions(open_source(str(tmp_path / "c.txt"), "captions"), tiny, BuildRoot.at(tmp_path / "root")).bad == {
        "caption is not text": 3  # the last newline of UTF-16 is followed by half a character
    }


@pytest.mark.parametrize(
    ("caption", "outcome"),
    [
        (None, "no caption"),
        ("", "empty caption"),
        (" \t\r\n\u3000", "empty caption"),
        ("a" * MAX_CAPTION, "ok"),
        ("a" * (MAX_CAPTION + 1), "caption too long"),
        ("a\0b", "caption is not text"),
        ("Caf\ufffd", "caption is not text"),
        (whole("half \ud83d"), "caption is not text"),
        (whole("whole \ud83d\udc08"), "ok"),
        ("\u202e right to left", "ok"),
    ],
)
def test_what_becomes_of_a_caption(caption, outcome):
    assert caption_outcome(caption) == outcome


@given(st.text())
def test_whole_text_can_be_written_and_text_that_can_be_written_stays(text):
    assert isinstance(whole(text).encode(), bytes)
    if not any("\ud800" <= c <= "\udfff" for c in text):
        assert whole(text) == text


@given(st.binary(max_size=40))
def test_any_bytes_are_some_text(content):
    assert whole(decoded(content)) == decoded(content)


def test_captions_in_several_files_are_paired_with_pictures_line_by_line(tmp_path, pairs):
    pack_folder(tmp_path / "in", pairs[:10])
    (tmp_path / "paths.list").mkdir()
    (tmp_path / "paths.list/p.txt").write_text("".join(f"../in/{p['key']}.png\n" for p in pairs[:10]))
    (tmp_path / "c").mkdir()
    for number, (a, b) in enumerate([(0, 3), (3, 4), (4, 10)]):
        (tmp_path / f"c/{number}.txt").write_text("".join(f"{p['caption']}\n" for p in pairs[a:b]))
    images, texts_ = open_source(str(tmp_path / "paths.list"), "images"), open_source(str(tmp_path / "c"), "captions")
    found = [s for part in PairedSource(images, texts_).parts(4) for s in part.read(True)]
    assert [s.caption for s in found] == [p["caption"] for p in pairs[:10]]
