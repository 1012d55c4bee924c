"""Counts of tokens and means over patches, one number at a time."""

from collections import Counter


def counts(rows, trusted, most):
    """Per row: count of each of the ``most`` - 2 most frequent trusted tokens by id, of the others, and the length."""
    seen = Counter(int(token) for row in trusted for token in row)
    kept = sorted(sorted(seen, key=lambda token: (-seen[token], token))[: most - 2])
    found = []
    for row in rows:
        tokens = [int(token) for token in row]
        own = [sum(token == word for token in tokens) for word in kept]
        found.append([*own, len(tokens) - sum(own), len(tokens)])
    return kept, found


def patches(image, height, width):
    """Means of an image (channels, H, W) over a grid of patches, which overlap where the sizes don't divide."""
    found = []
    for channel in image.tolist():
        for i in range(height):
            for j in range(width):
                rows = range(i * len(channel) // height, -(-((i + 1) * len(channel)) // height))
                columns = range(j * len(channel[0]) // width, -(-((j + 1) * len(channel[0])) // width))
                values = [channel[row][column] for row in rows for column in columns]
                found.append(sum(values) / len(values))
    return found
