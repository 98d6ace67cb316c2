"""decode_image() against Pillow, the decoder under the reference scripts.

PNG and WebP must give Pillow's pixels exactly, as must CMYK arithmetic and alpha over white. JPEG: equal too, as both decode
with libjpeg-turbo's accurate integer DCT; the two bundle different releases, so a difference of 1 would be allowed to a
channel if they ever part (MAX_JPEG_DIFFERENCE), but none is seen today.
"""
import glob
import io
import os
import subprocess

import numpy as np
import pytest
from PIL import Image, ImageCms, ImageOps

PROBE = os.path.join(os.environ["LORASHARD_BUILD_DIR"], "tests", "image_decode_probe")
STAMPS = "/usr/share/tuxpaint/stamps"
MAX_JPEG_DIFFERENCE = 1


def decode(tmp_path, files):
    """files: {name: bytes} -> {name: array, or (kind, message)}"""
    names = list(files)
    for name in names:
        (tmp_path / name).write_bytes(files[name])
    run = subprocess.run([PROBE, str(tmp_path)] + [str(tmp_path / name) for name in names],
                         capture_output=True, text=True, check=True)
    assert run.stderr == "", "the decoder must not print"
    results = {}
    for line in run.stdout.splitlines():
        index, state, rest = line.split(" ", 2)
        if state == "ok":
            height, width = map(int, rest.split())
            pixels = np.fromfile(tmp_path / f"{index}.rgb", np.uint8).reshape(height, width, 3)
            results[names[int(index)]] = pixels
        else:
            kind, message = rest.split(" ", 1)
            results[names[int(index)]] = (int(kind), message)
    assert len(results) == len(names)
    return results


def encode(image, format, **options):
    out = io.BytesIO()
    image.save(out, format, **options)
    return out.getvalue()


