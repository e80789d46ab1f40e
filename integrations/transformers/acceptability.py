"""English sentences from a small grammar, half of them with a violated agreement: a task with no download.

After BLiMP (Warstadt et al., 2020, arXiv:1912.00582): a sentence and its spoilt twin differ in one word. Other
nouns stand between the words that must agree, so the neighbouring word seldom decides: a linear model scores
0.72 on single words and 0.73 on pairs of neighbours, an ALBERT of three layers and width 128
0.91 after 600 steps of 64 sentences.
"""

import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from random import Random
from typing import NamedTuple

import numpy as np
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from .tasks import Split, Task

__all__ = [
    "PHENOMENA",
    "AcceptabilityData",
    "MinimalPair",
    "acceptability_task",
    "corpus",
    "minimal_pairs",
    "word_tokenizer",
]

#: The agreements that are violated, in equal parts.
PHENOMENA = ("subject_verb", "relative_clause", "determiner_noun", "reflexive")

MAX_WORDS = 15

# Nouns are mostly singular, as in real text. Were the numbers equal, no single word would tell anything, and a
# model trained from scratch would stay at chance for a thousand steps and more.
PLURAL = 0.3


class MinimalPair(NamedTuple):
    """Two sentences that differ in one word, which agrees in the first and does not in the second."""

    acceptable: str
    unacceptable: str
    phenomenon: str


@dataclass(frozen=True)
class AcceptabilityData:
    """The task with three splits that share no sentence; half of the labels are 1, for acceptable.

    Parameters
    ----------
    task : Task
        Accuracy, so that chance scores 0.5.
    train, validation, test : Split
        To learn from, to choose with, and to report on.
    """

    task: Task
    train: Split
    validation: Split
    test: Split


# --- vocabulary: singular/plural; a verb whose plural is also its past (hurt) would make a violation grammatical


def _forms(text: str) -> tuple[tuple[str, ...], ...]:
    return tuple(tuple(word.split("/")) for word in text.split())


_FEMALE = _forms("girl/girls woman/women queen/queens mother/mothers sister/sisters aunt/aunts lady/ladies")
_MALE = _forms("boy/boys man/men king/kings father/fathers brother/brothers uncle/uncles prince/princes")
_ANIMALS = _forms("dog/dogs cat/cats horse/horses wolf/wolves lion/lions goose/geese mouse/mice fox/foxes")
_THINGS = _forms("house/houses tree/trees car/cars table/tables box/boxes lamp/lamps river/rivers tower/towers")
_DETERMINERS = _forms("this/these that/those one/two every/many")
_INVARIANT_DETERMINERS = ("the", "my", "your", "our", "their", "his")
_INTRANSITIVE = _forms(  # singular/plural/past
    "sleeps/sleep/slept laughs/laugh/laughed waits/wait/waited smiles/smile/smiled arrives/arrive/arrived "
    "talks/talk/talked shouts/shout/shouted listens/listen/listened moves/move/moved returns/return/returned"
)
_TRANSITIVE = _forms(
    "likes/like/liked finds/find/found follows/follow/followed helps/help/helped admires/admire/admired "
    "loves/love/loved ignores/ignore/ignored trusts/trust/trusted blames/blame/blamed praises/praise/praised"
)
_COPULAS = _forms("is/are was/were")
_NEGATIONS = _forms("does/do")
_PERFECTS = _forms("has/have")
_MODALS = ("will", "can", "must", "should")
_PREPOSITIONS = ("near", "behind", "beside", "above", "below", "with", "opposite", "without", "before", "after")
_ADVERBS = (
    *("often", "rarely", "always", "quietly", "slowly", "gladly", "suddenly", "usually", "never", "barely"),
    *("clearly", "already"),
)
_ADJECTIVES = (
    *("old", "young", "small", "tall", "happy", "hungry", "quiet", "clever", "lazy", "proud", "brown", "white"),
    *("strange", "famous", "gentle", "angry", "tired", "brave", "lonely", "poor", "rich", "ugly", "pretty", "funny"),
)


# --- grammar


class _Word(NamedTuple):
    """A word and, where it agrees with another, the form that does not."""

    text: str
    wrong: str = ""
    phenomenon: str = ""


class _Kind(NamedTuple):
    """What nouns of one kind have in common."""

    nouns: tuple[tuple[str, ...], ...]
    reflexives: tuple[str, ...]
    relative: str


_ANIMATE = (
    _Kind(_FEMALE, ("herself", "themselves"), "who"),
    _Kind(_MALE, ("himself", "themselves"), "who"),
    _Kind(_ANIMALS, ("itself", "themselves"), "which"),
)
_ANY = (*_ANIMATE, _Kind(_THINGS, ("itself", "themselves"), "which"))


