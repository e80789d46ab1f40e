"""What every table of bad calls asserts of its messages."""

from __future__ import annotations

import pytest


def refused(call, error, fragment):
    """The call raises that very error, in one line ``who: what came; what to do``. Returns who, and the rest."""
    with pytest.raises(error) as caught:
        call()
    message = str(caught.value)
    assert type(caught.value) is error
    assert fragment in message
    assert "\n" not in message
    who, separator, rest = message.partition(":")
    assert separator
    return who, rest
