"""Changes of a valid file such as other programs, editors and disks make, drawn from a seed."""

from __future__ import annotations

import copy
import json
import random
from typing import Any
from xml.etree import ElementTree

NUMBERS = [0, 1, -1, 2, 0.5, 1e9, -1e308, 2**31, 2**63, 2**64, -(2**63) - 1, 10**400, float("nan"), float("inf")]
TEXTS = ["", "0", "1", " ", "cat", "None", "\0", "\ud800", "é€😀", "a" * 5000, "../x", "/", "-1", "1.5", "nan", "\n"]
OTHERS: list[Any] = [None, True, False, [], {}, [[]], [None], {"id": 1}, [1, 2, 3], [[1, 2, 3, 4, 5, 6]]]


def mutate_json(text: str, seed: int) -> bytes:
    """A JSON file with one to three changes: of values and keys, or every fifth time of bytes."""
    rng = random.Random(seed)
    if seed % 5 == 4:
        return mutate_bytes(text.encode(), rng)
    tree = json.loads(text)
    for _ in range(rng.choice([1, 1, 1, 2])):
        places = _places(tree)
        numbers = [(parent, key) for parent, key in places if isinstance(parent[key], int | float)]
        _change(*rng.choice(numbers if numbers and rng.random() < 0.5 else places), rng)
    return json.dumps(tree).encode()


def mutate_xml(text: str, seed: int) -> bytes:
    """An XML file with one or two changes: of elements and their texts, or every fifth time each of words or bytes."""
    rng = random.Random(seed)
    if seed % 5 > 2:
        return mutate_text(text, seed)
    tree = ElementTree.fromstring(text)
    for _ in range(rng.choice([1, 1, 1, 2])):
        parent = rng.choice([element for element in tree.iter() if len(element)] or [tree])
        if len(parent):
            _change_element(parent, rng.randrange(len(parent)), rng)
    return ElementTree.tostring(tree, rng.choice(["utf-8", "utf-16", "us-ascii"]))


def mutate_text(text: str, seed: int) -> bytes:
    """A text file with one to three changes: of numbers, words, tags and lines, or of bytes."""
    rng = random.Random(seed)
    if seed % 5 == 4:
        return mutate_bytes(text.encode(), rng)
    for _ in range(rng.choice([1, 1, 2, 3])):
        text = _change_text(text, rng)
    return text.encode("utf-8", "surrogatepass")


def mutate_bytes(data: bytes, rng: random.Random) -> bytes:
    place, kind = rng.randrange(len(data)), rng.randrange(9)
    end = min(len(data), place + rng.choice([1, 2, 30, 500]))
    if kind == 0:
        return data[:place]
    if kind == 1:
        return data[:place] + data[end:]
    if kind == 2:
        return data[:place] + data[place:end] * 2 + data[end:]
    if kind == 3:
        return bytes([*data[:place], data[place] ^ 1 << rng.randrange(8), *data[place + 1 :]])
    if kind == 4:
        return data[:place] + rng.choice([b"\0", b"\xff", b"\xc3", b"\xed\xa0\x80", b'"', b"<", b"9"]) + data[place:]
    if kind == 5:
        return rng.choice([b"\xef\xbb\xbf", b"\xff\xfe", b" ", b"\x1f\x8b"]) + data
    if kind == 6:
        return data.decode().encode(rng.choice(["utf-16", "utf-16-le", "utf-32", "utf-7", "cp037"]))
    if kind == 7:
        return data + data[: rng.choice([1, 100, len(data)])]
    return b""


def _places(tree: Any) -> list[tuple[Any, Any]]:
    """Every (parent, key) in a tree of JSON; of a list of numbers one, as the others are of its kind."""
    found = []
    for key, value in list(tree.items() if isinstance(tree, dict) else enumerate(tree)):
        if isinstance(value, dict | list) or isinstance(tree, dict) or not key:
            found.append((tree, key))
        if isinstance(value, dict | list):
            found += _places(value)
    return found


def _change(parent: Any, key: Any, rng: random.Random) -> None:
    value, kind = parent[key], rng.randrange(10)
    if kind == 0:
        del parent[key]
    elif kind == 1:
        if isinstance(parent, list):
            parent.insert(rng.randrange(len(parent) + 1), copy.deepcopy(value))
        else:
            parent[rng.choice([key.upper(), key + "s", ""])] = parent.pop(key)
    elif kind == 2:
        others = list(parent) if isinstance(parent, dict) else list(range(len(parent)))
        other = rng.choice(others)
        parent[key], parent[other] = parent[other], value
    elif kind in (3, 4, 5, 6, 7) and isinstance(value, int | float):
        parent[key] = rng.choice(
            [-value, value * 1000, value + 1, value / 100, value + 0.5, float(value), value - 1000]
        )
    elif kind in (4, 5, 6) and isinstance(value, str) and value:
        place = rng.randrange(len(value))
        parent[key] = rng.choice([value[:place], value[place:], value * 2, value[:place] + "~" + value[place:]])
    elif kind in (4, 5, 6) and isinstance(value, list) and value:
        place = rng.randrange(len(value))
        parent[key] = rng.choice([value[:place], value[place:], value * 2, value[::-1]])
    elif kind == 7:
        parent[key] = rng.choice([[value], {"value": value}, str(value)])
    else:
        parent[key] = rng.choice(rng.choice([NUMBERS, TEXTS, OTHERS]))


def _change_element(parent: ElementTree.Element, place: int, rng: random.Random) -> None:
    element, kind = parent[place], rng.randrange(10)
    if kind == 0:
        parent.remove(element)
    elif kind == 1:
        parent.insert(rng.randrange(len(parent) + 1), copy.deepcopy(element))
    elif kind == 2:
        element.tag = rng.choice([element.tag.upper(), element.tag + "s", "object", "bndbox"])
    elif kind == 3:
        wrapper = ElementTree.Element(rng.choice(["part", "objects", element.tag]))
        parent[place] = wrapper
        wrapper.append(element)
    elif len(element):
        element[:] = rng.choice([element[::-1], element[:-1], element[1:]])
    else:
        element.text = _change_text(element.text or " ", rng).translate(dict.fromkeys([*range(9), *range(11, 32)], "?"))


def _change_text(text: str, rng: random.Random) -> str:
    """One word, tag or line is replaced, removed, doubled or moved."""
    words = [*_spans(text, rng.choice(["<>", ">", "\n", " <>\n"]))]
    start, end = rng.choice(words)
    part, kind = text[start:end], rng.randrange(6)
    new = {
        0: "",
        1: part * 2,
        2: part[: rng.randrange(len(part) + 1)],
        3: str(rng.choice(NUMBERS[:-3] + NUMBERS[-2:])),
        4: rng.choice(TEXTS).replace("\ud800", "?"),
    }.get(kind, part.swapcase())
    if kind > 2 and part.strip("-.").isdigit():
        new = rng.choice(
            [
                f"-{part}",
                f"{part}.5",
                f"{part}000",
                f"0.{part}",
                f" {part} ",
                f"1{part}",
                f"{part}e1",
                f"{part}_0",
                "1",
                "17",
            ]
        )
    return text[:start] + new + text[end:]


def _spans(text: str, separators: str) -> list[tuple[int, int]]:
    """Where the parts between any of some characters lie."""
    spans, start = [], 0
    for place, character in enumerate(text + separators[0]):
        if character in separators:
            if place > start:
                spans.append((start, place))
            start = place + 1
    return spans or [(0, len(text))]
