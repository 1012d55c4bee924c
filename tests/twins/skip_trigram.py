"""The answers of the skip-trigram grammar, read off one sequence at a time."""


def read(tokens: list[int]) -> tuple[list[tuple[int, int, int]], tuple[int, int]]:
    """(position, family, value) of every key, and (family, value) of the last token."""
    keys = []
    for position, token in enumerate(tokens[:-1]):
        if 8 <= token < 56:
            keys.append((position, (token - 8) // 8 % 3, token % 8))
        else:
            assert 104 <= token < 112
    last = tokens[-1]
    assert 56 <= last < 104
    return keys, ((last - 56) // 8 % 3, last % 8)


def answer(tokens: list[int]) -> int:
    """The value of a key of the last token's family, or in its absence the last token's value."""
    keys, (family, value) = read(tokens)
    own = [key for key in keys if key[1] == family]
    return own[0][2] if own else value


def first_key(tokens: list[int]) -> int:
    """The value of the first key."""
    return read(tokens)[0][0][2]
