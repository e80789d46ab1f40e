"""The generated task: what its sentences promise, and the tokenizer that covers them."""

import itertools

import numpy as np
import pytest
from tnmpo.integrations.transformers.acceptability import (
    MAX_WORDS,
    PHENOMENA,
    acceptability_task,
    corpus,
    minimal_pairs,
    word_tokenizer,
)
from transformers import AutoTokenizer

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


@pytest.fixture(scope="module")
def pairs():
    return minimal_pairs(2_000)


@pytest.fixture(scope="module")
def data():
    return acceptability_task(n_train=2_000, n_validation=200, n_test=400)


@pytest.fixture(scope="module")
def tokenizer():
    return word_tokenizer()


def sentences(split):
    return [text for (text,) in split.texts]


# --- pairs


def test_a_pair_differs_in_one_word_that_both_numbers_have(pairs):
    for pair in pairs:
        good, bad = pair.acceptable.split(), pair.unacceptable.split()
        assert len(good) == len(bad) <= MAX_WORDS
        assert sum(a != b for a, b in zip(good, bad, strict=True)) == 1


def test_the_violated_word_is_of_its_phenomenon(pairs):
    violated = {name: set() for name in PHENOMENA}
    for pair in pairs:
        words = zip(pair.acceptable.split(), pair.unacceptable.split(), strict=True)
        violated[pair.phenomenon] |= {frozenset(two) for two in words if len(set(two)) == 2}
    assert violated["reflexive"] == {frozenset({own, "themselves"}) for own in ("herself", "himself", "itself")}
    assert violated["determiner_noun"] == {
        frozenset(two) for two in (("this", "these"), ("that", "those"), ("one", "two"), ("every", "many"))
    }
    assert frozenset({"is", "are"}) in violated["subject_verb"]
    assert violated["relative_clause"] < violated["subject_verb"]  # the transitive verbs are in both


def test_the_phenomena_come_in_equal_parts(pairs):
    assert [sum(pair.phenomenon == name for pair in pairs) for name in PHENOMENA] == [500] * 4


def test_no_sentence_comes_twice_and_none_is_both(pairs):
    texts = [text for pair in pairs for text in pair[:2]]
    assert len(set(texts)) == len(texts)


def test_more_pairs_begin_with_the_same_ones(pairs):
    assert minimal_pairs(50) == pairs[:50]
    assert minimal_pairs(50, seed=1) != pairs[:50]


def test_neighbouring_words_seldom_give_the_violation_away(pairs):
    seen = {pair for text in corpus(50_000) for pair in itertools.pairwise(text.split())}
    fine = [all(two in seen for two in itertools.pairwise(pair.unacceptable.split())) for pair in pairs]
    assert np.mean(fine) > 0.5


def test_other_nouns_mislead_the_verb(pairs):
    """Often the word before the verb is a noun of the other number."""
    nouns = {text.split()[-1] for text in corpus(20_000) if text.split()[-2:-1] in (["one"], ["two"])}
    plurals = {noun for noun in nouns if noun.endswith("s") or noun in {"men", "women", "geese", "mice"}}
    agreeing = dict.fromkeys(("is", "was", "has", "does"), False) | dict.fromkeys(("are", "were", "have", "do"), True)
    misled = told = 0
    for pair in pairs:
        for before, verb in itertools.pairwise(pair.acceptable.split()):
            if before in nouns and verb in agreeing:
                told += 1
                misled += (before in plurals) != agreeing[verb]
    assert misled > 0.1 * told > 10


# --- splits


