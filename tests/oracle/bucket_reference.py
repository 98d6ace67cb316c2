"""Aspect-ratio buckets a second time, as docs/determinism.md specifies them: which size a picture gets (the rule of kohya's
BucketManager), and which rows a micro-batch has. Sizes are (height, width); `data` is the recipe's table."""

import math

import numpy as np

import philox_reference as philox


def resolutions(data):
    """The sizes to choose from, by width, then height."""
    area, step = data["resolution"] ** 2, data["bucket_reso_steps"]
    low, high = data["min_bucket_reso"], data["max_bucket_reso"]
    square = math.isqrt(area) // step * step
    found = {(square, square)}
    for width in range(low, high + 1, step):
        height = min(high, area // width // step * step)
        if height >= low:
            found |= {(height, width), (width, height)}
    return sorted(found, key=lambda size: size[::-1])


def covering(size, bucket):
    """The size that just covers `bucket`."""
    (height, width), (to_height, to_width) = size, bucket
    scale = to_height / height if width / height > to_width / to_height else to_width / width
    return int(height * scale + 0.5), int(width * scale + 0.5)


def frame(size, data):
    """(resized, bucket) of a picture; None where bucket_no_upscale leaves nothing of it."""
    height, width = size
    ratio = width / height
    step = data["bucket_reso_steps"]
    if not data["bucket_no_upscale"]:
        sizes = resolutions(data)
        errors = np.abs(np.array([w / h for h, w in sizes]) - ratio)
        bucket = tuple(size) if tuple(size) in sizes else sizes[int(errors.argmin())]
        return covering(size, bucket), bucket
    area = data["resolution"] ** 2
    resized = height, width
    if height * width > area:
        best_width = math.sqrt(area * ratio)
        stepped = lambda x: int(x + 0.5) // step * step
        by_width, by_height = stepped(best_width), stepped(area / best_width)
        # The ratio that comes of making one side, and then the other, multiples of the step; none where a side is 0.
        error = lambda w, h: abs(w / h - ratio) if w and h else math.inf
        if error(by_width, stepped(by_width / ratio)) < error(stepped(by_height * ratio), by_height):
            resized = int(by_width / ratio + 0.5), by_width
        else:
            resized = by_height, int(by_height * ratio + 0.5)
    bucket = tuple(side // step * step for side in resized)
    return (resized, bucket) if all(bucket) else None


class Buckets:
    """The rows of each bucket, and the micro-batches made of them."""

    def __init__(self, data, sizes, images, batch):
        """`sizes` of the rows; `images`: the row of each image of an epoch."""
        found = {}
        for row in images:
            found.setdefault(frame(sizes[row], data)[1], []).append(row)
        self.buckets = sorted(found.items(), key=lambda item: item[0][::-1])
        self.batch = batch
        self.micro_batches = [(b, number) for b, (_, rows) in enumerate(self.buckets) for number in range(-(-len(rows) // batch))]

    def micro_batch(self, seed, m):
        """(epoch, bucket, rows) of micro-batch `m` of the run."""
        epoch, j = divmod(m, len(self.micro_batches))
        b, number = self.micro_batches[philox.permutation(seed, epoch, len(self.micro_batches), j, purpose=philox.BUCKET_ORDER)]
        size, rows = self.buckets[b]
        slot = epoch * len(self.buckets) + b
        places = [(number * self.batch + i) % len(rows) for i in range(self.batch)]
        return epoch, size, [rows[philox.permutation(seed, slot, len(rows), p, purpose=philox.BUCKET_IMAGES)] for p in places]
