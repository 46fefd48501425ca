"""Unpacks parts of a wheel: unpack.py WHEEL FOLDER PATTERN=PLACE...

A pattern is a member's name or, ending in "/", a folder's; a leading "*" stands for any one path component. What it
matches is written to FOLDER/PLACE, or below it. A pattern that matches nothing is an error.
"""

import os
import shutil
import sys
import zipfile


def place_of(name, rules):
    for pattern, place in rules:
        if pattern.startswith("*/"):
            inner = name.partition("/")[2]
            wanted = pattern[2:]
        else:
            inner, wanted = name, pattern
        if inner == wanted:
            return pattern, place
        if wanted.endswith("/") and inner.startswith(wanted):
            return pattern, os.path.join(place, inner[len(wanted):])
    return None


def main(wheel, folder, *arguments):
    rules = [tuple(argument.split("=", 1)) for argument in arguments]
    unused = {pattern for pattern, _ in rules}
    with zipfile.ZipFile(wheel) as archive:
        for member in archive.infolist():
            found = None if member.is_dir() else place_of(member.filename, rules)
            if found is None:
                continue
            pattern, place = found
            if ".." in place.split("/"):
                sys.exit("%s: refused: %s" % (wheel, member.filename))
            unused.discard(pattern)
            path = os.path.join(folder, place)
            os.makedirs(os.path.dirname(path), exist_ok=True)
            with archive.open(member) as source, open(path, "wb") as target:
                shutil.copyfileobj(source, target, 1 << 20)
    if unused:
        sys.exit("%s: nothing in it matches %s" % (wheel, ", ".join(sorted(unused))))


main(*sys.argv[1:])
