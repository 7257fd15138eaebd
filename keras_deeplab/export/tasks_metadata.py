"""Metadata by which the ImageSegmenter of MediaPipe Tasks knows the classes of a LiteRT file."""

from __future__ import annotations

import re
import zipfile
from pathlib import Path

from keras_deeplab.runtimes import Metadata

TASKS_METADATA = "TFLITE_METADATA"  # the name of the metadata inside a file
LABELS_FILE = "labels.txt"
AXIS_LABELS = 2  # TENSOR_AXIS_LABELS of the enum AssociatedFileType


def fits_segmenter(metadata: Metadata) -> bool:
    """Whether ImageSegmenter computes right masks from a file.

    It takes a size that is not fixed as 1x1, labels as scores of one class, and the first of two
    outputs as float32, so that it reads beyond the end of labels.
    """
    *sides, channels = metadata.image_shape
    return None not in sides and channels == 3 and metadata.outputs == ("probabilities",)


def tasks_metadata() -> bytes:
    """Returns a ModelMetadata of one input, and one output with a file of labels.

    The numbers are those of the fields in MediaPipe's `metadata_schema.fbs`. Images of uint8 need
    no normalization options.
    """
    from flatbuffers import Builder  # a requirement of LiteRT

    builder = Builder()

    def table(fields: int, offsets: dict[int, int]) -> int:
        builder.StartObject(fields)
        for field, offset in offsets.items():
            builder.PrependUOffsetTRelativeSlot(field, offset, 0)
        return builder.EndObject()

    def list_of(item: int) -> int:
        builder.StartVector(4, 1, 4)
        builder.PrependUOffsetTRelative(item)
        return builder.EndVector()

    name = builder.CreateString(LABELS_FILE)
    builder.StartObject(5)  # AssociatedFile
    builder.PrependUOffsetTRelativeSlot(0, name, 0)
    builder.PrependInt8Slot(2, AXIS_LABELS, 0)
    labels = list_of(builder.EndObject())
    inputs, outputs = list_of(table(7, {})), list_of(table(7, {6: labels}))  # TensorMetadata
    subgraphs = list_of(table(10, {2: inputs, 3: outputs}))  # SubGraphMetadata
    builder.Finish(table(8, {3: subgraphs}), b"M001")  # ModelMetadata
    return bytes(builder.Output())


def append_labels(path: Path, metadata: Metadata) -> None:
    """Appends the names of the classes, one in a line, as the archive that MediaPipe looks for.

    Without names they are the numbers. Line breaks inside names become spaces.
    """
    names = metadata.info.classes if metadata.info else map(str, range(metadata.num_classes))
    lines = [re.sub(r"[\r\n]+", " ", name) + "\n" for name in names]
    with zipfile.ZipFile(path, "a") as archive:  # uncompressed, as MediaPipe requires
        archive.writestr(zipfile.ZipInfo(LABELS_FILE), "".join(lines).encode(errors="replace"))
