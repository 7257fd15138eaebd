"""The detectors of mistakes in data sets: each looks at the evidence and yields its findings."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator

import numpy as np

from keras_deeplab.data.diagnostics.alignment import REACH, misalignment
from keras_deeplab.data.diagnostics.evidence import Evidence
from keras_deeplab.data.diagnostics.finding import Finding
from keras_deeplab.data.difference_hash import near_pairs, nearest
from keras_deeplab.data.formats import LUMA
from keras_deeplab.data.source import IGNORE_LABEL, voc_colors

Detector = Callable[[Evidence], Iterator[Finding]]
VOID_NAMES = ("void", "unlabeled", "unlabelled", "ignore", "ignored", "unknown", "dontcare")
FOREGROUND = 255  # of binary masks
STRIDE = 16  # the default output stride of the models
RECEPTIVE_FIELD = 1024  # about that of the default models, without image pooling
MIN_SEQUENCE = 5  # images with a prefix that are a sequence
# Frames of a recording differ in less than this share of the bits in which any two images do. In a
# random split of CamVid's frames that holds for 26 to 35 % of the images, in its own split for
# none; for a camera that does not move for 7 %.
FRAMES = 0.35
FRAMES_SHARE = 0.15
COMPARED = 256  # images of a split that are compared with train


def findings(evidence: Evidence) -> tuple[Finding, ...]:
    """Returns what all detectors find, the most certain first."""
    found = [finding for detector in DETECTORS for finding in detector(evidence)]
    return tuple(sorted(found, key=lambda finding: -finding.confidence))


def _values(evidence: Evidence) -> list[int]:
    return np.flatnonzero(evidence.totals).tolist()


def _resized_labels(evidence: Evidence) -> Iterator[Finding]:
    """Values in between along edges, of several values."""
    between = evidence.structure.between
    share = between.sum() / max(1, evidence.structure.changes)
    several = np.flatnonzero(between > 0.02 * between.sum())
    wide = evidence.structure.narrower_than(4)[several] < 0.5
    if share > 0.1 and (len(several) > 1 or wide.any() or len(_values(evidence)) > 8):
        yield Finding(
            "labels resized bilinearly",
            f"along edges {100 * share:.0f} % of the pixels have a value between those of their "
            "neighbours, which are other classes or none",
            "Resize label maps with nearest neighbour (`Image.NEAREST`), from the originals",
            min(0.99, 0.75 + share),
            tuple(f"value {value}" for value in several),
        )


def _off_by_one(evidence: Evidence) -> Iterator[Finding]:
    """Values 1..K where 0..K-1 are expected."""
    values = [value for value in _values(evidence) if value != IGNORE_LABEL]
    count = len(values)
    if count < 2 or values != list(range(1, count + 1)):
        return
    code = evidence.code
    known = code is not None and all(code.known[values])
    if known and 0 not in code.values:
        return  # the values are listed
    classes = len(code.values) if code else count
    yield Finding(
        "labels off by one",
        f"the values are 1 to {count}, and 0 never occurs"
        + (f", with {classes} classes" if code else ""),
        f'Write "values": {values} into dataset.json, or subtract 1 from all label maps',
        0.95 if not known or classes == count + 1 else 0.6,
    )


def _swapped_colors(evidence: Evidence) -> Iterator[Finding]:
    """Colours that are listed the other way round."""
    unknown = {color for color in evidence.colors if len(set(color)) > 1} - evidence.listed_colors
    turned = {color for color in unknown if color[::-1] in evidence.listed_colors}
    if unknown and len(turned) >= 0.9 * len(unknown):
        yield Finding(
            "colours in BGR",
            f"{len(turned)} of {len(unknown)} unknown colours of the label maps are listed in "
            "dataset.json with red and blue exchanged",
            "Exchange red and blue: OpenCV writes and reads BGR (`image[..., ::-1]`)",
            0.98,
            tuple(str(list(color)) for color in sorted(turned)),
        )


def _lost_palette(evidence: Evidence) -> Iterator[Finding]:
    """Grey values that are the luminance of a palette's colours."""
    colors = (*evidence.listed_colors, *voc_colors(21), (224, 224, 192))
    grey = set(((np.array(colors) @ LUMA + 2**15) >> 16).tolist())
    values = [value for value in _values(evidence) if value not in (0, IGNORE_LABEL)]
    if len(values) >= 2 and set(values) <= grey and values != list(range(1, len(values) + 1)):
        yield Finding(
            "palette lost",
            "the values are the grey values of a palette's colours: files with a palette were "
            "converted to grey",
            "Take the original files: their indices are the labels",
            0.9 if len(values) >= 3 else 0.8,
            tuple(map(str, values)),
        )