class _Speaker:
    """Says grammatical sentences at random and tells which of their words agree."""

    def __init__(self, seed: int) -> None:
        self._random = Random(seed)

    def sentence(self) -> list[_Word]:
        """A sentence of at most ``MAX_WORDS`` words."""
        while True:
            kind, plural = self._random.choice(_ANIMATE), self._plural()
            words = [*self._subject(kind, plural), *self._predicate(kind, plural)]
            if len(words) <= MAX_WORDS:
                return words

    def pair(self, phenomenon: str) -> MinimalPair:
        """A sentence and its twin with one word's agreement violated."""
        while True:
            words = self.sentence()
            agreeing = [i for i, word in enumerate(words) if word.phenomenon == phenomenon]
            if agreeing:
                i = self._random.choice(agreeing)
                spoilt = [*words[:i], _Word(words[i].wrong), *words[i + 1 :]]
                return MinimalPair(_text(words), _text(spoilt), phenomenon)

    def _chance(self, probability: float) -> bool:
        return self._random.random() < probability

    def _plural(self) -> bool:
        return self._chance(PLURAL)

    def _one_of(self, words: tuple[str, ...]) -> _Word:
        return _Word(self._random.choice(words))

    def _agreeing(self, table: tuple[tuple[str, ...], ...], plural: bool, phenomenon: str) -> _Word:
        forms = self._random.choice(table)
        return _Word(forms[plural], forms[not plural], phenomenon)

    def _phrase(self, kind: _Kind, plural: bool) -> Iterator[_Word]:
        """These old dogs."""
        if self._chance(0.75):
            yield self._agreeing(_DETERMINERS, plural, "determiner_noun")
        else:
            yield self._one_of(_INVARIANT_DETERMINERS)
        for adjective in self._random.sample(_ADJECTIVES, self._random.choice((0, 0, 0, 1, 1, 2))):
            yield _Word(adjective)
        yield _Word(self._random.choice(kind.nouns)[plural])

    def _other_phrase(self) -> Iterator[_Word]:
        yield from self._phrase(self._random.choice(_ANY), self._plural())

    def _subject(self, kind: _Kind, plural: bool) -> Iterator[_Word]:
        """These old dogs, mostly followed by another noun, which the predicate must not agree with."""
        yield from self._phrase(kind, plural)
        modifier = self._random.random()
        if modifier < 0.3:  # near the cat
            yield self._one_of(_PREPOSITIONS)
            yield from self._other_phrase()
        elif modifier < 0.5:  # which chase the cat
            yield _Word(kind.relative)
            yield self._agreeing(_TRANSITIVE, plural, "relative_clause")
            yield from self._other_phrase()
        elif modifier < 0.7:  # which the cat chases
            yield _Word(kind.relative)
            other = self._plural()
            yield from self._phrase(self._random.choice(_ANIMATE), other)
            yield self._agreeing(_TRANSITIVE, other, "relative_clause")

    def _predicate(self, kind: _Kind, plural: bool) -> Iterator[_Word]:
        if self._chance(0.2):
            yield self._one_of(_ADVERBS)
        form = self._random.randrange(7)
        if form == 0:  # sleep
            yield self._agreeing(_INTRANSITIVE, plural, "subject_verb")
        elif form == 1:  # see the cat
            yield self._agreeing(_TRANSITIVE, plural, "subject_verb")
            yield from self._other_phrase()
        elif form == 2:  # are hungry
            yield self._agreeing(_COPULAS, plural, "subject_verb")
            yield self._one_of(_ADJECTIVES)
        elif form == 3:  # do not sleep
            yield self._agreeing(_NEGATIONS, plural, "subject_verb")
            yield from (_Word("not"), _Word(self._random.choice(_INTRANSITIVE)[1]))
        elif form == 4:  # have slept
            yield self._agreeing(_PERFECTS, plural, "subject_verb")
            yield _Word(self._random.choice(_INTRANSITIVE)[2])
        else:  # saw themselves, will see themselves: here the verb does not tell the number
            _, base, past = self._random.choice(_TRANSITIVE)
            yield from (_Word(past),) if self._chance(0.5) else (self._one_of(_MODALS), _Word(base))
            yield self._agreeing((kind.reflexives,), plural, "reflexive")


def _text(words: list[_Word]) -> str:
    return " ".join(word.text for word in words)


# --- pairs, splits, corpus, tokenizer


def _for_corpus(sentence: str) -> bool:
    # Its checksum gives a sentence to the corpus or to the task, whatever the seeds and sizes asked for.
    return zlib.crc32(sentence.encode()) % 2 == 0


