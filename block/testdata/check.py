#!/usr/bin/env python3
"""Computes the test vectors beside it from their inputs, with the standard
library alone, and exits 1 if any result differs. It is the second opinion on
what package block says, and an example for implementers."""

import hashlib
import json
import math
import os
import struct
import sys

HERE = os.path.dirname(os.path.abspath(__file__))
M64 = (1 << 64) - 1
checked = failed = 0


def load(name):
    with open(os.path.join(HERE, name), encoding="utf-8") as f:
        return json.load(f)


def check(what, got, want):
    global checked, failed
    checked += 1
    if got != want:
        failed += 1
        print(f"{what}: computed {got}, the file has {want}", file=sys.stderr)


# File IDs

def derive(mount, path, tag, length, block_size):
    b = b"millrace/file-id/v1\0" + struct.pack("<Q", mount)
    for field in (path, tag):
        b += struct.pack("<I", len(field)) + field
    b += struct.pack("<QQ", length, block_size)
    digest = bytearray(hashlib.sha256(b).digest()[:16])
    digest[0] &= 0x7F
    return bytes(digest)


def check_file_ids():
    v = load("fileid.json")
    for c in v["derived"]:
        got = derive(int(c["mount_id"]), bytes.fromhex(c["path_hex"]), bytes.fromhex(c["tag_hex"]),
                     int(c["length"]), int(c["block_size"]))
        check("file ID, " + c["name"], got.hex(), c["file_id"])
    for c in v["minted"]:
        b = bytearray.fromhex(c["random_hex"])
        b[0] |= 0x80
        check("minted file ID", b.hex(), c["file_id"])


# Tickets

PAGE = 256 << 10


def take(b, bound):
    if len(b) < 4:
        raise ValueError("cut")
    (n,) = struct.unpack_from("<I", b)
    if n > bound or n > len(b) - 4:
        raise ValueError("field does not fit")
    return b[4:4 + n], b[4 + n:]


def parse_ticket(b):
    if len(b) < 56:
        raise ValueError("cut")
    version, flags, reserved, key, mount, length, block_size, expiry = struct.unpack_from("<BBHIQQQQ", b)
    file_id, rest = b[40:56], b[56:]
    if version != 1 or flags > 1 or reserved:
        raise ValueError("version or flags")
    path, rest = take(rest, 64 << 10)
    tag, rest = take(rest, 1 << 10)
    identity, rest = take(rest, 1 << 10)
    signature, rest = take(rest, 1 << 10)
    if rest:
        raise ValueError("bytes too many")
    if length > 1 << 60 or expiry > 1 << 53:
        raise ValueError("length or expiry")
    if not PAGE <= block_size <= 1 << 30 or block_size % PAGE or length // block_size >= (1 << 32) - 1:
        raise ValueError("block size")
    if not file_id[0] & 0x80 and file_id != derive(mount, path, tag, length, block_size):
        raise ValueError("file ID")
    return {
        "mount_id": str(mount), "path_hex": path.hex(), "tag_hex": tag.hex(), "length": str(length),
        "block_size": str(block_size), "file_id": file_id.hex(), "expiry_unix_ms": str(expiry),
        "unsettled": bool(flags & 1), "key_id": key, "identity_hex": identity.hex(),
        "signature_hex": signature.hex(), "unsigned_hex": b[:len(b) - 4 - len(signature)].hex(),
    }


def check_tickets():
    v = load("ticket.json")
    for c in v["good"]:
        want = {k: x for k, x in c.items() if k not in ("name", "encoded_hex")}
        check("ticket, " + c["name"], parse_ticket(bytes.fromhex(c["encoded_hex"])), want)
    for c in v["bad"]:
        try:
            got = parse_ticket(bytes.fromhex(c["encoded_hex"]))
        except ValueError:
            got = "refused"
        check("bad ticket, " + c["name"], got, "refused")


# Geometry

