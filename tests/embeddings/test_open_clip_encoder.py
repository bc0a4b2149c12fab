"""open_clip models by name, by folder, or another model by dotted path; what cannot be had is one line."""

from __future__ import annotations

import json
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from paired_index_assets.embeddings.encoders import Encoder, load_encoder
from paired_index_assets.embeddings.openclip import OpenClipEncoder
from paired_index_assets.errors import BadInput, MissingInput
from paired_index_assets.sample import sample_model, sample_pairs

MODEL = Path(sample_model().removeprefix("local-dir:"))


@pytest.fixture
def copy(tmp_path):
    return shutil.copytree(MODEL, tmp_path / "model")


def test_the_sample_ships_with_its_model_and_every_licence():
    folder = sample_pairs().parent
    rows = [line.split("|")[4].strip() for line in (folder / "LICENSES.md").read_text().splitlines() if line.startswith("| ")][1:]
    assert len(rows) > 100
    for spdx in set(rows):
        assert len((folder / "licences" / f"{spdx}.txt").read_text()) > 500, spdx
        assert spdx in (folder / "NOTICE.md").read_text()


def test_vectors_are_unit_rows_and_a_caption_finds_its_picture(encoder, pairs):
    assert isinstance(encoder, Encoder)
    texts = encoder.encode_texts([p["caption"] for p in pairs])
    import io

    images = encoder.encode_images(np.stack([encoder.prepare_image(Image.open(io.BytesIO(p["png"]))) for p in pairs]))
    assert texts.dtype == images.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(np.vstack([texts, images]), axis=1), 1, atol=1e-5)
    ranks = (texts @ images.T >= (texts * images).sum(1, keepdims=True)).sum(1)
    assert (ranks <= 10).mean() > 0.6


def test_pictures_of_any_shape_and_mode_become_one_shape(encoder):
    for mode, size in (("L", (40, 50)), ("RGBA", (300, 20)), ("P", (1, 1)), ("CMYK", (32, 32)), ("I;16", (9, 9)), ("1", (64, 33))):
        array = encoder.prepare_image(Image.new(mode, size))
        assert (array.shape, array.dtype) == ((32, 32, 3), np.uint8), mode


def test_identity_is_the_content_of_the_model_not_its_place(copy, encoder):
    assert OpenClipEncoder(f"local-dir:{copy}").identity == encoder.identity
    assert str(MODEL) not in encoder.identity
    config = json.loads((copy / "open_clip_config.json").read_text())
    config["preprocess_cfg"]["interpolation"] = "bilinear"
    (copy / "open_clip_config.json").write_text(json.dumps(config))
    assert OpenClipEncoder(f"local-dir:{copy}").identity != encoder.identity
    assert OpenClipEncoder("ViT-L-14", "openai").identity == "open_clip:ViT-L-14/openai"


def test_an_encoder_travels_to_workers_without_its_weights(encoder):
    content = pickle.dumps(encoder)
    assert len(content) < 100_000
    picture = Image.new("RGB", (50, 40), "red")
    np.testing.assert_array_equal(pickle.loads(content).prepare_image(picture), encoder.prepare_image(picture))


def test_weights_trained_with_quick_gelu_get_it():
    assert OpenClipEncoder("ViT-L-14", "openai").quick_gelu
    assert OpenClipEncoder("ViT-B-32", "openai").quick_gelu
    assert not OpenClipEncoder("ViT-B-32", "laion2b_s34b_b79k").quick_gelu
    assert OpenClipEncoder("ViT-L-14", "openai").dimensions == 768


def test_models_that_cannot_be_loaded_are_one_line(copy):
    with pytest.raises(MissingInput, match=r"expected a folder with open_clip_config\.json"):
        _ = OpenClipEncoder("local-dir:/nowhere").identity
    with pytest.raises(BadInput, match=r"model 'ViT-Q-99': expected one of open_clip\.list_models\(\)"):
        _ = OpenClipEncoder("ViT-Q-99").dimensions
    with pytest.raises(BadInput, match=r"expected pretrained weights .*found none"):
        OpenClipEncoder("ViT-B-32", None).encode_texts(["a"])
    with pytest.raises(BadInput, match=r"cannot be loaded .*not a known tag") as caught:
        OpenClipEncoder("ViT-B-32", "no-such-tag").encode_texts(["a"])
    assert "\n" not in str(caught.value)
    (copy / "open_clip_model.safetensors").write_bytes(b"damaged")
    with pytest.raises(BadInput, match="cannot be loaded") as caught:
        OpenClipEncoder(f"local-dir:{copy}").encode_texts(["a"])
    assert "\n" not in str(caught.value)
    (copy / "open_clip_model.safetensors").unlink()
    with pytest.raises(MissingInput, match="expected a checkpoint"):
        OpenClipEncoder(f"local-dir:{copy}").encode_texts(["a"])
    (copy / "open_clip_config.json").write_text("{")
    with pytest.raises(BadInput, match="expected JSON with model_cfg"):
        _ = OpenClipEncoder(f"local-dir:{copy}").identity


def test_a_model_of_ones_own_is_a_dotted_path():
    assert load_encoder("tiny_encoder:TinyEncoder").identity == "tiny/1"
    for name in ("tiny_encoder:nothing", "no_such_module:x"):
        with pytest.raises(BadInput, match=r"expected package\.module:factory"):
            load_encoder(name)
    with pytest.raises(BadInput, match="expected an Encoder, found object without identity, dimensions"):
        load_encoder("tiny_encoder:not_an_encoder")


def test_sets_and_features_need_no_open_clip():
    """Readers of embeddings must not pay for the model library."""
    script = "import sys; import paired_index_assets.embeddings.sets; assert not {'open_clip', 'torch', 'faiss'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", script], check=True)
