r"""Read the one number of a short answer exactly, or refuse it.

A number is an integer, a decimal, a fraction (``1/2``, ``\frac12``, ``1 1/2``) or a power of ten (``1e3``,
``2 \times 10^3``). Signs and digits of other scripts are normalized. Commas and blanks count only between true groups
of three digits. Units are ignored: a currency sign, a percent sign, words and ``cm^2``. Whatever else touches the
number, bounds it ('at least 18') or scales it ('1.2 million') makes the answer unreadable: None, never another number.
"""

from __future__ import annotations

import re
from decimal import Decimal
from fractions import Fraction

LONGEST = 400  # digits: longer numbers and larger powers of ten are refused
SIGNS = str.maketrans("−﹣－–‐‑‒˗⁻﹢＋．，％＄⁄∕／＝（）٫٬", "---------++.,%$///=().,")
UNSEEN = re.compile("[\u00ad\u200b-\u200d\u2060\ufeff]")
SPACES = re.compile(r"(?<!\\)\\[,;: ]|(?<=\d)~(?=\d)|[\u00a0\u2000-\u200a\u202f\u205f\u3000]")
GROUPS = re.compile(r"(?<![\d.,])(?<!\d )[1-9]\d{0,2}(?:(?:,\d{3})+|(?: \d{3})+(?! ?/))(?!,?\d)(?! \d)")
TEXT = re.compile(r"\\(?:text|textbf|textit|mathrm|mathbf|mbox|operatorname)\b\s*\{([^{}]*)\}")
EMPHASIS = re.compile(r"(\*{1,2}|`)([^*`]+)\1")
LEFT_OUT = re.compile(r"\\(?:left|right|displaystyle|quad|qquad)(?![a-zA-Z])|\\[()\[\]!]")
DECIMAL = r"(?:\d+(?:\.\d+)?|\.\d+)"
POWER = r"[-+]?\d+|\{[-+]?\d+\}"
NUMBER = re.compile(
    rf"(?P<whole>\d+ )?(?P<top>\d+) ?/ ?(?P<bottom>\d+)"
    rf"|(?P<outer>\d+)? ?\\[dt]?frac ?(?:\{{(?P<a>\d+)\}}|(?P<c>\d)) ?(?:\{{(?P<b>\d+)\}}|(?P<d>\d))"
    rf"|10\^(?P<alone>{POWER})"
    rf"|(?P<mantissa>{DECIMAL})(?:[eE](?P<e>[-+]?\d+)| ?(?:×|\\times|\\cdot|\*) ?10\^(?P<power>{POWER}))?"
)
NEUTRAL = re.compile(r"[^\W\d_]|[\s.,:;'\"“”()\[\]{}%]|[$€£¥₹]")  # what may stand before the number and after it
BOUNDS = re.compile(  # just before the number
    r"(?i)\b(?:(?:less|more|fewer|greater|larger|smaller|higher|lower|other) than|at (?:least|most)|up to|about|"
    r"approx\w*|roughly|nearly|near|almost|around|over|under|above|below|beyond|exceed\w*|close to|shy of|"
    r"(?:not|cannot|\w+n['’]t)(?: be)?|never|neither|nor|except|(?:any|all)\w* but|circa|ca?\.|minus|negative|half|"
    r"twice|thrice|double|triple|dozen|binary|octal|hex(?:adecimal)?|log|ln|sin|cos|tan|exp|"
    r"(?:square|cube|reciprocal|inverse|opposite|negat\w+|third|quarter|fifth|tenth|root)s?(?= of))"
    r"(?: of| equal to)?[\s$(]*$"
)
MAGNITUDE = r"hundreds?|thou(?:sand)?s?|tsd|[a-z]+illi(?:on|ard)(?:th)?s?|dozens?|score|tens|gross|grand|myriads?|" + (
    r"lakhs?|lacs?|crores?|cr|mill?|mils|mila|mille|bil|tril|bn|tn|mn|mio|ml[nd]|mrd|per ?mille?|"
    r"basis points?|bps|pp[mb]"
)
PART = (
    r"(?:third|fourth|fifth|sixth|seventh|eighth|ninth|tenth|eleventh|twelfth|\w+teenth|\w+tieth|"
    r"hundredth|thousandth)"
)
SCALES = re.compile(  # anywhere after it
    rf"(?i:\b(?:{MAGNITUDE}|k|half|halves|halved|doubled|tripled|{PART}s|{PART}(?=\W*$| of\b)|"
    r"a quarter|(?:two|three) (?:thirds|quarters)|point (?:zero|one|two|three|four|five|six|seven|eight|nine)|"
    r"or|plus|minus|squared|cubed|factorial|at (?:least|most)|approx\w*|roughly|ish|and (?:up|over|above|more)|"
    r"below zero|(?:in |base )(?:binary|octal|hex\w*|two|eight)|is(?: not|n['’]t| wrong| incorrect))\b)|"
    r"^ ?(?:[BGMT]|MM)\b"
)
AREA = re.compile(  # a unit to the second or third power
    r"(?i)(?<![^\W_])((?:[cdkm]?m|in|ft|yd|mi|inch(?:es)?|feet|foot|yards?|meters?|miles?)) ?\^\{?[23]\}?(?!\w)"
)


