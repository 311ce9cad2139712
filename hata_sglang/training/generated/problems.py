"""Worked problems in mathematics whose answers are computed, with other problems in each split."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction


@dataclass(frozen=True)
class Problem:
    """A problem with its solution.

    Attributes
    ----------
    statement, solution, answer : str
    check : str
        A Python expression that is true if the answer is right; it may use `math` and `Fraction`.
    """

    statement: str
    solution: str
    answer: str
    check: str


def document(rng: random.Random, split: str, characters: int) -> str:
    """Make one document of numbered problems; reviews take up answers of earlier ones.

    Parameters
    ----------
    rng : random.Random
    split : {"train", "test"}
        The splits share no kind of problem and no wording.
    characters : int
        Of the document, at least.
    """
    title, solved, review = {
        "train": ("Problem {}.", "Solution.", "Review. Let us go back over some of the answers."),
        "test": ("Exercise {}:", "Worked answer:", "Looking back at what was found so far:"),
    }[split]
    parts: list[str] = []
    made: list[Problem] = []
    size = 0
    while size < characters:
        made.append(problem(rng, split))
        head = title.format(len(made))
        parts.append(f"{head} {made[-1].statement}\n\n{solved} {made[-1].solution}")
        if len(made) % 12 == 0:
            chosen = sorted(rng.sample(range(len(made)), 5))
            lines = (
                f"{title.format(n + 1)} {made[n].statement} -> {made[n].answer}" for n in chosen
            )
            parts.append("\n".join([review, *lines]))
        size = sum(map(len, parts)) + 2 * len(parts)
    return "\n\n".join(parts)


def problem(rng: random.Random, split: str) -> Problem:
    """One problem of a split."""
    return rng.choice(TRAIN if split == "train" else TEST)(rng)


def _polynomial(coefficients: list[int], name: str = "x") -> str:
    """``3x^2 - x + 4`` of [4, -1, 3]."""
    terms = []
    for power, c in reversed(list(enumerate(coefficients))):
        if c:
            letter = "" if power == 0 else name if power == 1 else f"{name}^{power}"
            size = "" if abs(c) == 1 and power else str(abs(c))
            terms.append(f"{'-' if c < 0 else '+'} {size}{letter}")
    text = " ".join(terms) or "0"
    return text[2:] if text.startswith("+ ") else text.replace("- ", "-", 1)


def _python(coefficients: list[int]) -> str:
    return " + ".join(f"({c})*x**{n}" for n, c in enumerate(coefficients))


def _linear(rng: random.Random) -> Problem:
    x, a, c = rng.randint(-20, 30), rng.randint(6, 19), rng.randint(2, 5)
    b = rng.randint(1, 60)
    d = (a - c) * x + b
    statement = f"Solve {a}x + {b} = {c}x {'+' if d >= 0 else '-'} {abs(d)} for x."
    steps = (
        f"Subtract {c}x from both sides, which leaves {a - c}x + {b} = {d}. Subtract {b} from both "
        f"sides: {a - c}x = {d - b}. Divide by {a - c}: x = {d - b}/{a - c} = {x}. To be sure, put "
        f"{x} back in: the left side is {a}*({x}) + {b} = {a * x + b} and the right side is "
        f"{c}*({x}) + ({d}) = {c * x + d}, and the two agree."
    )
    return Problem(statement, steps, f"x = {x}", f"{a}*{x}+{b} == {c}*{x}+{d}")


def _quadratic(rng: random.Random) -> Problem:
    p, q = sorted((rng.randint(-12, 12), rng.randint(-12, 12)))
    b, c = -(p + q), p * q
    statement = f"Find the roots of {_polynomial([c, b, 1])}."
    root = math.isqrt(b * b - 4 * c)
    steps = (
        f"The discriminant is ({b})^2 - 4*({c}) = {b * b} - ({4 * c}) = {b * b - 4 * c}, whose "
        f"square root is {root}. Hence x = ({-b} - {root})/2 = {p} or x = ({-b} + {root})/2 = {q}. "
        f"The sum of the roots, {p + q}, is minus the coefficient of x, and their product {c} the "
        "constant."
    )
    check = f"all(x*x+({b})*x+({c}) == 0 for x in ({p}, {q}))"
    return Problem(statement, steps, f"x = {p} and x = {q}", check)


def _euclid(rng: random.Random) -> Problem:
    g = rng.randint(2, 30)
    a, b = sorted((g * rng.randint(20, 200), g * rng.randint(20, 200)), reverse=True)
    lines, m, n = [], a, b
    while n:
        lines.append(f"{m} = {m // n} * {n} + {m % n}")
        m, n = n, m % n
    steps = (
        "Divide with remainder, again and again (Euclid):\n"
        + "\n".join(lines)
        + f"\nThe last remainder that is not zero is {m}, so gcd({a}, {b}) = {m}."
    )
    statement = f"Compute the greatest common divisor of {a} and {b}."
    return Problem(statement, steps, str(m), f"math.gcd({a}, {b}) == {m}")


def _progression(rng: random.Random) -> Problem:
    first, step, count = rng.randint(1, 40), rng.randint(2, 15), rng.randint(10, 80)
    last = first + (count - 1) * step
    total = count * (first + last) // 2
    statement = (
        f"An arithmetic progression begins with {first} and grows by {step} each time. What is the "
        f"sum of its first {count} terms?"
    )
    steps = (
        f"The last of the terms is {first} + ({count} - 1)*{step} = {last}. Pair the first with "
        f"the last: every pair adds up to {first + last}, and there are {count}/2 pairs. The sum "
        f"is {count} * {first + last} / 2 = {total}."
    )
    check = f"sum(range({first}, {last} + 1, {step})) == {total}"
    return Problem(statement, steps, str(total), check)


def _product(rng: random.Random) -> Problem:
    a, b = rng.randint(120, 9999), rng.randint(120, 9999)
    lines = []
    for place, digit in enumerate(reversed(str(b))):
        lines.append(f"{a} * {int(digit) * 10**place} = {a * int(digit) * 10**place}")
    steps = "Multiply by one digit at a time:\n" + "\n".join(lines)
    steps += f"\nAdded together this is {a * b}."
    return Problem(f"Multiply {a} by {b}.", steps, str(a * b), f"{a} * {b} == {a * b}")


def _derivative(rng: random.Random) -> Problem:
    coefficients = [rng.randint(-9, 9) for _ in range(rng.randint(3, 5))] + [rng.randint(1, 9)]
    slopes = [n * c for n, c in enumerate(coefficients)][1:]
    at = rng.randint(-3, 4)
    value = sum(c * at**n for n, c in enumerate(slopes))
    statement = f"Differentiate f(x) = {_polynomial(coefficients)} and evaluate f'({at})."
    rules = ", ".join(
        f"{_polynomial([0] * n + [c])} gives {_polynomial([0] * (n - 1) + [n * c])}"
        for n, c in enumerate(coefficients)
        if n and c
    )
    steps = (
        f"Term by term, with the power rule: {rules}. Therefore f'(x) = {_polynomial(slopes)}, and "
        f"at x = {at} this is {value}."
    )
    # f(x + h) - f(x) is f'(x) * h and higher powers of h.
    steep = f"(lambda f, h: (f({at} + h) - f({at})) // h - ({value}))"
    check = f"{steep}(lambda x: {_python(coefficients)}, 10**9) % 10**9 == 0"
    return Problem(statement, steps, str(value), check)


def _induction(rng: random.Random) -> Problem:
    k = rng.randint(2, 40)
    n = rng.randint(20, 300)
    statement = (
        f"Prove by induction that {k} + {2 * k} + ... + {k}n = {k}n(n + 1)/2 for every n >= 1, and "
        f"use it for n = {n}."
    )
    total = k * n * (n + 1) // 2
    steps = (
        f"For n = 1 both sides are {k}. Suppose the formula holds for some n. Adding {k}(n + 1) to "
        f"both sides gives {k}n(n + 1)/2 + {k}(n + 1) = {k}(n + 1)(n + 2)/2, which is the formula "
        f"for n + 1. By induction it holds for all n. With n = {n}: {k}*{n}*{n + 1}/2 = {total}."
    )
    check = f"sum({k}*i for i in range({n} + 1)) == {total}"
    return Problem(statement, steps, str(total), check)


def _pair(rng: random.Random) -> Problem:
    x, y = rng.randint(-9, 15), rng.randint(-9, 15)
    a, b, c = rng.randint(2, 9), rng.randint(1, 9), rng.randint(1, 9)
    d = rng.choice([n for n in range(-9, 10) if a * n != b * c])
    e, f = a * x + b * y, c * x + d * y
    first = f"{a}u + {b}v = {e}"
    second = f"{c}u + ({d})v = {f}"
    statement = f"Which numbers u and v satisfy both {first} and {second}?"
    det = a * d - b * c
    steps = (
        f"Cramer's rule applies, as the determinant {a}*({d}) - {b}*{c} equals {det}, which is "
        f"not 0. For u the numerator is ({e})*({d}) - {b}*({f}) = {e * d - b * f}, hence u = {x}; "
        f"for v it is {a}*({f}) - ({e})*{c} = {a * f - e * c}, hence v = {y}."
    )
    check = f"{a}*({x})+{b}*({y}) == {e} and {c}*({x})+({d})*({y}) == {f}"
    return Problem(statement, steps, f"u = {x}, v = {y}", check)


def _power(rng: random.Random) -> Problem:
    base, exponent, modulus = rng.randint(2, 50), rng.randint(20, 500), rng.randint(11, 200)
    lines, square, result = [], base % modulus, 1
    for bit in reversed(bin(exponent)[2:]):
        if bit == "1":
            result = result * square % modulus
        lines.append(f"bit {bit}: the square is {square}, the running product {result}")
        square = square * square % modulus
    steps = (
        f"In binary the exponent reads {exponent:b}. Going from its lowest bit upwards (mod "
        f"{modulus}):\n" + "\n".join(lines) + f"\nwhich leaves {result}."
    )
    statement = f"Reduce {base}^{exponent} modulo {modulus}."
    return Problem(statement, steps, str(result), f"pow({base}, {exponent}, {modulus}) == {result}")


def _factors(rng: random.Random) -> Problem:
    number = math.prod(rng.choice([2, 2, 3, 3, 5, 7, 11, 13, 17, 19, 23]) for _ in range(5))
    found, rest, lines, prime = [], number, [], 2
    while rest > 1:
        while rest % prime == 0:
            lines.append(f"{rest} : {prime} = {rest // prime}")
            found.append(prime)
            rest //= prime
        prime += 1
    answer = " x ".join(map(str, found))
    steps = "Split off the smallest prime as long as that works.\n" + "\n".join(lines)
    steps += f"\nSo the factorisation reads {number} = {answer}."
    statement = f"Write {number} as a product of primes."
    check = f"math.prod({found}) == {number} and all(p % k for p in {found} for k in range(2, p))"
    return Problem(statement, steps, answer, check)


def _base(rng: random.Random) -> Problem:
    number, base = rng.randint(200, 99999), rng.randint(2, 9)
    digits, lines, rest = "", [], number
    while rest:
        lines.append(f"{rest} divided by {base} is {rest // base}, remainder {rest % base}")
        digits = str(rest % base) + digits
        rest //= base
    steps = "\n".join(
        [
            "Keep dividing and note what remains.",
            *lines,
            f"Read from the bottom up, the remainders spell {digits}.",
        ]
    )
    statement = f"How is {number} written in base {base}?"
    return Problem(statement, steps, digits, f"int('{digits}', {base}) == {number}")


def _choose(rng: random.Random) -> Problem:
    n, k = rng.randint(6, 30), rng.randint(2, 5)
    value = math.comb(n, k)
    top, bottom = math.prod(range(n - k + 1, n + 1)), math.factorial(k)
    people = rng.choice(["players", "delegates", "books", "stamps", "singers", "routes"])
    statement = f"In how many ways can {k} out of {n} {people} be picked, order aside?"
    steps = (
        f"In order there are {' * '.join(str(n - i) for i in range(k))} = {top} ways. Each pick "
        f"was counted {k}! = {bottom} times. That makes {top} : {bottom} = {value}."
    )
    return Problem(statement, steps, str(value), f"math.comb({n}, {k}) == {value}")


def _geometric(rng: random.Random) -> Problem:
    a, q, n = rng.randint(1, 12), rng.randint(2, 5), rng.randint(4, 9)
    total = a * (q**n - 1) // (q - 1)
    terms = ", ".join(str(a * q**i) for i in range(n))
    statement = f"Add up the {n} numbers that start at {a} and are multiplied by {q} each time."
    steps = (
        f"They are {terms}. With S for the sum, {q}S - S = {a}*{q}^{n} - {a} = {a * q**n - a}, and "
        f"dividing by {q - 1} yields S = {total}."
    )
    check = f"sum({a}*{q}**i for i in range({n})) == {total}"
    return Problem(statement, steps, str(total), check)


def _integral(rng: random.Random) -> Problem:
    coefficients = [rng.randint(-6, 9) for _ in range(rng.randint(2, 4))] + [rng.randint(1, 6)]
    upper = rng.randint(1, 5)
    areas = [Fraction(c * upper ** (n + 1), n + 1) for n, c in enumerate(coefficients)]
    total = sum(areas, Fraction(0))
    statement = (
        f"Integrate {_polynomial(coefficients, 't')} with respect to t between 0 and {upper}."
    )
    lines = (
        f"the part {_polynomial([0] * n + [c], 't')} contributes {area}"
        for n, (c, area) in enumerate(zip(coefficients, areas, strict=True))
        if c
    )
    steps = f"Raise each exponent by one and divide by it: {'; '.join(lines)}. In all: {total}."
    # Boole's rule, which is exact up to the fifth power.
    boole = f"sum(w * f(Fraction({upper} * k, 4)) for k, w in enumerate((7, 32, 12, 32, 7)))"
    check = f"(lambda f: {boole} * {upper} / 90)(lambda x: {_python(coefficients)})"
    check += f" == Fraction({total.numerator}, {total.denominator})"
    return Problem(statement, steps, str(total), check)


Maker = Callable[[random.Random], Problem]
TRAIN: tuple[Maker, ...] = (
    _linear,
    _quadratic,
    _euclid,
    _progression,
    _product,
    _derivative,
    _induction,
)
TEST: tuple[Maker, ...] = (_pair, _power, _factors, _base, _choose, _geometric, _integral)
