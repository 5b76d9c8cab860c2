"""Hashes of cached blocks, from hashlib over the bytes that squish-kv/src/hash.rs documents.

keys       u8 [8, 32]    the key of each scope of SCOPES: model, adapter, layer group, salt
tokens     i64 [384]     tokens: 0, 1, 2^32 - 1, then multiples of a prime modulo 2^32
chain.BS   u8 [n, 32]    the hashes of the 384 / BS blocks of those tokens under the key of the last scope, for BS of BLOCK_SIZES
"""

import hashlib
import struct

import common
import numpy as np

DOMAIN = b"squish-kv/1"
SCOPES = [
    (b"model", None, 0, None),
    (b"", None, 0, None),
    (b"model", b"adapter", 0, None),
    (b"model", b"", 0, None),
    (b"model", None, 0x01020304, None),
    (b"model", None, 0, b"tenant"),
    (b"model", None, 0, b""),
    (b"model", b"adapter", 1, b"tenant"),
]
BLOCK_SIZES = [1, 3, 16, 32, 64, 128]


def field(data):
    return struct.pack("<Q", len(data)) + data


def optional(data):
    return b"\0" if data is None else b"\1" + field(data)


def key(model, adapter, layer_group, salt):
    scope = field(model) + optional(adapter) + struct.pack("<I", layer_group) + optional(salt)
    return hashlib.sha256(DOMAIN + bytes(32) + scope).digest()


def chain(parent, tokens, block_size):
    hashes = []
    for start in range(0, len(tokens) - block_size + 1, block_size):
        block = struct.pack(f"<{block_size}I", *tokens[start : start + block_size])
        parent = hashlib.sha256(DOMAIN + parent + block).digest()
        hashes.append(parent)
    return hashes


def array(digests):
    return np.frombuffer(b"".join(digests), np.uint8).reshape(-1, 32)


def main():
    tokens = [0, 1, 2**32 - 1] + [i * 2654435761 % 2**32 for i in range(3, 384)]
    keys = [key(*scope) for scope in SCOPES]
    out = {"keys": array(keys), "tokens": np.array(tokens, np.int64)}
    for block_size in BLOCK_SIZES:
        out[f"chain.{block_size}"] = array(chain(keys[-1], tokens, block_size))
    return out


if __name__ == "__main__":
    common.run(main, "squish-kv", "hash", [])