def test_the_splits_are_of_the_sizes_asked_for_and_balanced(data):
    for split, n in ((data.train, 2_000), (data.validation, 200), (data.test, 400)):
        assert len(split) == n
        assert split.labels.dtype == np.int64
        assert np.bincount(split.labels).tolist() == [n // 2, n // 2]
    assert data.task.score(np.ones(400, int), data.test.labels) == 0.5


def test_the_splits_share_no_sentence(data):
    texts = [text for split in (data.train, data.validation, data.test) for text in sentences(split)]
    assert len(set(texts)) == len(texts)


def test_the_labels_say_which_sentence_is_acceptable(data):
    labels = dict(zip(sentences(data.test), data.test.labels, strict=True))
    for pair in minimal_pairs(200):  # the test split is made of the first pairs
        assert (labels[pair.acceptable], labels[pair.unacceptable]) == (1, 0)


def test_a_spread_part_has_both_labels(data):
    assert 0.4 < data.train.spread(1_000).labels.mean() < 0.6


def test_the_seed_decides_and_the_test_split_ignores_the_other_sizes(data):
    again = acceptability_task(n_train=2_000, n_validation=200, n_test=400)
    other = acceptability_task(seed=1, n_train=2_000, n_validation=200, n_test=400)
    larger = acceptability_task(n_train=2_400, n_validation=100, n_test=400)
    assert again.train.texts == data.train.texts
    assert again.train.labels.tolist() == data.train.labels.tolist()
    assert other.train.texts != data.train.texts
    assert larger.test.texts == data.test.texts


@pytest.mark.parametrize("size", ["n_train", "n_validation", "n_test"])
@pytest.mark.parametrize("n", [0, 33, -2])
def test_a_size_that_cannot_be_halved_is_refused(size, n):
    with pytest.raises(ValueError, match=f"{size} is {n}; pass a positive even number"):
        acceptability_task(**{size: n})


# --- corpus


def test_the_corpus_repeats_nothing_and_repeats_itself():
    texts = corpus(1_000, seed=3)
    assert len(set(texts)) == 1_000
    assert texts == corpus(1_000, seed=3)
    assert texts != corpus(1_000, seed=4)


@pytest.mark.parametrize("seed", [0, 1])
def test_the_corpus_holds_no_sentence_of_the_task_whatever_the_seeds(data, seed):
    texts = set(corpus(20_000, seed))
    for split in (data.train, data.validation, data.test):
        assert texts.isdisjoint(sentences(split))


def test_no_unacceptable_sentence_is_ever_said(pairs):
    said = set(corpus(50_000)) | {pair.acceptable for pair in minimal_pairs(4_000, seed=5)}
    assert said.isdisjoint(pair.unacceptable for pair in pairs)


def test_counts_below_zero_are_refused():
    with pytest.raises(ValueError, match="minimal_pairs: n is -1; pass 0 or more"):
        minimal_pairs(-1)
    with pytest.raises(ValueError, match="corpus: n is -1; pass 0 or more"):
        corpus(-1)
    assert corpus(0) == minimal_pairs(0) == []


# --- tokenizer


def test_every_generated_word_has_its_token(tokenizer, pairs):
    texts = [text for pair in pairs for text in pair[:2]] + corpus(2_000)
    for text, ids in zip(texts, tokenizer(texts)["input_ids"], strict=True):
        assert tokenizer.unk_token_id not in ids
        assert tokenizer.decode(ids, skip_special_tokens=True) == text


def test_the_vocabulary_holds_what_is_said_and_nothing_else(tokenizer):
    said = {word for text in corpus(20_000) for word in text.split()}
    assert set(tokenizer.get_vocab()) - set(SPECIAL) == said
    assert tokenizer.convert_ids_to_tokens(range(5)) == SPECIAL
    assert tokenizer.pad_token_id == 0


def test_sentences_and_pairs_get_their_special_tokens(tokenizer):
    assert tokenizer.tokenize("These dogs") == ["these", "dogs"]
    both = tokenizer("these dogs", "zebras sleep", return_token_type_ids=True)
    assert tokenizer.convert_ids_to_tokens(both["input_ids"]) == [
        *("[CLS]", "these", "dogs", "[SEP]", "[UNK]", "sleep", "[SEP]")
    ]
    assert both["token_type_ids"] == [0, 0, 0, 0, 1, 1, 1]


def test_a_batch_is_padded_and_masked(tokenizer):
    batch = tokenizer(["these dogs sleep", "sleep"], padding=True)
    assert batch["attention_mask"] == [[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]]
    assert batch["input_ids"][1][3:] == [tokenizer.pad_token_id] * 2


def test_a_saved_tokenizer_is_loaded_again(tokenizer, tmp_path, data):
    tokenizer.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    texts = sentences(data.test)
    assert loaded(texts)["input_ids"] == tokenizer(texts)["input_ids"]
    assert loaded.mask_token_id == tokenizer.mask_token_id
    assert loaded.get_vocab() == tokenizer.get_vocab()
