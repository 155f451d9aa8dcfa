"""Best-fit packing: documents into packs of at most so many tokens, none of them split."""

from bisect import bisect_left, insort
from collections.abc import Sequence


def pack(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Packs as lists of document numbers: the longest document first, each into the fullest pack that has room.

    Documents of one pack keep their order, and packs are ordered by their first document. Equal lengths are
    taken in order, so the result depends on nothing but the arguments. Raises ValueError for a document of no
    tokens or more than `capacity`. Example: [3, 6, 4, 5] into 9 -> [[0, 1], [2, 3]].
    """
    packs: list[list[int]] = []
    open_packs: dict[int, list[int]] = {}  # room left -> packs with exactly so much, the newest last
    rooms: list[int] = []  # the keys of open_packs, ascending
    for document in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        length = lengths[document]
        if not 0 < length <= capacity:
            raise ValueError(f"document {document} has {length} tokens; a pack holds 1 to {capacity}")
        at = bisect_left(rooms, length)
        if at < len(rooms):
            room = rooms[at]
            number = open_packs[room].pop()
            if not open_packs[room]:
                del open_packs[room]
                del rooms[at]
        else:
            room, number = capacity, len(packs)
            packs.append([])
        packs[number].append(document)
        left = room - length
        if left:
            if left not in open_packs:
                open_packs[left] = []
                insort(rooms, left)
            open_packs[left].append(number)
    return sorted((sorted(documents) for documents in packs), key=lambda documents: documents[0])
