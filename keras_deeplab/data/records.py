"""Files of records, TFRecord and ArrayRecord, with access by position."""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from tensorflow.python.lib.io.tf_record import tf_record_random_reader

from keras_deeplab.data.decoding import check_regular
from keras_deeplab.data.faults import FileFault

# A TFRecord file is a series of: length (8 bytes), its CRC (4), the record, its CRC (4).
_LENGTH, _BEFORE, _AFTER = 8, 12, 4


class _TFRecordFile:
    def __init__(self, path: Path) -> None:
        self._path = path
        self._offsets: list[int] = []
        offset, size = 0, path.stat().st_size
        with path.open("rb", buffering=0) as file:
            while offset < size:
                file.seek(offset)
                length = int.from_bytes(file.read(_LENGTH), "little")
                end = offset + _BEFORE + length + _AFTER
                if end > size:
                    whole = len(self._offsets)
                    text = f"{size} bytes, {whole} whole records"
                    raise FileFault("truncated file", text, f"record {whole} up to byte {end}")
                self._offsets.append(offset)
                offset = end

    def __len__(self) -> int:
        return len(self._offsets)

    def __getitem__(self, position: int) -> bytes:
        # A reader is for one thread only, and opens in 50 microseconds.
        return tf_record_random_reader(str(self._path)).read(self._offsets[position])[0]


class _ArrayRecordFile:
    def __init__(self, path: Path) -> None:
        from array_record.python import array_record_module

        # As in `ArrayRecordDataSource`: by default, random access reads megabytes ahead.
        self._reader = array_record_module.ArrayRecordReader(
            str(path), options="readahead_buffer_size:0", file_reader_buffer_size=32768
        )
        if not self._reader.ok():  # otherwise it has no records
            text = f"{path.stat().st_size} bytes"
            raise FileFault("truncated file", text, "an ArrayRecord file, which ends with an index")

    def __len__(self) -> int:
        return self._reader.num_records()

    def __getitem__(self, position: int) -> bytes:
        return self._reader.read([position])[0]


FORMATS = {"tfrecord": _TFRecordFile, "array_record": _ArrayRecordFile}


class Part(NamedTuple):
    """`count` records from `first` on of a file of `total` records."""

    path: Path
    first: int
    count: int
    total: int


class Records:
    """The records of several files as one sequence; a damaged one raises a FileFault when read.

    Attributes:
        faults: The files that are missing, truncated or not of as many records as expected.
    """

    def __init__(self, parts: Sequence[Part], file_format: str) -> None:
        self._parts = parts
        self._ends = list(itertools.accumulate(part.count for part in parts))
        self._files: dict[Path, _TFRecordFile | _ArrayRecordFile] = {}
        self.faults: list[FileFault] = []
        for path, _, _, total in parts:
            try:
                check_regular(path)
                self._files[path] = file = FORMATS[file_format](path)
                if len(file) != total:
                    raise FileFault("truncated file", f"{len(file)} records", f"{total} records")
            except FileFault as fault:
                fault.found = f"{path.name}: {fault.found}"
                self.faults.append(fault)
            except OSError as error:
                text = f"{path.name}: {error.strerror}"
                self.faults.append(FileFault("unreadable file", text, "all files of the data set"))

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def place(self, number: int) -> tuple[Path, int]:
        """Returns the file of a record and its position there."""
        index = bisect.bisect_right(self._ends, number)
        part = self._parts[index]
        return part.path, part.first + number - (self._ends[index] - part.count)

    def __getitem__(self, number: int) -> bytes:
        path, position = self.place(number)
        try:
            return self._files[path][position]
        except Exception as error:  # TensorFlow and ArrayRecord raise different ones
            found = f"{path.name}, record {position}: {error}"
            raise FileFault("unreadable file", found, "a record without damage") from error
