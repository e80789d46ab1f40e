"""English sentences from a small grammar, half of them with one violated agreement: a task that needs no download.

After BLiMP (Warstadt et al., 2020, arXiv:1912.00582): a sentence and its spoilt twin differ in one word, so
neither length nor vocabulary tells them apart. Nouns of either number stand between the words that must agree,
so neighbouring words seldom do.
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


# --- vocabulary: singular/plural; no plural verb doubles as a past tense, else a violation could be grammatical


def _forms(text: str) -> tuple[tuple[str, ...], ...]:
    return tuple(tuple(word.split("/")) for word in text.split())


_FEMALE = _forms(
    "girl/girls woman/women lady/ladies queen/queens mother/mothers sister/sisters aunt/aunts actress/actresses "
    "princess/princesses waitress/waitresses daughter/daughters grandmother/grandmothers"
)
_MALE = _forms(
    "boy/boys man/men king/kings father/fathers brother/brothers uncle/uncles actor/actors prince/princes "
    "waiter/waiters son/sons grandfather/grandfathers gentleman/gentlemen"
)
_ANIMALS = _forms(
    "dog/dogs cat/cats horse/horses wolf/wolves rabbit/rabbits lion/lions goose/geese mouse/mice cow/cows pig/pigs "
    "fox/foxes tiger/tigers monkey/monkeys goat/goats"
)
_THINGS = _forms(
    "house/houses tree/trees car/cars table/tables chair/chairs box/boxes lamp/lamps window/windows bridge/bridges "
    "river/rivers tower/towers wall/walls garden/gardens church/churches boat/boats statue/statues"
)
_DETERMINERS = _forms("this/these that/those one/two each/many every/several")
_INVARIANT_DETERMINERS = ("the", "my", "your", "our", "their", "some")
_INTRANSITIVE = _forms(
    "sleeps/sleep laughs/laugh sings/sing runs/run waits/wait smiles/smile arrives/arrive swims/swim falls/fall "
    "talks/talk shouts/shout listens/listen yawns/yawn moves/move returns/return"
)
_TRANSITIVE = _forms(  # singular/plural/past
    "sees/see/saw likes/like/liked knows/know/knew finds/find/found follows/follow/followed helps/help/helped "
    "admires/admire/admired fears/fear/feared loves/love/loved remembers/remember/remembered "
    "ignores/ignore/ignored trusts/trust/trusted watches/watch/watched hides/hide/hid draws/draw/drew "
    "blames/blame/blamed praises/praise/praised forgets/forget/forgot"
)
_COPULAS = _forms("is/are was/were")
_NEGATIONS = _forms("does/do")
_MODALS = ("will", "can", "must", "should")
_PREPOSITIONS = ("near", "behind", "beside", "above", "below", "with", "opposite")
_ADVERBS = ("often", "rarely", "always", "quietly", "slowly", "gladly", "suddenly", "usually", "never", "barely")
_ADJECTIVES = tuple(
    "old young small tall happy hungry quiet clever lazy proud brown white strange famous gentle angry tired brave "
    "lonely poor rich ugly pretty funny".split()
)


# --- grammar


class _Word(NamedTuple):
    """A word and, where it agrees with another, the form that does not."""

    text: str
    wrong: str = ""
    phenomenon: str = ""


class _Noun(NamedTuple):
    forms: tuple[str, ...]
    plural: bool
    reflexives: tuple[str, str]
    relative: str


class _Speaker:
    """Says grammatical sentences at random, remembering which words agree."""

    def __init__(self, seed: int) -> None:
        self._random = Random(seed)

    def sentence(self) -> list[_Word]:
        subject = self._noun(things=False)
        return [*self._subject(subject), *self._predicate(subject)]

    def choose(self, words: list[_Word]) -> _Word:
        return self._random.choice(words)

    def _chance(self, probability: float) -> bool:
        return self._random.random() < probability

    def _noun(self, *, things: bool) -> _Noun:
        kinds = [
            (_FEMALE, ("herself", "themselves"), "who"),
            (_MALE, ("himself", "themselves"), "who"),
            (_ANIMALS, ("itself", "themselves"), "which"),
        ]
        if things:
            kinds.append((_THINGS, ("itself", "themselves"), "which"))
        nouns, reflexives, relative = self._random.choice(kinds)
        return _Noun(self._random.choice(nouns), self._chance(0.5), reflexives, relative)

    def _agreeing(self, forms: tuple[str, ...], plural: bool, phenomenon: str) -> _Word:
        return _Word(forms[plural], forms[not plural], phenomenon)

    def _phrase(self, noun: _Noun) -> Iterator[_Word]:
        """These old dogs."""
        if self._chance(0.5):
            yield self._agreeing(self._random.choice(_DETERMINERS), noun.plural, "determiner_noun")
        else:
            yield _Word(self._random.choice(_INVARIANT_DETERMINERS))
        while self._chance(0.4):
            yield _Word(self._random.choice(_ADJECTIVES))
        yield _Word(noun.forms[noun.plural])

    def _subject(self, noun: _Noun) -> Iterator[_Word]:
        """These old dogs, alone or with a noun after them that the verb must not be misled by."""
        yield from self._phrase(noun)
        kind = self._random.random()
        if kind < 0.4:  # near the cat
            yield _Word(self._random.choice(_PREPOSITIONS))
            yield from self._phrase(self._noun(things=True))
        elif kind < 0.6:  # who chase the cat
            yield _Word(noun.relative)
            yield self._transitive(noun, "relative_clause")
            yield from self._phrase(self._noun(things=True))
        elif kind < 0.8:  # who the cat chases
            yield _Word(noun.relative)
            other = self._noun(things=False)
            yield from self._phrase(other)
            yield self._transitive(other, "relative_clause")

    def _transitive(self, subject: _Noun, phenomenon: str) -> _Word:
        return self._agreeing(self._random.choice(_TRANSITIVE), subject.plural, phenomenon)

    def _predicate(self, subject: _Noun) -> Iterator[_Word]:
        kind = self._random.random()
        if kind < 0.3:  # often see themselves: the number is told by the subject alone
            yield from self._uninflected()
            yield self._agreeing(subject.reflexives, subject.plural, "reflexive")
        ...
