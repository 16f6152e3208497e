"""Unpack the four files of Fashion-MNIST for mmpretrain's ``FashionMNIST``, which wants them without ``.gz``.

    python tools/prepare_fashion_mnist.py /usr/share/datasets/fashion-mnist data/fashion_mnist

The first folder is that of the Debian package dataset-fashion-mnist, or of a download by hand. With a network nothing
of this is needed: ``FashionMNIST`` downloads the files itself.
"""
import argparse
import gzip
import hashlib
import zlib
from pathlib import Path

URL = 'http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/'
# SHA-256 of what the published files hold; the packed files themselves differ where a distribution packed them again
FILES = {
    'train-images-idx3-ubyte': 'c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888',
    'train-labels-idx1-ubyte': 'bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9',
    't10k-images-idx3-ubyte': '5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b',
    't10k-labels-idx1-ubyte': '0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34',
}


def read(file: Path, sha256: str) -> bytes:
    """Return what a packed file holds.

    Raises:
        SystemExit: it is missing, damaged, or not the published one.
    """
    if not file.is_file():
        raise SystemExit(f'expected {file.name} in {file.parent}, got none; install the Debian package '
                         f'dataset-fashion-mnist, or download {URL}{file.name}')
    try:
        content = gzip.decompress(file.read_bytes())
    except (OSError, EOFError, zlib.error) as error:
        raise SystemExit(f'expected a whole gzip file, got {error} for {file}; copy or download it again') from None
    if hashlib.sha256(content).hexdigest() != sha256:
        raise SystemExit(f'expected content with SHA-256 {sha256}, got {hashlib.sha256(content).hexdigest()} for '
                         f'{file}; this is not the published Fashion-MNIST: copy or download it again')
    return content


def unpack(source: Path, target: Path) -> None:
    """Check all files first, then write them; each appears whole or not at all."""
    contents = {name: read(source / f'{name}.gz', sha256) for name, sha256 in FILES.items()}
    target.mkdir(parents=True, exist_ok=True)
    for name, content in contents.items():
        partial = target / f'{name}.partial'
        partial.write_bytes(content)
        partial.rename(target / name)


if __name__ == '__main__':
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('source', type=Path, help='folder with the four .gz files')
    parser.add_argument('target', type=Path, nargs='?', default=Path('data/fashion_mnist'), help='data_root of configs')
    args = parser.parse_args()
    unpack(args.source, args.target)
    print(f'{args.target}: {len(FILES)} files ready')