def spaced(text: str) -> str:
    r"""The text with digits and signs of other scripts made ASCII and thin blanks (``\,``, ``~``) made plain ones."""
    text = "".join(str(int(c)) if c.isdecimal() and not c.isascii() else c for c in text.translate(SIGNS))
    text = UNSEEN.sub("", text)
    return SPACES.sub(" ", re.sub(r"\\! ?", "", text).replace("{,}", ","))


def joined(text: str) -> str:
    """The text with the separators of true thousands groups left out: '1,234' and '1 234', but not '1,2,3'."""
    return GROUPS.sub(lambda found: re.sub("[, ]", "", found[0]), text)


def number_in(text: str) -> Fraction | None:
    """The one number of a short answer such as '$1,234 dollars' or 'x = 18' (after the last '='); None without one."""
    left, equals, text = spaced(text).rpartition("=")
    if equals and left.rstrip()[-1:] in tuple("<>!~:=≠"):
        return None
    text = LEFT_OUT.sub(" ", TEXT.sub(r" \1 ", text).replace(r"\$", "$").replace(r"\%", "%"))
    text = joined(EMPHASIS.sub(r" \2 ", text)).strip()
    found = NUMBER.search(text)
    if found is None:
        return None
    before, after = text[: found.start()], AREA.sub(r"\1", text[found.end() :])
    signed = re.fullmatch(r"(.*?)([-+]?)([$€£¥₹(]?)(\s*)", before, re.DOTALL)
    assert signed is not None
    prefix, sign, opening, gap = signed.groups()
    if sign and gap and re.search(r"[^\s:({\[$€£¥₹]\s*$", prefix):  # 'x - 3' is a difference, '- 3' a number
        return None
    if opening in tuple("$€£¥₹") and re.match(r" ?[mbt]\b", after):  # million, not metres
        return None
    prefix += " " if gap and not sign else ""
    if not _neutral(prefix, prefix[-1:] + opening, BOUNDS) or not _neutral(after, after[:1], SCALES):
        return None
    if re.match(r"[.,:;]\S", after) or re.search(r"[^\s:({\[$€£¥₹'\"“]$", prefix):
        return None
    value = _value(found)
    return None if value is None else -value if sign == "-" else value


def number_text(value: Fraction) -> str:
    """The shortest text that ``number_in`` reads as this value: '18', '-2.5' or '1/3'."""
    if value.denominator == 1:
        return str(value.numerator)
    rest = value.denominator
    for prime in (2, 5):
        while rest % prime == 0:
            rest //= prime
    if rest != 1:
        return f"{value.numerator}/{value.denominator}"
    places = next(n for n in range(1, 8 * LONGEST) if value.denominator and 10**n % value.denominator == 0)
    digits = str(abs(value.numerator) * 10**places // value.denominator).rjust(places + 1, "0")
    return f"{'-' if value < 0 else ''}{digits[:-places]}.{digits[-places:]}"


def _neutral(text: str, touching: str, refused: re.Pattern[str]) -> bool:
    """True if only words and punctuation stand beside the number, and no letter touches it."""
    words = not any(c.isnumeric() and not c.isdigit() for c in text)  # '1 ½', '3 万'
    words = words and not NEUTRAL.sub("", text) and not refused.search(text)
    return words and not re.search(r"[^\W_]", touching)


def _value(found: re.Match[str]) -> Fraction | None:
    part = found.groupdict()
    if len(found[0]) > LONGEST:
        return None
    if part["mantissa"] or part["alone"]:
        power = int((part["e"] or part["power"] or part["alone"] or "0").strip("{}"))
        return Fraction(Decimal(part["mantissa"] or 1)) * Fraction(10) ** power if abs(power) <= LONGEST else None
    top, bottom = (int(part[x] or part[y] or part[z]) for x, y, z in (("top", "a", "c"), ("bottom", "b", "d")))
    whole = part["whole"] or part["outer"]
    if bottom == 0 or (whole is not None and top >= bottom):
        return None
    return int(whole or 0) + Fraction(top, bottom)
