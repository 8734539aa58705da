"""Names of groups of regions, carried over when the regions are grouped anew.

Another threshold or new scores give other regions and other group numbers. A name belongs to what
its regions show, so it goes to the group that has most of them.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from .store import Box, GroupName


def find_names(given: Iterable[GroupName], groups: Mapping[int, Sequence[Box]]) -> dict[int, str]:
    """Names by number of the groups that are there now.

    given: all names, in the order they were given; a later one of a group replaces an earlier one.
    groups: the regions of each group now. A name whose regions are gone is not shown.
    """
    homes: dict[str, list[tuple[int, Box]]] = {}
    for group, boxes in groups.items():
        for box in boxes:
            homes.setdefault(box[0], []).append((group, box))
    names: dict[int, str] = {}
    for name in given:
        found = Counter(
            group
            for member in name.members
            for group, box in homes.get(member[0], [])
            if _overlap(member, box)
        )
        if found:
            # Of two groups with as many, the one that still has its number.
            best = max(found, key=lambda group: (found[group], group == name.group, -group))
            names[best] = name.name
    return {group: name for group, name in names.items() if name}


def _overlap(a: Box, b: Box) -> bool:
    return a[1] < b[1] + b[3] and b[1] < a[1] + a[3] and a[2] < b[2] + b[4] and b[2] < a[2] + a[4]
