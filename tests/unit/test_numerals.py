"""Laws of reading numbers: the value as written, or none."""

from __future__ import annotations

from fractions import Fraction

import pytest

from components.tasks.checkers import number_equal
from components.tasks.numerals import number_in, number_text

READ = [
    line.split(" => ")
    for line in r"""
−3 => -3
－3 => -3
‒3 => -3
˗3 => -3
⁻3 => -3
x＝18 => 18
１／２ => 1/2
（18） => 18
3٫5 => 3.5
18​ => 18
﻿1­8 => 18
18 cm^2 => 18
18 m^{3} => 18
18 square feet => 18
–3 => -3
− 3 => -3
- 3 => -3
Total: - 3 => -3
-$5 => -5
$-5 => -5
(-18) => -18
+18 => 18
1,234 => 1234
1,234,567 => 1234567
$1,234.50 => 1234.5
1{,}234 => 1234
1,\!234 => 1234
1,234, => 1234
1 234 => 1234
10\,000 => 10000
10~000 => 10000
12 345 678 => 12345678
1e3 => 1000
1E+3 => 1000
1.5e-3 => .0015
2 \times 10^{3} => 2000
1.5 × 10^3 => 1500
10^3 => 1000
1/2 => 1/2
1 / 2 => 1/2
1⁄2 => 1/2
-1/2 => -1/2
.5 => 1/2
\frac12 => 1/2
\dfrac{1}{2} => 1/2
-\frac{1}{2} => -1/2
1 1/2 => 3/2
3\frac12 => 7/2
36/2 eggs => 18
18. => 18
18, which is it => 18
18 eggs => 18
18% => 18
18\% => 18
€18 => 18
18 € => 18
**18** => 18
`18` => 18
$18$ => 18
\(18\) => 18
\text{18 eggs} => 18
18\text{ cm} => 18
x = 18 => 18
16 + 2 = 18 => 18
１８ => 18
١٢ => 12
18 more than Bob => 18
18 times => 18
18 apples => 18
18 m => 18
18 miles => 18
18 scores => 18
18 quarters => 18
18 third graders => 18
18 months => 18
18 point guards => 18
the logs: 18 => 18
eggs left over: 18 => 18
0 => 0
-0 => 0
00018 => 18
""".strip().splitlines()
]
REFUSED = r"""
1,2,3
0,5
1,23
0,123
01,234
12,34,567
1,234,5
1,2345
1.234.567
1.234,56
1, 234
1,234 567
1 2 3
1 23
1 234 5
1'234
1_234
$1.2 million
1.2 billion
18 thousand
18 dozen
18k
18 and a half
1 ½
3 万
1.2 mln
2 thirds
5 hundredths
twice 18
a third of 18
square root of 18
below 18
18 at most
18 x^2
18 m^4
—3
half of 18
<18
>18
≤18
< 18
\le 18
~18
≈ 18
±18
\pm 18
at least 18
about 18
more than 18
not 18
minus 18
18 or 19
18 or so
18-20
18–20
18+
18!
18²
18^2
2^5
2**5
18°
18:30
18x
x18
18cm
a-18
18-a
x - 3
--3
+-3
1..2
1.2.3
1e3.5
2e3e4
1e999999999
10^{999999999}
3/0
1/2/3
1/
/2
½
1½
x >= 18
x != 18
x ≠ 18
x == 18
The 3rd
#18
0x12
∞
nan
inf
1 234/5
2 1/0
-
18 per mille
18 basis points
18 ppm
$18 M
1.2 B
18 quintillion
18 billionth
18 milliard
18 thou
18 gross
18 doubled
a dozen 18
isn't 18
never 18
other than 18
circa 18
c. 18
18 score
18 mil
$18 m
$18 b
18 MM
18 hundreds
18 thousands
18 tens
18 lacs
18 tril
1 third
1 tenth of it
18 twelfths
18 point five
18 and two thirds
18 and up
18 degrees below zero
18 in binary
18 is wrong
binary 101
log 18
square of 18
reciprocal of 18
close to 18
just shy of 18
exceeds 18
cannot be 18
neither 18
anything but 18
""".strip().splitlines()


@pytest.mark.parametrize(("text", "value"), READ + [[f"1{blank}234", "1234"] for blank in "\u00a0\u2007\u2009\u202f"])
def test_numbers_are_read_exactly(text: str, value: str) -> None:
    number = Fraction(value)
    assert number_in(text) == number
    assert number_in(number_text(number)) == number
    for gold in (f"so\n#### {text}", value):
        assert number_equal(f"<answer>{text}</answer>", gold)
    assert not number_equal(f"<answer>{text}</answer>", str(number + 1))


@pytest.mark.parametrize("text", [*REFUSED, "9" * 401, "", " "])
def test_what_touches_bounds_or_scales_a_number_is_refused(text: str) -> None:
    assert number_in(text) is None
    digits = "".join(c for c in text if c.isdecimal() and c.isascii())
    for gold in (digits, "18", "0.5", "1.2", "123", "1234"):
        assert not number_equal(f"<answer>{text}</answer>", gold)


def test_small_golds_are_not_rounded_away() -> None:
    assert not number_equal("#### 0.0000002", "0.0000001")
    assert not number_equal("#### 0.0000001", "0")
    assert number_equal("#### 0.3333333", "1/3") and not number_equal("#### 0.33333", "1/3")