def _void_class(evidence: Evidence) -> Iterator[Finding]:
    """A class that is named as void, or that is the border of all others."""
    if evidence.info is None or evidence.code is None:
        return
    advice = 'Give it to "ignore_label" in dataset.json'
    totals, changes = evidence.totals, max(1, evidence.structure.changes)
    for label, name in enumerate(evidence.info.classes):
        value = evidence.code.values[label]
        if re.sub("[^a-z]", "", name.lower()) in VOID_NAMES and totals[value]:
            text = f"the class {name!r} is learnt and scored as the others"
            yield Finding("void as a class", text, advice, 0.9, (f"value {value}",))
            return
    values = [value for value in evidence.code.values if totals[value]]
    for value in values if len(values) > 2 else ():
        touched = evidence.structure.touching[value] / changes
        share = totals[value] / totals.sum()
        if touched > 0.95 and share < 0.2 and evidence.structure.narrower_than(STRIDE)[value] > 0.9:
            text = f"the class of value {value} has {100 * share:.1f} % of the pixels, all in thin "
            text += "lines between the others"
            yield Finding("void as a class", text, f"If it marks borders: {advice}", 0.8)


def _foreground_255(evidence: Evidence) -> Iterator[Finding]:
    """Masks of 0 and 255 where 255 is ignored."""
    code = evidence.code
    ignored = code is not None and FOREGROUND in code.ignored
    if ignored and _values(evidence) == [0, FOREGROUND]:
        share = evidence.totals[FOREGROUND] / evidence.totals.sum()
        yield Finding(
            "255 as foreground",
            f"the values are 0 and 255 only, and 255 ({100 * share:.0f} % of the pixels) is "
            "ignored: nothing but the background is learnt",
            'Write "values": [0, 255] into dataset.json',
            0.97,
        )


def _swapped_files(evidence: Evidence) -> Iterator[Finding]:
    """Photographs as label maps, and label maps as images."""
    if len(evidence.swapped) > 0.5 * evidence.looked_at:
        yield Finding(
            "images and label maps exchanged",
            f"{len(evidence.swapped)} of {evidence.looked_at} images have few colours, and their "
            "label maps have many",
            "Exchange the folders `images` and `labels`",
            0.995,
            tuple(evidence.swapped),
        )


def _empty_masks(evidence: Evidence) -> Iterator[Finding]:
    """Label maps of one class in a data set of objects on a background."""
    if evidence.code is None:
        return
    names = [name for part in evidence.names.values() for name in part]
    counts = np.concatenate([*evidence.counts.values(), np.zeros((0, 256), np.int64)])
    there = counts[:, list(evidence.code.values)] > 0
    alone = there.sum(1) == 1
    common = np.bincount(np.argmax(there[alone], 1)).argmax() if alone.any() else 0
    empty = alone & there[:, common]
    if len(counts) >= 4 and 0.3 <= empty.mean() < 1:
        value = evidence.code.values[common]
        yield Finding(
            "empty label maps",
            f"{empty.sum()} of {len(counts)} label maps have the value {value} only",
            "Check whether they were annotated. If so, `class_focus` of the recipe shows the "
            "other classes more often",
            0.8 if empty.mean() >= 0.4 else 0.5,
            tuple(name for name, one in zip(names, empty, strict=True) if one),
        )


def _misaligned(evidence: Evidence) -> Iterator[Finding]:
    """Edges that agree elsewhere."""
    found = misalignment(evidence.agreements)
    if found is None:
        return
    if found.mirror:
        yield Finding(
            "label maps mirrored",
            f"the edges of images and label maps agree if label maps are mirrored {found.mirror}",
            "Mirror them, and check the program that wrote them",
            0.95,
        )
    else:
        sides = [(found.down, "down", "up"), (found.right, "to the right", "to the left")]
        moves = [
            f"{abs(n)} pixels {'or more ' * (abs(n) == REACH)}{plus if n > 0 else minus}"
            for n, plus, minus in sides
            if n
        ]
        yield Finding(
            "label maps shifted",
            f"the edges of images and label maps agree if label maps move {' and '.join(moves)}",
            "Check cropping and padding in the program that wrote them",
            0.9,
        )


def _duplicates(evidence: Evidence) -> Iterator[Finding]:
    """Images that are in two splits, or twice in one."""
    splits = np.repeat(list(evidence.hashes), [len(one) for one in evidence.hashes.values()])
    names = [name for split in evidence.hashes for name in evidence.names[split]]
    inside, copies = 0, {}  # of an image of another split
    for pairs in near_pairs([one for hashes in evidence.hashes.values() for one in hashes]):
        is_inside = splits[pairs[:, 0]] == splits[pairs[:, 1]]
        inside += int(np.count_nonzero(is_inside))
        ones, others = pairs[~is_inside].T
        found, first = np.unique(others, return_index=True)
        copies = dict(zip(found.tolist(), ones[first].tolist(), strict=True)) | copies
    if copies:
        places = " and ".join(sorted(set(splits[list(copies)])))
        yield Finding(
            "images in two splits",
            f"{len(copies)} images of {places} are, almost "
            "or exactly, also in another split: scores on them say nothing about new images",
            "Leave them in one split",
            0.95,
            tuple(f"{names[one]} = {names[other]}" for other, one in sorted(copies.items())),
        )
    if inside:
        text = f"{inside} pairs of images in a split are almost the same"
        yield Finding("images twice in a split", text, "Keep one of each", 0.5)


