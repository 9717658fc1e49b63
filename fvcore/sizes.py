"""Amounts of memory, read and written with their unit: `8GiB`."""

import re

UNITS = {"B": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40}


def n_bytes(text: object) -> int:
    """`8GiB`, `1.5 GiB` -> bytes. Raises ValueError for a number without a unit, another unit, or less than a byte."""
    found = re.fullmatch(rf"(\d{{1,18}}(?:\.\d{{1,9}})?) ?({'|'.join(UNITS)})", str(text).strip())
    amount = int(float(found[1]) * UNITS[found[2]]) if found else 0
    if amount < 1:
        raise ValueError(f"expected an amount with its unit ({', '.join(UNITS)}), such as 8GiB")
    return amount


def exact(amount: int) -> str:
    """Bytes in the largest unit that leaves no rest: what `n_bytes` reads as the same amount."""
    unit = max((unit for unit, size in UNITS.items() if amount % size == 0), key=UNITS.__getitem__)
    return f"{amount // UNITS[unit]}{unit}"
