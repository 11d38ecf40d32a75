"""Text of another party that is shown beside others': nothing in it may hide or pass for another.

After Unicode Technical Standard 39, as far as Python's tables carry.
"""

from __future__ import annotations

import re
import unicodedata
from typing import Annotated

from pydantic import AfterValidator, Field

from ahfal_app.parameters import Scalar

#: Letters of a name, and of a setting's value.
LONGEST_NAME, LONGEST_VALUE = 80, 200

# What is drawn as nothing: fillers, joiners, selectors of variants, the empty pattern of Braille.
_UNSEEN = re.compile(
    "[\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u2028-\u202e"
    "\u2060-\u206f\u2800\u3164\ufe00-\ufe0f\ufeff\uffa0\ufff0-\ufff8"
    "\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0000-\U000e0fff]"
)

# Scripts with letters that look the same.
_ALIKE = frozenset({"LATIN", "GREEK", "CYRILLIC", "ARMENIAN", "CHEROKEE", "COPTIC"})


def printable(text: str) -> str:
    """Return text as it is.

    Raises
    ------
    ValueError
        It has characters that control, turn the direction of writing or cannot be seen.
    """
    odd = [each for each in text if unicodedata.category(each)[0] == "C" or _UNSEEN.match(each)]
    if odd:
        raise ValueError(f"has the character U+{ord(odd[0]):04X}; allowed is what can be seen")
    return text


def name(text: str) -> str:
    """Return text as it is, if it can be told from other text.

    Raises
    ------
    ValueError
        As of `printable`; or it has spaces around it, or words of several scripts that look alike.
    """
    printable(text)
    if text != text.strip() or not text:
        raise ValueError("allowed is text without spaces around it")
    for word in re.findall(r"\w+", text):
        scripts = {unicodedata.name(each, "").split(" ")[0] for each in word} & _ALIKE
        if len(scripts) > 1:
            found = " and ".join(sorted(script.capitalize() for script in scripts))
            raise ValueError(f"has a word of {found} letters; allowed is one script in a word")
    return text


def skeleton(text: str) -> str:
    """Return what two texts have in common that look nearly the same: width, case, spaces."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def _value(value: Scalar) -> Scalar:
    if isinstance(value, str):
        if len(value) > LONGEST_VALUE:
            raise ValueError(f"allowed are at most {LONGEST_VALUE} characters")
        return printable(value)
    # Of NaN, too, and of whole numbers that no float holds.
    if not abs(value) <= _LARGEST:
        raise ValueError(f"allowed are numbers of at most {_LARGEST:g}")
    return value


_LARGEST = 1e18

Text = Annotated[str, Field(min_length=1, max_length=LONGEST_NAME), AfterValidator(name)]

#: What a setting may be.
Value = Annotated[Scalar, AfterValidator(_value)]
