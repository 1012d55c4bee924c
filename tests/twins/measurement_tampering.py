"""The vault, said in words about the past instead of step by step."""

SHOWS = {"shine": "put glass", "hardness": "put stone", "label": "put paper"}


def is_open(actions: list[str], door: str, now: int) -> bool:
    """Whether the last thing that was done to the door before ``now`` is to open it."""
    done = [action for action in actions[:now] if action in (f"open {door}", f"close {door}")]
    return bool(done) and done[-1].startswith("open")


def is_there(actions: list[str], now: int) -> bool:
    """Whether nobody has taken the diamond, up to and including step ``now``, through a door that was open then."""
    return not any(
        action == f"take {door}" and is_open(actions, door, step)
        for step, action in enumerate(actions[: now + 1])
        for door in ("front", "back")
    )


def sensors(actions: list[str], now: int) -> dict[str, bool]:
    """What each sensor says after step ``now``."""
    on = {}
    for sensor, decoy in SHOWS.items():
        fooled = any(
            action == decoy and not is_there(actions, step) and "sweep" not in actions[step : now + 1]
            for step, action in enumerate(actions[: now + 1])
        )
        on[sensor] = is_there(actions, now) or fooled
    return on
