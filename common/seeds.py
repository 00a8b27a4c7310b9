"""Seeds of random draws. Every draw has a seed of its own, which is derived from the purpose of the draw."""

import hashlib
import struct

import torch


def derive_seed(*parts: int | str) -> int:
    """A 63-bit seed from integers and words.

    The same parts give the same seed on every machine. Distinct parts give independent streams of random numbers.
    """
    text = struct.pack("<q", len(parts)) + b"\0".join(str(part).encode() for part in parts)
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little") >> 1


def image_keys(images: torch.Tensor, key: bytes = b"") -> torch.Tensor:
    """A hash of each image: [n, 3, H, W] in [0, 1] -> int64 [n], never negative.

    Equal images have equal hashes on every machine. Images are rounded to 8 bits a channel first, so that a change below half
    a grey level, such as another machine's rounding, does not change the hash. `key` has up to 64 bytes. Without it nobody can
    compute the hash of an image, nor look for two images with the same hash.
    """
    rows = (images * 255).round().to(torch.uint8).flatten(1).cpu().numpy()
    digests = (hashlib.blake2b(row.tobytes(), digest_size=8, key=key).digest() for row in rows)
    return torch.tensor([int.from_bytes(digest, "little") >> 1 for digest in digests], dtype=torch.int64)
