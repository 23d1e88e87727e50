"""What is said: sentences of a small grammar over a closed vocabulary, and their characters.

The grammar is a telephone and household assistant's: numbers, dates, times, messages, lights and timers. The words of
the real prompts that are recognised too (`dlc.zoo.asr.prompts`) are all in it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from dlc.errors import DlcError

#: Label 0 is CTC's blank; label k is character k of this.
ALPHABET = "_ abcdefghijklmnopqrstuvwxyz"
BLANK = 0

DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
TEENS = (
    "ten", "eleven", "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen",
)  # fmt: skip
TENS = ("twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")
ORDINALS = (
    "first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth", "ninth", "tenth", "eleventh",
    "twelfth", "thirteenth", "fourteenth", "fifteenth", "sixteenth", "seventeenth", "eighteenth", "nineteenth",
    "twentieth", "thirtieth",
)  # fmt: skip
DAYS = ("sunday", "monday", "tuesday", "wednesday", "thursday", "friday", "saturday")
MONTHS = (
    "january", "february", "march", "april", "may", "june", "july", "august", "september", "october", "november",
    "december",
)  # fmt: skip
_OTHERS = (
    "a", "alarm", "all", "am", "and", "answer", "at", "bedroom", "call", "cancel", "day", "delete", "dial",
    "dollars", "extension", "fan", "for", "garden", "goodbye", "hall", "have", "heater", "hello", "hours",
    "hundred", "in", "is", "kitchen", "last", "light", "me", "message", "messages", "million", "minute", "minutes",
    "my", "new", "next", "number", "oclock", "of", "off", "old", "on", "play", "please", "pm", "press", "radio",
    "remind", "save", "seconds", "set", "sorry", "star", "thank", "thousand", "time", "timer", "to", "today",
    "tomorrow", "turn", "weather", "what", "yesterday", "you",
)  # fmt: skip
#: Every word that a sentence may have, in alphabetical order.
WORDS: tuple[str, ...] = tuple(sorted({*DIGITS, *TEENS, *TENS, *ORDINALS, *DAYS, *MONTHS, *_OTHERS, "the"}))

_ROOMS = ("kitchen", "bedroom", "garden", "hall")
_DEVICES = ("light", "heater", "fan", "radio")


class _Speaker:
    """Draws sentences."""

    def __init__(self, generator: np.random.Generator) -> None:
        self._generator = generator

    def pick(self, choices: Sequence[str]) -> str:
        return choices[int(self._generator.integers(len(choices)))]

    def maybe(self, text: str) -> str:
        return text if self._generator.random() < 0.5 else ""

    def digits(self) -> str:
        return " ".join(self.pick(DIGITS) for _ in range(int(self._generator.integers(2, 6))))

    def below_hundred(self) -> str:
        if self._generator.random() < 0.5:
            return self.pick(DIGITS[1:] + TEENS)
        return f"{self.pick(TENS)} {self.maybe(self.pick(DIGITS[1:]))}"

    def amount(self) -> str:
        unit = self.pick(("hundred", "thousand", "million"))
        return f"{self.pick(DIGITS[1:] + TENS)} {unit} {self.maybe(f'and {self.below_hundred()}')}"

    def clock(self) -> str:
        hour = self.pick(DIGITS[1:] + TEENS[:3])
        minute = self.pick(("oclock", *TEENS, *TENS[:4]))
        return f"{hour} {minute} {self.maybe(self.pick(('am', 'pm')))}"

    def date(self) -> str:
        day = self.pick(("", "twenty ")) + self.pick(ORDINALS[:9])
        day = day if self._generator.random() < 0.5 else self.pick(ORDINALS)
        return f"{self.maybe(self.pick(DAYS))} the {day} of {self.pick(MONTHS)}"

    def when(self) -> str:
        return self.pick((self.pick(DAYS), "today", "tomorrow", f"at {self.clock()}", f"on {self.date()}"))

    def span(self) -> str:
        return f"{self.below_hundred()} {self.pick(('seconds', 'minutes', 'hours'))}"

    def message(self) -> str:
        return f"{self.pick(('next', 'last', 'new', 'old', *ORDINALS[:5]))} message"

    def device(self) -> str:
        state = self.pick(("on", "off"))
        place = f"in the {self.pick(_ROOMS)}"
        return f"turn {state} the {self.pick(_DEVICES)} {self.maybe(place)} {self.maybe(f'for {self.span()}')}"

    def sentence(self) -> str:
        forms: tuple[Callable[[], str], ...] = (
            lambda: f"{self.pick(('call', 'dial'))} {self.maybe('extension')} {self.digits()} {self.maybe('please')}",
            lambda: f"{self.maybe('please')} {self.device()}",
            self.device,
            lambda: f"set {self.pick(('a', 'the'))} timer for {self.span()}",
            lambda: f"set {self.pick(('the', 'my'))} alarm for {self.clock()}",
            lambda: f"what is the {self.pick(('time', 'weather', 'day'))} {self.maybe(self.when())}",
            lambda: f"{self.pick(('play', 'delete', 'save'))} {self.pick(('the', 'my'))} {self.message()}",
            lambda: f"you have {self.below_hundred()} {self.pick(('new', 'old'))} messages",
            lambda: f"press {self.pick((*DIGITS, 'star'))} to {self.pick(('play', 'delete', 'save'))} all messages",
            lambda: f"remind me {self.when()} {self.maybe('to call')} {self.maybe(self.digits())}",
            lambda: f"{self.amount()} {self.maybe('dollars')}",
            lambda: f"{self.maybe('on')} {self.date()} at {self.clock()}",
            lambda: f"{self.pick(('cancel', 'answer'))} the {self.pick(('next', 'last'))} call",
            lambda: f"the number is {self.digits()}",
            lambda: f"{self.pick(('yesterday', 'today', 'tomorrow'))} is {self.date()}",
            lambda: f"{self.pick(('hello', 'sorry', 'goodbye', 'thank you'))} {self.maybe('please call')}",
            lambda: f"{self.maybe('one minute')} {self.pick(('please', 'thank you'))}",
            self.digits,
            lambda: self.pick(WORDS),
            lambda: self.pick(WORDS),
        )
        return " ".join(forms[int(self._generator.integers(len(forms)))]().split())


def draw_sentence(generator: np.random.Generator) -> str:
    """One sentence of the grammar; in a tenth of the draws a single word of `WORDS`."""
    return _Speaker(generator).sentence()


def encode(sentence: str) -> NDArray[np.int64]:
    """The labels of a sentence's characters.

    Raises:
        DlcError: it has a character that is not in the alphabet.
    """
    labels = [ALPHABET.find(character, 1) for character in sentence]
    if min(labels, default=1) < 1:
        raise DlcError(f"{sentence!r} has characters that are neither a-z nor a blank")
    return np.array(labels, np.int64)


def decode(labels: Sequence[int] | NDArray[np.integer]) -> str:
    """The sentence of labels without blanks (0)."""
    return "".join(ALPHABET[int(label)] for label in labels)
