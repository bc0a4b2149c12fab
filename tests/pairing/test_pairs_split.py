import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paired_index_assets.errors import BadInput, DamagedArtifact, MissingInput
from paired_index_assets.pairing import split as split_module
from paired_index_assets.pairing.split import MAX_CONCEPT_SHARE, MAX_EVALUATION_SHARE, Split, split_by_concept


def vectors_of(kinds: list[int], d: int = 6, dtype: type = np.float16) -> np.ndarray:
    """Rows that are byte-equal where the numbers are equal."""
    table = np.random.default_rng(3).normal(size=(max(kinds) + 1, d)).astype(dtype)
    return table[np.array(kinds)]


def concepts_by_hand(texts: list, images: list) -> list[int]:
    """The textbook union-find, one pair at a time."""
    parent = list(range(len(texts)))

    def root(i: int) -> int:
        while parent[i] != i:
            i = parent[i]
        return i

    for keys in (texts, images):
        first: dict = {}
        for i, key in enumerate(keys):
            parent[root(i)] = root(first.setdefault(key, i))
    return [root(i) for i in range(len(texts))]


pairs_of = st.lists(st.tuples(st.integers(0, 60), st.integers(0, 60)), min_size=40, max_size=120)


@settings(max_examples=60, deadline=None)
@given(pairs=pairs_of, validation=st.integers(0, 12), test=st.integers(0, 12), seed=st.integers(0, 5), worded=st.booleans())
def test_no_concept_is_on_two_sides_and_an_evaluation_side_holds_one_caption_of_each(pairs, validation, test, seed, worded):
    wordings, pictures = [t for t, _ in pairs], [i for _, i in pairs]
    concept = np.array(concepts_by_hand(wordings, pictures))
    captions, images = vectors_of(wordings), vectors_of(pictures)
    texts = [f"caption {t}" for t in wordings] if worded else None
    if len(set(concept)) < split_module.MIN_CONCEPTS:
        with pytest.raises(BadInput, match="different concepts"):
            split_by_concept(captions, images, texts=texts, validation=validation, test=test, seed=seed)
        return
    made = split_by_concept(captions, images, texts=texts, validation=validation, test=test, seed=seed)
    assert made.concepts == len(set(concept))
    sides = {name: set(concept[getattr(made, name)]) for name in ("train", "validation", "test")}
    assert not sides["train"] & sides["validation"]
    assert not sides["train"] & sides["test"]
    assert not sides["validation"] & sides["test"]
    for name, asked in (("validation", validation), ("test", test)):
        rows = getattr(made, name)
        assert len(rows) == len(sides[name]), "one caption a concept"
        assert len(rows) <= min(asked, int(MAX_EVALUATION_SHARE * made.concepts))
        assert np.array_equal(rows, np.sort(rows))
        assert rows.dtype == np.int64
    assert len(made.train) == sum(c not in sides["validation"] | sides["test"] for c in concept), "every other row trains"
    again = split_by_concept(captions, images, texts=texts, validation=validation, test=test, seed=seed)
    assert all(np.array_equal(getattr(made, name), getattr(again, name)) for name in sides)


def test_a_chain_of_any_length_is_one_concept():
    links = 3000
    shuffled = np.random.default_rng(0).permutation(links)
    chain_texts, chain_images = (shuffled + 1) // 2, shuffled // 2 + 10_000  # 0-0', 1-0', 1-1', 2-1', ...
    singles = np.arange(300) + 20_000
    texts = [f"t{t}" for t in (*chain_texts, *singles)]
    images = vectors_of([*chain_images, *singles])
    made = split_by_concept(images, images, texts=texts, validation=10, test=10, seed=0)
    assert made.concepts == 301
    assert set(range(links)) <= set(made.train), f"more than {MAX_CONCEPT_SHARE:.0%} of the rows: it trains"
    assert len(made.validation) == len(made.test) == 10