def minimal_pairs(n: int, seed: int = 0) -> list[MinimalPair]:
    """``n`` pairs of an acceptable and an unacceptable sentence, no sentence twice.

    The phenomena come in turns; a larger ``n`` only adds pairs at the end.

    Raises
    ------
    ValueError
        If ``n`` is negative.

    Examples
    --------
    >>> pair = minimal_pairs(1)[0]
    >>> pair.phenomenon
    'subject_verb'
    >>> sum(a != b for a, b in zip(pair.acceptable.split(), pair.unacceptable.split()))
    1
    """
    if n < 0:
        raise ValueError(f"minimal_pairs: n is {n}; pass 0 or more")
    speaker, seen, pairs = _Speaker(seed), set[str](), list[MinimalPair]()
    while len(pairs) < n:
        pair = speaker.pair(PHENOMENA[len(pairs) % len(PHENOMENA)])
        sentences = {pair.acceptable, pair.unacceptable}
        if not _for_corpus(pair.acceptable) and seen.isdisjoint(sentences):
            seen |= sentences
            pairs.append(pair)
    return pairs


def acceptability_task(
    seed: int = 0, *, n_train: int = 16_000, n_validation: int = 1_000, n_test: int = 2_000
) -> AcceptabilityData:
    """Is this sentence acceptable? Three splits of generated English.

    Parameters
    ----------
    seed : int
        Of the sentences and their order; the same splits come back for the same arguments.
    n_train, n_validation, n_test : int
        Numbers of sentences, even: half of each split is acceptable. The test split does not depend on the
        sizes of the others.

    Returns
    -------
    AcceptabilityData

    Raises
    ------
    ValueError
        If a size is odd or not positive.

    Notes
    -----
    Both sentences of a minimal pair are in the same split, in shuffled places.

    Examples
    --------
    >>> data = acceptability_task(n_train=64, n_validation=32, n_test=32)
    >>> data.train, data.train.labels.mean()
    (Split(64 examples), np.float64(0.5))
    """
    sizes = {"n_test": n_test, "n_validation": n_validation, "n_train": n_train}
    for name, size in sizes.items():
        if size < 2 or size % 2:
            raise ValueError(f"acceptability_task: {name} is {size}; pass a positive even number")
    pairs = iter(minimal_pairs(sum(sizes.values()) // 2, seed))
    test, validation, train = (_shuffled([next(pairs) for _ in range(size // 2)], seed) for size in sizes.values())
    return AcceptabilityData(Task("acceptability", ("sentence",), 2, "accuracy"), train, validation, test)


def _shuffled(pairs: list[MinimalPair], seed: int) -> Split:
    examples = [(text, label) for good, bad, _ in pairs for text, label in ((good, 1), (bad, 0))]
    # pair after pair, every second example would be acceptable, and Split.spread could take only those
    Random(seed).shuffle(examples)
    return Split(tuple((text,) for text, _ in examples), np.array([label for _, label in examples], np.int64))


def corpus(n: int, seed: int = 0) -> list[str]:
    """``n`` different acceptable sentences, for masked-language-model pre-training.

    None of them is in an `acceptability_task`, whatever its seed and sizes.

    Raises
    ------
    ValueError
        If ``n`` is negative.

    Examples
    --------
    >>> len(corpus(100))
    100
    """
    if n < 0:
        raise ValueError(f"corpus: n is {n}; pass 0 or more")
    speaker, sentences = _Speaker(seed), dict[str, None]()  # a dict keeps the order
    while len(sentences) < n:
        sentence = _text(speaker.sentence())
        if _for_corpus(sentence):
            sentences[sentence] = None
    return list(sentences)


def word_tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer with one token per word of the grammar; made in code, from no file.

    Lower case, split at white space; ``[CLS] a [SEP]`` or ``[CLS] a [SEP] b [SEP]``. ``save_pretrained`` and
    ``AutoTokenizer.from_pretrained`` work offline.

    Examples
    --------
    >>> tokenizer = word_tokenizer()
    >>> tokenizer.decode(tokenizer("These dogs sleep")["input_ids"])
    '[CLS] these dogs sleep [SEP]'
    """
    special = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
    vocabulary = {word: i for i, word in enumerate((*special, *_words()))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[(token, vocabulary[token]) for token in ("[CLS]", "[SEP]")],
    )
    pad, unk, cls, sep, mask = special
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=pad,
        unk_token=unk,
        cls_token=cls,
        sep_token=sep,
        mask_token=mask,
    )


def _words() -> list[str]:
    tables = (*(kind.nouns for kind in _ANY), *(((*kind.reflexives, kind.relative),) for kind in _ANY))
    tables += (_DETERMINERS, _INTRANSITIVE, _TRANSITIVE, _COPULAS, _NEGATIONS, _PERFECTS)
    lists = (_INVARIANT_DETERMINERS, _MODALS, _PREPOSITIONS, _ADVERBS, _ADJECTIVES, ("not",))
    return sorted({word for table in (*tables, lists) for forms in table for word in forms})