def touched(length, unit, offset, n):
    end = min(offset + n, length)
    if end <= offset:
        return str(offset // unit), str(offset // unit)
    return str(offset // unit), str(-(-end // unit))


def last(length, unit):
    if length == 0:
        return {"offset": "0", "length": "0"}
    start = (length - 1) // unit * unit
    return {"offset": str(start), "length": str(length - start)}


def check_geometry():
    v = load("geometry.json")
    check("page size", int(v["page_size"]), PAGE)
    for c in v["geometries"]:
        length, size = int(c["length"]), int(c["block_size"])
        what = f"geometry {length}/{size}"
        check(what, (-(-length // size), -(-length // PAGE)), (int(c["blocks"]), int(c["pages"])))
        check(what, (last(length, size), last(length, PAGE)), (c["last_block"], c["last_page"]))
        for r in c["ranges"]:
            offset, n = int(r["extent"]["offset"]), int(r["extent"]["length"])
            check(what, touched(length, PAGE, offset, n), (r["first_page"], r["end_page"]))
            check(what, touched(length, size, offset, n), (r["first_block"], r["end_block"]))


# Placement

P1, P2, P3, P4, P5 = (0x9E3779B185EBCA87, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9,
                      0x85EBCA77C2B2AE63, 0x27D4EB2F165667C5)


def rotl(x, r):
    return (x << r | x >> (64 - r)) & M64


def xxh64(b):
    """XXH64 with seed 0, for inputs shorter than 32 bytes."""
    assert len(b) < 32
    h = (P5 + len(b)) & M64
    while len(b) >= 8:
        (k,) = struct.unpack_from("<Q", b)
        h ^= rotl(k * P2 & M64, 31) * P1 & M64
        h = (rotl(h, 27) * P1 + P4) & M64
        b = b[8:]
    if len(b) >= 4:
        (k,) = struct.unpack_from("<I", b)
        h = (rotl(h ^ (k * P1 & M64), 23) * P2 + P3) & M64
        b = b[4:]
    for byte in b:
        h = rotl(h ^ (byte * P5 & M64), 11) * P1 & M64
    h = (h ^ h >> 33) * P2 & M64
    h = (h ^ h >> 29) * P3 & M64
    return h ^ h >> 32


def mix64(x):
    x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9 & M64
    x = (x ^ x >> 27) * 0x94D049BB133111EB & M64
    return x ^ x >> 31


def owners(placement, file_id, index, length):
    if length <= int(placement["whole_file_limit"]):
        index = 0xFFFFFFFF
    key = xxh64(file_id + struct.pack("<I", index))
    scores = []
    for w in placement["workers"] or []:
        if int(w["weight"]) == 0:
            continue
        u = ((mix64(key ^ xxh64(w["id"].encode())) >> 12) + 0.5) / (1 << 52)
        scores.append((int(w["weight"]) / math.log(u), w["id"]))  # negative: best first
    return [worker for _, worker in sorted(scores)]


def check_placement():
    for p in load("placement.json"):
        for k in p["keys"]:
            got = owners(p, bytes.fromhex(k["file_id"]), k["index"], int(k["length"]))
            check("placement, " + p["name"], got, k["owners"])


# Locations

def check_locations():
    for v in load("location.json"):
        got = xxh64(bytes.fromhex(v["file_id"]) + struct.pack("<I", v["index"])) & ~1
        check("location", str(got), v["hash"])


# Checksums

def crc32c(b):
    crc = 0xFFFFFFFF
    for byte in b:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


def check_checksums():
    for c in load("checksum.json"):
        check("CRC32C, " + c["name"], f"{crc32c(bytes.fromhex(c['bytes_hex'])):08x}", c["crc32c"])


check_file_ids()
check_tickets()
check_geometry()
check_placement()
check_locations()
check_checksums()
print(f"{checked} vectors checked, {failed} differ")
sys.exit(1 if failed else 0)
