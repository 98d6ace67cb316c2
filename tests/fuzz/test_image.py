"""Pictures to hurt, made with Pillow and by hand, and the sanitized decoder run on them."""
import io
import os
import struct
import subprocess
import zlib

import numpy as np
from PIL import Image

FUZZ_TESTS = os.path.join(os.environ["LORASHARD_BUILD_DIR"], "tests", "fuzz_tests")


def save(image, kind, **options):
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def picture(mode, size=(40, 30)):
    pixels = np.random.default_rng(3).integers(0, 256, (size[1], size[0], 4), np.uint8)
    pixels[:15] = pixels[0, 0]  # something to compress
    return Image.fromarray(pixels, "RGBA").convert(mode)


def seeds():
    exif = Image.Exif()
    exif[0x0112] = 6  # turned
    deep = Image.fromarray(np.arange(1200, dtype=np.uint16).reshape(30, 40) * 50)
    yield "rgb.png", save(picture("RGB"), "png")
    yield "rgba.png", save(picture("RGBA"), "png")
    yield "grey.png", save(picture("L"), "png")
    yield "grey_alpha.png", save(picture("LA"), "png")
    yield "palette.png", save(picture("P"), "png", transparency=3)
    yield "bits.png", save(picture("1"), "png")
    yield "deep.png", save(deep, "png")
    yield "baseline.jpg", save(picture("RGB"), "jpeg", quality=85)
    yield "progressive.jpg", save(picture("RGB"), "jpeg", progressive=True)
    yield "turned.jpg", save(picture("RGB"), "jpeg", exif=exif, subsampling=0)
    yield "grey.jpg", save(picture("L"), "jpeg")
    yield "cmyk.jpg", save(picture("RGB").convert("CMYK"), "jpeg")
    yield "lossy.webp", save(picture("RGB"), "webp")
    yield "lossless.webp", save(picture("RGBA"), "webp", lossless=True)
    yield "alpha.webp", save(picture("RGBA"), "webp")
    yield "animated.webp", save(picture("RGB"), "webp", save_all=True, append_images=[picture("RGB").rotate(90)])


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width, height, color=0, idat=b"", extra=b""):
    header = struct.pack(">IIBBBBB", width, height, 8, color, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + extra + chunk(b"IDAT", idat) + chunk(b"IEND", b"")


def zeros(rows, row_bytes):
    packer = zlib.compressobj(9)
    row = bytes(row_bytes + 1)
    return b"".join(packer.compress(row) for _ in range(rows)) + packer.flush()


def with_size(jpeg, width, height):
    at = next(i for marker in (b"\xff\xc0", b"\xff\xc2") if (i := jpeg.find(marker)) >= 0)
    return jpeg[:at + 5] + struct.pack(">HH", height, width) + jpeg[at + 9:]


def with_scans(jpeg, count):
    """The last scan of a progressive JPEG many times over."""
    at = jpeg.rfind(b"\xff\xda")
    return jpeg[:at] + jpeg[at:-2] * count + b"\xff\xd9"


def bombs():
    flat = Image.new("RGB", (4000, 4000))
    progressive = save(flat, "jpeg", progressive=True)
    yield "14000x14000.png", png(14000, 14000, 0, zeros(14000, 14000))
    yield "2^31.png", png(2**31 - 1, 2**31 - 1)
    yield "2^31x1.png", png(2**31 - 1, 1)
    yield "2^32.png", png(2**32 - 1, 2**32 - 1)
    yield "0x0.png", png(0, 0)
    yield "16385x1.png", png(16385, 1, 0, zeros(1, 16385))
    yield "65500x65500.jpg", with_size(save(Image.new("RGB", (64, 64)), "jpeg"), 65500, 65500)
    yield "65500x65500_progressive.jpg", with_size(progressive, 65500, 65500)
    yield "10000_scans.jpg", with_scans(progressive, 10_000)
    lossless = save(Image.new("RGB", (64, 64)), "webp", lossless=True)
    at = lossless.index(b"\x2f", 20) + 1
    yield "16384x16384.webp", lossless[:at] + struct.pack("<I", 0x0fffffff) + lossless[at + 4:]
    # Within the limits of size; the excess is in what is beside the pixels.
    row = zeros(8, 8)
    yield "small_1M_texts.png", png(8, 8, 0, row, chunk(b"tEXt", b"k\0v") * 1_000_000)
    text = zlib.compress(bytes(200_000_000), 9)
    yield "small_packed_text.png", png(8, 8, 0, row, chunk(b"zTXt", b"k\0\0" + text))
    yield "small_packed_profile.png", png(8, 8, 0, row, chunk(b"iCCP", b"k\0\0" + text))
    yield "small_excess_pixels.png", png(8, 8, 0, text)


def others():
    rgb = picture("RGB")
    for kind in ("bmp", "gif", "tiff", "ppm", "jpeg2000"):
        yield kind, save(rgb, kind)
    yield "svg", b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"><image href="file:///etc/passwd"/></svg>'
    yield "pdf", save(rgb, "pdf")
    yield "vips", b"\xb6\xa6\xf2\x08" + bytes(60)
    yield "empty", b""


def test_pictures_made_to_hurt(tmp_path):
    for kind, files in (("seeds", seeds()), ("bombs", bombs()), ("others", others())):
        (tmp_path / kind).mkdir()
        for name, data in files:
            (tmp_path / kind / name).write_bytes(data)
    done = subprocess.run([FUZZ_TESTS, "--gtest_filter=FuzzImage.*"], capture_output=True, text=True,
                          env=os.environ | {"LORASHARD_FUZZ_IMAGES": str(tmp_path)})
    print(done.stdout)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "SKIPPED" not in done.stdout
    assert done.stderr == "", "the decoder must not print"
