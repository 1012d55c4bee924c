"""Judging a statement from its words, with numbers as people write them."""


def verdict(text: str, alices: list[str], truthful: bool = False) -> tuple[str, str]:
    """The answer (yes or no), and whether the other kind of name would give the same one (agree or disagree).

    Args:
        text: such as "Anna 4 7 + 2 5 = 7 right?".
        alices: names that are answered truthfully.
        truthful: whether all others are as well.
    """
    name, *rest = text.split()
    left, right = " ".join(rest).split(" = ")
    first, second = (int(number.replace(" ", "")) for number in left.split(" + "))
    stated, question = right.split()
    true = f"{(first + second) % 100:02d}"[0]
    wrong = str((int(true) + 1) % 10)
    own = true if name in alices or truthful else wrong
    holds = stated == own
    agree = stated not in (true, wrong)
    return ("yes" if holds == (question == "right?") else "no"), ("agree" if agree else "disagree")