def _sequences(evidence: Evidence) -> Iterator[Finding]:
    """Sequences, named by prefixes, of which parts train and parts validate."""
    prefixes = {
        split: Counter(re.sub(r"[\d]+\D*$", "", name.rsplit("/", 1)[-1]) for name in names)
        for split, names in evidence.names.items()
    }
    train = prefixes.get("train", Counter())
    everything = sum(prefixes.values(), Counter())
    for split in ("val", "test"):
        shared = [prefix for prefix in prefixes.get(split, ()) if prefix and prefix in train]
        long = [prefix for prefix in shared if everything[prefix] >= MIN_SEQUENCE]
        if long and len(everything) > 1:
            count = sum(prefixes[split][prefix] for prefix in long)
            yield Finding(
                "sequences in two splits",
                f"{count} images of {split} have names that begin like images of train: if they "
                "are frames of the same recording, the scores are better than on new ones",
                "Keep each recording in one split",
                0.7,
                tuple(f"{prefix}*" for prefix in long),
            )


def _frames(evidence: Evidence) -> Iterator[Finding]:
    """Images of other splits that are about as close to one of train as frames of a recording."""
    train = evidence.hashes.get("train", [])
    for split in [split for split in evidence.hashes if split != "train"]:
        hashes = evidence.hashes[split]
        step = -(-len(hashes) // COMPARED)
        places, distances = nearest(hashes[::step], train) if hashes else ((), np.zeros(0))
        close = np.flatnonzero(distances < FRAMES)
        if len(close) >= max(2, FRAMES_SHARE * len(distances)):
            names = evidence.names[split][::step]
            yield Finding(
                "frames of a recording in two splits",
                f"{len(close)} of {len(distances)} images of {split} have a neighbour in train "
                "that is much more alike than other images are: a random split of videos or image "
                "series gives scores that new recordings will not have",
                "Keep each recording in one split",
                0.85,
                tuple(names[places[place]] for place in close),
            )


def _absent_classes(evidence: Evidence) -> Iterator[Finding]:
    """Classes that are scored, but not trained, or the other way round."""
    if evidence.info is None or evidence.code is None or "train" not in evidence.counts:
        return
    names = evidence.info.classes
    there = {
        split: counts.sum(0)[list(evidence.code.values)] > 0
        for split, counts in evidence.counts.items()
    }
    for split in there:
        lost = [n for n, a, b in zip(names, there["train"], there[split], strict=True) if b > a]
        if lost:
            text = f"classes of {split} do not occur in train, so that they are never predicted"
            advice = "Move images with them into train"
            yield Finding("classes absent from train", text, advice, 0.95, tuple(lost))
    never = ~np.any(list(there.values()), 0)
    if never.any() and not never.all():
        lost = tuple(name for name, one in zip(names, never, strict=True) if one)
        advice = "Check their names and values, or leave them out"
        yield Finding("classes that never occur", "no label map has them", advice, 0.6, lost)


def _sizes_of_objects(evidence: Evidence) -> Iterator[Finding]:
    """Classes whose areas are narrower than a cell of the feature map, or wider than its field."""
    if evidence.info is None or evidence.code is None:
        return
    values = list(evidence.code.values)
    there = evidence.structure.widths.sum(1)[values] > 0

    def classes(share: np.ndarray, limit: float) -> tuple[str, ...]:
        found = np.flatnonzero(there & (share[values] > limit)).tolist()
        return tuple(f"{evidence.info.classes[k]} {100 * share[values[k]]:.0f} %" for k in found)

    thin = classes(evidence.structure.narrower_than(STRIDE), 0.8)
    large = classes(1 - evidence.structure.narrower_than(RECEPTIVE_FIELD), 0.5)
    if thin:
        yield Finding(
            "objects thinner than the output stride",
            f"more than 80 % of the pixels of a class are in parts narrower than {STRIDE} pixels, "
            "the output stride",
            "Use the output stride 8, or DeepLabV3+ with `detail_layer`, or larger `scales`",
            0.4,
            thin,
        )
    if large:
        yield Finding(
            "objects larger than the receptive field",
            f"more than half of the pixels of a class are in parts wider than {RECEPTIVE_FIELD} "
            "pixels, about the receptive field of the default models, so that no edge is in reach",
            "Reduce images and label maps (label maps by nearest neighbour; an example is in "
            "docs/questions.md), or use smaller `scales`",
            0.4,
            large,
        )


DETECTORS: tuple[Detector, ...] = (
    _resized_labels,
    _off_by_one,
    _swapped_colors,
    _lost_palette,
    _void_class,
    _foreground_255,
    _swapped_files,
    _empty_masks,
    _misaligned,
    _duplicates,
    _sequences,
    _frames,
    _absent_classes,
    _sizes_of_objects,
)
