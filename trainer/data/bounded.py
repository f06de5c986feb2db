"""Arrays and tables in files of others: read only where a file holds as much as it claims.

A header of 100 bytes can claim 10^18 numbers, and a compressed file of a kilobyte can unpack to gigabytes.
"""

from __future__ import annotations

import io
import math
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any, Literal

import numpy as np
from numpy.typing import NDArray

#: what a malformed file raises in the functions of this module
MALFORMED = (OSError, ValueError, KeyError, EOFError, OverflowError, NotImplementedError, zipfile.BadZipFile)
#: values in one row of a list column, at most: times of the frames of a video
_VALUES_PER_ROW = 4096
#: version of the format -> bytes of the header's length, and what reads the header
_HEADERS = {
    (1, 0): (2, np.lib.format.read_array_header_1_0),
    (2, 0): (4, np.lib.format.read_array_header_2_0),
}
_HEADER_BYTES = 1 << 14  # numpy itself refuses those of more than 10,000


def map_npy(path: Path, mode: Literal["r", "c"]) -> NDArray[Any]:
    """The .npy file at `path`, memory-mapped. Raises one of MALFORMED: no such file, or it claims what it has not."""
    with path.open("rb") as stream:
        _check_header(stream, path.stat().st_size)
    array: NDArray[Any] = np.load(path, mmap_mode=mode, allow_pickle=False)
    return array


def read_npz(source: Path | IO[bytes]) -> Mapping[str, NDArray[Any]]:
    """The arrays of an .npz file as `np.savez` writes it. Raises one of MALFORMED, also if any of it is compressed."""
    with zipfile.ZipFile(source) as archive:
        for member in archive.infolist():
            if member.compress_type != zipfile.ZIP_STORED or member.file_size != member.compress_size:
                raise ValueError(f"{member.filename} is compressed, and what it unpacks to is not known")
        return {name.removesuffix(".npy"): _array(archive.read(name)) for name in archive.namelist()}


def check_parquet(source: Path | IO[bytes], rows: int) -> None:
    """Raise ValueError unless the Parquet file has so many rows, by its own account, and no long lists in them.

    Equal values take no room in it: a file of a kilobyte may have 10^9 rows.
    """
    import pyarrow as pa  # not every reader of arrays needs it
    import pyarrow.parquet as pq

    try:
        found = pq.read_metadata(source)
    except pa.ArrowInvalid as error:
        raise ValueError(str(error)) from None
    if found.num_rows != rows:
        raise ValueError(f"it has {found.num_rows:,} rows, and not {rows:,}")
    for group in map(found.row_group, range(found.num_row_groups)):
        for column in map(group.column, range(group.num_columns)):
            if column.num_values > _VALUES_PER_ROW * max(1, group.num_rows):
                raise ValueError(f"{column.path_in_schema} has {column.num_values:,} values in {group.num_rows:,} rows")


def _array(data: bytes) -> NDArray[Any]:
    shape, fortran, dtype, start = _check_header(io.BytesIO(data), len(data))
    flat = np.frombuffer(data, dtype, math.prod(shape), start)
    return flat.reshape(shape, order="F" if fortran else "C").copy()


def _check_header(stream: IO[bytes], size: int) -> tuple[tuple[int, ...], bool, np.dtype[Any], int]:
    """Shape, whether in Fortran's order, dtype, and where the numbers begin."""
    version = np.lib.format.read_magic(stream)
    if version not in _HEADERS:
        raise ValueError(f"format version {version} of .npy is not read; save the array again with numpy.save")
    counted, read_header = _HEADERS[version]
    length = int.from_bytes(stream.read(counted), "little")
    if length > _HEADER_BYTES:
        raise ValueError(f"its header claims {length:,} bytes")
    stream.seek(-counted, io.SEEK_CUR)
    shape, fortran, dtype = read_header(stream)
    held = size - stream.tell()
    if dtype.hasobject or any(n < 0 for n in shape) or math.prod(shape) * dtype.itemsize != held:
        raise ValueError(f"its header claims {shape} of {dtype}, and it holds {held:,} bytes")
    return shape, fortran, dtype, stream.tell()