def picture(height=61, width=83, channels=3, seed=0):
    """Smooth shapes with noise on them: all codecs have something to do."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width]
    planes = [127 + 120 * np.sin(x / (5 + c) + y / (9 - c)) + rng.normal(0, 12, (height, width)) for c in range(channels)]
    return np.clip(np.stack(planes, -1), 0, 255).astype(np.uint8)


def expected(data):
    """What Pillow makes of it: upright, alpha over white, RGB."""
    image = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    if "A" in image.getbands() or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGB", image.size, (255, 255, 255))
        white.paste(image.convert("RGB"), mask=image.getchannel("A"))
        return np.asarray(white)
    return np.asarray(image.convert("RGB"))


def png_colour_types():
    rgb, rgba, grey = picture(), picture(channels=4), picture(channels=1)[:, :, 0]
    palette = Image.fromarray(rgb).quantize(200)
    cases = {
        "rgb": encode(Image.fromarray(rgb), "PNG"),
        "rgba": encode(Image.fromarray(rgba, "RGBA"), "PNG"),
        "grey": encode(Image.fromarray(grey), "PNG"),
        "grey_alpha": encode(Image.fromarray(picture(channels=2), "LA"), "PNG"),
        "palette": encode(palette, "PNG"),
        "palette_transparent": encode(palette, "PNG", transparency=7),
        "palette_alpha": encode(palette, "PNG", transparency=bytes(range(200))),
        "palette_4_bits": encode(Image.fromarray(rgb).quantize(13), "PNG", bits=4),
        "palette_2_bits": encode(Image.fromarray(rgb).quantize(4), "PNG", bits=2),
        "one_bit": encode(Image.fromarray(grey > 127), "PNG"),
        "grey_key": encode(Image.fromarray(grey), "PNG", transparency=int(grey[3, 4])),
        "rgb_key": encode(Image.fromarray(rgb), "PNG", transparency=tuple(int(v) for v in rgb[3, 4])),
        "one_pixel": encode(Image.fromarray(rgb[:1, :1]), "PNG"),
        "one_row": encode(Image.fromarray(rgb[:1]), "PNG"),
        "one_column": encode(Image.fromarray(rgb[:, :1]), "PNG"),
        "profile": encode(Image.fromarray(rgb), "PNG",
                          icc_profile=ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()),
    }
    return {f"{name}.png": data for name, data in cases.items()}


def chunk(kind, data):
    import struct
    import zlib
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width, height, depth, colour_type, rows, interlace=0):
    """A PNG of one's own: for depths Pillow doesn't write. rows: bytes, filter bytes included."""
    import struct
    import zlib
    header = struct.pack(">IIBBBBB", width, height, depth, colour_type, 0, 0, interlace)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def test_png_of_every_colour_type_equals_pillow(tmp_path):
    cases = png_colour_types()
    results = decode(tmp_path, cases)
    for name, data in cases.items():
        np.testing.assert_array_equal(results[name], expected(data), err_msg=name)


def test_16_bit_png_keeps_the_high_byte(tmp_path):
    rng = np.random.default_rng(1)
    cases, wanted = {}, {}
    for name, colour_type, channels in [("grey", 0, 1), ("rgb", 2, 3), ("grey_alpha", 4, 2), ("rgba", 6, 4)]:
        values = rng.integers(0, 65536, (17, 23, channels), dtype=np.uint16)
        rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
        cases[name] = png(23, 17, 16, colour_type, rows)
        high = (values >> 8).astype(np.int64)
        colour = high[:, :, :1].repeat(3, 2) if channels < 3 else high[:, :, :3]
        alpha = high[:, :, -1:] if channels in (2, 4) else np.full((17, 23, 1), 255)
        wanted[name] = (colour * alpha + 255 * (255 - alpha) + 127) // 255
    results = decode(tmp_path, cases)
    for name in cases:
        np.testing.assert_array_equal(results[name], wanted[name], err_msg=name)
    # Pillow agrees wherever it keeps 16 bits apart from clipping them (it clips grey).
    for name in ("rgb", "grey_alpha", "rgba"):
        np.testing.assert_array_equal(results[name], expected(cases[name]), err_msg=name)


def test_interlaced_png_equals_pillow(tmp_path):
    # Pillow writes no Adam7, so the passes are laid out here.
    rgb = picture(16, 16)
    passes = [(0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2)]
    rows = b"".join(b"\0" + line.tobytes() for x, y, dx, dy in passes for line in rgb[y::dy, x::dx])
    data = png(16, 16, 8, 2, rows, interlace=1)
    np.testing.assert_array_equal(expected(data), rgb)
    np.testing.assert_array_equal(decode(tmp_path, {"a.png": data})["a.png"], rgb)


def test_jpeg_equals_pillow(tmp_path):
    rgb, cmyk = picture(), picture(channels=4)
    cases = {f"q{q}_s{s}_p{p}": encode(Image.fromarray(rgb), "JPEG", quality=q, subsampling=s, progressive=bool(p))
             for q in (30, 75, 95) for s in (0, 1, 2) for p in (0, 1)}
    cases["grey"] = encode(Image.fromarray(rgb).convert("L"), "JPEG")
    cases["cmyk"] = encode(Image.fromarray(cmyk, "CMYK"), "JPEG", quality=95)
    cases["large"] = encode(Image.fromarray(picture(700, 901)), "JPEG", quality=90)
    results = decode(tmp_path, cases)
    worst = 0
    for name, data in cases.items():
        wanted = expected(data)
        assert results[name].shape == wanted.shape, name
        difference = np.abs(results[name].astype(int) - wanted.astype(int)).max()
        assert difference <= MAX_JPEG_DIFFERENCE, f"{name}: {difference}"
        worst = max(worst, difference)
    print(f"{len(cases)} JPEG files, largest difference {worst}")


def test_webp_equals_pillow(tmp_path):
    cases = {
        "lossless": encode(Image.fromarray(picture()), "WEBP", lossless=True),
        "lossy": encode(Image.fromarray(picture()), "WEBP", quality=80),
        "alpha": encode(Image.fromarray(picture(channels=4), "RGBA"), "WEBP", lossless=True),
    }
    results = decode(tmp_path, cases)
    for name, data in cases.items():
        np.testing.assert_array_equal(results[name], expected(data), err_msg=name)


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP"])
def test_exif_orientation_is_applied(tmp_path, format):
    cases = {}
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = orientation
        options = {"quality": 100, "subsampling": 0} if format == "JPEG" else {"lossless": True} if format == "WEBP" else {}
        cases[f"o{orientation}"] = encode(Image.fromarray(picture(24, 40)), format, exif=exif, **options)
    results = decode(tmp_path, cases)
    for name, data in cases.items():
        wanted = expected(data)
        assert results[name].shape == wanted.shape, name
        assert np.abs(results[name].astype(int) - wanted.astype(int)).max() <= (format == "JPEG"), name
    assert not np.array_equal(results["o1"], results["o3"])


def test_truncated_files_are_refused(tmp_path):
    """No file cut short gives pixels, unless all the pixels were there before the cut."""
    rgb = Image.fromarray(picture(64, 64))
    whole = {"a.png": encode(rgb, "PNG"), "b.jpg": encode(rgb, "JPEG", quality=90),
             "c.jpg": encode(rgb, "JPEG", quality=90, progressive=True), "d.webp": encode(rgb, "WEBP", lossless=True),
             "e.webp": encode(rgb, "WEBP", quality=80)}
    reference = decode(tmp_path, whole)
    rng = np.random.default_rng(3)
    count, refused = 0, 0
    for name, data in whole.items():
        lengths = sorted(set(rng.integers(0, len(data), 60).tolist()) | {0, 1, 2, 8, 12, 33, len(data) - 1})
        cut = {f"{length}_{name}": data[:length] for length in lengths}
        # A cut that somebody closed with the marker of the end: libjpeg would fill in grey.
        if name.endswith(".jpg"):
            cut.update({f"closed_{length}_{name}": data[:length] + b"\xff\xd9" for length in lengths})
        for cut_name, result in decode(tmp_path, cut).items():
            count += 1
            if isinstance(result, tuple):
                assert result[0] == 65, (cut_name, result)
                refused += 1
            else:
                np.testing.assert_array_equal(result, reference[name], err_msg=cut_name)
    assert refused > 0.9 * count
    print(f"{count} cut files, {refused} refused, the others whole")


def test_flipped_bytes_never_crash_and_png_never_lies(tmp_path):
    long = os.environ.get("LORASHARD_LONG_TESTS") == "1"
    per_format = 2000 if long else 150
    rgb = Image.fromarray(picture(48, 48))
    whole = {"png": encode(rgb, "PNG"), "jpg": encode(rgb, "JPEG"), "webp": encode(rgb, "WEBP", quality=80)}
    rng = np.random.default_rng(4)
    for kind, data in whole.items():
        cases = {}
        for i in range(per_format):
            broken = bytearray(data)
            broken[rng.integers(len(broken))] ^= 1 << rng.integers(8)
            cases[f"{i}.{kind}"] = bytes(broken)
        results = decode(tmp_path, cases)
        refused = sum(isinstance(result, tuple) for result in results.values())
        assert all(result[0] == 65 for result in results.values() if isinstance(result, tuple))
        if kind == "png":  # every chunk of a PNG has a checksum
            for name, result in results.items():
                assert isinstance(result, tuple) or np.array_equal(result, np.asarray(rgb)), name
        print(f"{kind}: {per_format} bits flipped, {refused} refused")


def test_bombs_are_refused_by_their_header(tmp_path):
    import resource
    import struct
    import zlib
    compressor = zlib.compressobj(9)
    rows = b"".join(compressor.compress(bytes(14000 * 3 + 1)) for _ in range(300)) + compressor.flush()
    header = struct.pack(">IIBBBBB", 14000, 14000, 8, 2, 0, 0, 0)
    flat = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")
    huge = flat.replace(header, struct.pack(">IIBBBBB", 2**31 - 1, 2**31 - 1, 8, 2, 0, 0, 0))
    huge = huge[:29] + struct.pack(">I", zlib.crc32(huge[12:29])) + huge[33:]
    texts = b"".join(chunk(b"tEXt", b"k%d\0v" % i) for i in range(200_000))
    one = encode(Image.fromarray(picture(8, 8)), "PNG")
    inflating = chunk(b"zTXt", b"k\0\0" + zlib.compress(bytes(200_000_000), 9))
    cases = {"flat.png": flat, "huge.png": huge, "texts.png": one[:33] + texts + one[33:],
             "inflating.png": one[:33] + inflating + one[33:],
             "wide.jpg": encode(Image.new("RGB", (60000, 4)), "JPEG")}
    before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    results = decode(tmp_path, cases)
    grown = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    for name in ("flat.png", "huge.png", "wide.jpg"):
        assert results[name][0] == 65, (name, results[name])
    assert "14000 x 14000" in results["flat.png"][1]
    assert grown < max(before, 400_000), f"{grown} kB resident"
    print(f"largest resident size of the decoder: {grown} kB")
    for name in ("texts.png", "inflating.png"):
        assert isinstance(results[name], tuple) or np.array_equal(results[name], expected(one)), name


def test_progressive_scan_bomb_is_refused(tmp_path):
    """A JPEG may repeat its last scan without end, each one a pass over all the picture."""
    data = encode(Image.fromarray(picture(64, 64)).convert("L"), "JPEG", progressive=True)
    scan = data.rfind(b"\xff\xda")
    bomb = data[:-2] + data[scan:-2] * 5000 + b"\xff\xd9"
    result = decode(tmp_path, {"bomb.jpg": bomb})["bomb.jpg"]
    assert isinstance(result, tuple) and result[0] == 65, result


@pytest.mark.skipif(not os.path.isdir(STAMPS), reason="needs Debian's tuxpaint-stamps-default")
def test_real_pictures_equal_pillow(tmp_path):
    paths = sorted(glob.glob(f"{STAMPS}/**/*.png", recursive=True))
    if os.environ.get("LORASHARD_LONG_TESTS") != "1":
        paths = paths[::8]
    cases = {f"{i}.png": open(path, "rb").read() for i, path in enumerate(paths)}
    results = decode(tmp_path, cases)
    for (name, data), path in zip(cases.items(), paths):
        np.testing.assert_array_equal(results[name], expected(data), err_msg=path)
    print(f"{len(paths)} pictures")