def test_captions_are_compared_without_case_and_white_space():
    texts = [f"icon {i}" for i in range(50)] + [f"  ICON\t{i} " for i in range(50)]
    vectors = vectors_of(list(range(100)))
    made = split_by_concept(vectors, vectors, texts=texts, validation=5, test=5, seed=1)
    assert made.concepts == 50
    assert len(made.train) == 80


@pytest.mark.parametrize("broken", [np.nan, np.inf, 0.0])
def test_broken_rows_are_on_no_side_and_join_nothing(broken):
    vectors = vectors_of(list(range(60))).copy()
    images, captions = vectors.copy(), vectors.copy()
    images[10:20] = broken  # ten pictures that failed, equal to each other
    captions[30:33] = broken
    made = split_by_concept(captions, images, texts=[f"t{i}" for i in range(60)], validation=4, test=4, seed=0)
    assert made.concepts == 47
    assert not set(np.concatenate([made.train, made.validation, made.test])) & {*range(10, 20), *range(30, 33)}


def test_rows_marked_not_valid_are_left_out():
    vectors, valid = vectors_of(list(range(60))), np.arange(60) >= 25
    made = split_by_concept(vectors, vectors, valid=valid, validation=3, test=3, seed=0)
    assert made.concepts == 35
    assert np.concatenate([made.train, made.validation, made.test]).min() == 25


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
@pytest.mark.parametrize("d", [3, 8, 13])
def test_blocks_and_memory_maps_do_not_change_the_split(tmp_path, monkeypatch, dtype, d):
    rng = np.random.default_rng(0)
    images, captions = (vectors_of(list(rng.integers(0, 400, 1000)), d, dtype) for _ in range(2))
    whole = split_by_concept(captions, images, validation=20, test=20, seed=0)
    np.save(tmp_path / "images.npy", images)
    monkeypatch.setattr(split_module, "BLOCK_BYTES", 1000)
    mapped = split_by_concept(captions, np.load(tmp_path / "images.npy", mmap_mode="r"), validation=20, test=20, seed=0)
    assert all(np.array_equal(getattr(whole, side), getattr(mapped, side)) for side in ("train", "validation", "test"))


def test_the_test_captions_do_not_depend_on_how_many_validate():
    vectors = vectors_of(list(range(500)))
    few, many = (split_by_concept(vectors, vectors, validation=v, test=30, seed=9) for v in (5, 50))
    assert np.array_equal(few.test, many.test)


def test_equal_vectors_everywhere_and_lengths_that_differ_are_refused():
    vectors = vectors_of([0] * 200)
    with pytest.raises(BadInput, match="200 usable pairs hold 1 different concepts; at least 10"):
        split_by_concept(vectors, vectors, validation=5, test=5, seed=0)
    with pytest.raises(BadInput, match="200 captions, 199 images"):
        split_by_concept(vectors, vectors[1:], validation=5, test=5, seed=0)
    with pytest.raises(BadInput, match="validation=-1"):
        split_by_concept(vectors, vectors, validation=-1, test=5, seed=0)


def test_a_split_is_saved_and_a_damaged_one_is_named(tmp_path):
    vectors = vectors_of(list(range(100)))
    made = split_by_concept(vectors, vectors, validation=7, test=8, seed=0)
    made.save(tmp_path / "split.npz")
    back = Split.load(tmp_path / "split.npz")
    assert back.concepts == made.concepts == 100
    assert all(np.array_equal(getattr(made, side), getattr(back, side)) for side in ("train", "validation", "test"))
    content = (tmp_path / "split.npz").read_bytes()
    for damaged in (content[: len(content) // 2], b"", b"not a split"):
        (tmp_path / "split.npz").write_bytes(damaged)
        with pytest.raises(DamagedArtifact, match=r"split\.npz"):
            Split.load(tmp_path / "split.npz")
    with pytest.raises(MissingInput, match=r"none\.npz"):
        Split.load(tmp_path / "none.npz")
