"""Reads files whole, many at once, as a data loader in Python does.

On stdin: a line with the number of threads and of files, then a path on each
line. "ready" is the answer. At the next line, "go", all files are read, and
the answer is the sum of their bytes, or "error: " and why. Then the next set.
"""
import concurrent.futures
import sys


def read_whole(path):
    n = 0
    with open(path, "rb", buffering=0) as f:
        while b := f.read(1 << 20):
            n += len(b)
    return n


def main():
    say = lambda text: print(text, flush=True)
    for line in sys.stdin:
        threads, files = map(int, line.split())
        paths = [sys.stdin.readline().rstrip("\n") for _ in range(files)]
        with concurrent.futures.ThreadPoolExecutor(threads) as pool:
            say("ready")
            if not sys.stdin.readline():
                return
            try:
                say(sum(pool.map(read_whole, paths)))
            except OSError as e:
                say(f"error: {e}")


main()
