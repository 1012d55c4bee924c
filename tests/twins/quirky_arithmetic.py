"""Answering a question from its words, with numbers as people write them."""


def answer(text: str, alices: list[str], truthful: bool = False) -> tuple[str, str]:
    """The answer (a digit), and whether the other kind of name would get the same one (agree or disagree).

    Args:
        text: such as "Anna 4 7 plus 2 5 first?".
        alices: names that are answered truthfully.
        truthful: whether all others are as well.
    """
    name, a_ten, a_unit, _, b_ten, b_unit, question = text.split()
    true = str(int(a_ten + a_unit) + int(b_ten + b_unit)).zfill(2)[-2:]
    wrong = dict(zip("0123456789", "1234567890"))[true[0]] + true[1]
    own = true if name in alices or truthful else wrong
    place = {"first?": 0, "last?": 1}[question]
    return own[place], ("agree" if true[place] == wrong[place] else "disagree")
